"""What a router answers, as plain values: the client returns them, the router makes them."""

from __future__ import annotations

from dataclasses import dataclass

NOT_ROUTED = -1
"""The expert of an answer whose slot is no expert, such as `dense`, and of a soup's."""


@dataclass(frozen=True, kw_only=True)
class Routed:
    """Which expert a text goes to, and why."""

    expert: int
    prefix_nll: tuple[float, ...]
    """Per expert, nats per target token of the prefix; zeros when the text has one token and so no target."""
    prefix_tokens: int
    """Tokens the decision saw: at most the run's prefix length."""
    view_version: int
    run: str
    weights: str
    """Digest of the chosen expert's published weights."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Log-probabilities of a text's tokens 2..n under one expert, nats."""

    expert: int
    log_probs: tuple[float, ...]
    ids: tuple[int, ...]
    """The n tokens; `log_probs` has n - 1."""
    view_version: int
    run: str
    weights: str
    """Of the model; of the whole soup if `model` is one of a soup."""
    model: str = ""
    """The one name of the model that was asked for, such as ``soup:code=0.6,law=0.4``; empty for a slot's."""


@dataclass(frozen=True, kw_only=True)
class Generated:
    """A piece of a generated text."""

    ids: tuple[int, ...]
    """Of all pieces together: every token, up to the one that completed a stop string."""
    text: str
    """What is certain of the text: whole characters only, and nothing that may yet be the start of a stop string."""
    expert: int
    view_version: int
    run: str
    weights: str
    finish: str
    """Empty until the last piece: `eod`, `length`, or `stop` where the text ended before a stop string."""
    model: str = ""
    """As in `Scored`."""


@dataclass(frozen=True, kw_only=True)
class Instantiated:
    """A model that a node has made of a soup."""

    model: str
    """Its one name."""
    digest: str
    """SHA-256 of its weights as the safetensors file that the task `fit`/`instantiate` writes."""
    cached: bool
    """Whether the node had it already."""
    build_ms: float
    """What making it took, when it was made."""
    coefficients: tuple[float, ...]
    """phi(h), one for each expert of the soup."""
    view_version: int
    run: str
    weights: str
    """The soup's."""
    node: str
