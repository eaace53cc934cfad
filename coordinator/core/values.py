"""Values that events, effects and plans are made of. Frozen, complete, JSON-able by `potluck.config.to_mapping`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from potluck.ids import Digest, Json, LineageId, TaskId

Figures = Mapping[str, Json]
"""Small results, at most 64 KiB as JSON."""

TaskKind = Literal[
    "tokenise", "embed", "fit_clusters", "assign", "train", "score", "eval", "fit", "outer_step", "serve"
]


@dataclass(frozen=True, kw_only=True)
class TaskWanted:
    """A task a plan wants done. `id` is `potluck.ids.task_id(kind, params, inputs)`."""

    id: TaskId
    kind: TaskKind
    params_json: str
    inputs: tuple[tuple[str, Digest], ...]
    label: str
    memory_bytes: int = 0
    rank: int = 1
    """Lower goes first within a run: 0 holds lineages up, 1 is ordinary, 2 can wait (evaluation, controls)."""


@dataclass(frozen=True, kw_only=True)
class LineageWanted:
    """A lineage a plan wants trained, with all its segments so far. A plan only ever appends."""

    id: LineageId
    recipe_json: str
    segments_json: tuple[str, ...]
    profile_json: str
    total_steps: int
    known_steps: int
    """End of the last known segment: a lease's target."""
    commit_every: int
    flops_per_step: float
    memory_bytes: int
    role: str
    label: str
    rank: int = 1


@dataclass(frozen=True, kw_only=True)
class Publication:
    """A probed checkpoint that may be served."""

    slot: str
    lineage: LineageId
    step: int
    weights: Digest
    tokenizer: Digest
    model_json: str


@dataclass(frozen=True, kw_only=True)
class Running:
    pass


@dataclass(frozen=True, kw_only=True)
class Finished:
    report: Digest
    figures: Figures


@dataclass(frozen=True, kw_only=True)
class Failed:
    error_id: str
    message: str


Outcome = Running | Finished | Failed


@dataclass(frozen=True, kw_only=True)
class SteeringEntry:
    """A change of a run's mixture from outside, in the order they came."""

    number: int
    """1, 2, ...: the mixture version it makes, if it takes effect."""
    kind: Literal["set", "proposal"]
    mixture: Digest
    step: int
    """Of the whole training: where it takes effect, or where the gate's two forks begin."""
    gate_steps: int
    """Steps of each fork; 0 for what is set at once."""
    origin: str
    """person | target | traffic"""
    reason: str
    unix_ms: int


@dataclass(frozen=True, kw_only=True)
class Steering:
    """What a plan says of a lineage whose mixture can change."""

    to_step: int
    """End of the last segment given out: the first step a change can hold from."""
    total_steps: int
    gate_steps: int
    """Steps a fork would take at the gate."""
    gate_open: bool
    """Two forks are being compared: nothing else may change meanwhile."""
    json: str
    """For people and clients: partition, versions with their steps, proposals with their verdicts."""


@dataclass(frozen=True, kw_only=True)
class ServingReport:
    run: str
    slot: str
    weights: Digest
    state: str
    """loading | ready | failed"""
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    blobs: Mapping[str, Digest]
    figures: Figures


@dataclass(frozen=True, kw_only=True)
class CommittedStep:
    """One link of a lineage's chain."""

    step: int
    checkpoint: Digest
    weights: Digest
    optimizer: Digest
    figures: Figures
