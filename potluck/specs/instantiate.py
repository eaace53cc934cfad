"""The spec of a specialist that is made of a soup without a gradient step: theta(h) of one mixture (2502.01804)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from potluck.ids import NO_DIGEST, Digest, is_digest
from potluck.lm.config import ModelConfig
from potluck.lm.soup_config import SoupConfig
from potluck.specs.sections import CommonSpec, require

SUM_TOLERANCE = 1e-9


@dataclass(frozen=True, kw_only=True)
class DomainWeight:
    name: str
    """Of a domain of the soup's partition."""
    weight: float

    def __post_init__(self) -> None:
        require(0 < self.weight < math.inf, f"weights.{self.name}", self.weight, "above 0, finite")


@dataclass(frozen=True, kw_only=True)
class SoupSource:
    """A soup as a run published it, and what belongs to it."""

    bank: Digest
    """Weights of the soup's checkpoint: shared model, experts, coefficients."""
    natural: Digest
    """Weights of its model of the corpus, at the same step: what a specialist is compared with."""
    labels: Digest
    """The labels manifest: the domains, in the order of h."""
    partition: Digest
    tokenizer: Digest
    model: ModelConfig
    config: SoupConfig
    encoder: Digest = NO_DIGEST
    """With `tree`, of a partition by clusters: what places other text in the domains."""
    encoder_name: Literal["", "encoder", "encoder_manifest"] = ""
    """A fitted file, or the manifest of a packed folder."""
    tree: Digest = NO_DIGEST

    def __post_init__(self) -> None:
        for name in ("bank", "natural", "labels", "partition", "tokenizer"):
            require(is_digest(getattr(self, name)), f"soup.{name}", getattr(self, name), "a digest")
        given = (bool(self.encoder), bool(self.encoder_name), bool(self.tree))
        require(len(set(given)) == 1, "soup.encoder", self.encoder, "with encoder_name and tree, or none of the three")
        for name in ("encoder", "tree") if self.tree else ():
            require(is_digest(getattr(self, name)), f"soup.{name}", getattr(self, name), "a digest")

    @property
    def digests(self) -> tuple[Digest, ...]:
        """Every blob that it names."""
        named = (self.bank, self.natural, self.labels, self.partition, self.tokenizer, self.encoder, self.tree)
        return tuple(digest for digest in named if digest != NO_DIGEST)


@dataclass(frozen=True, kw_only=True)
class InstantiateSpec(CommonSpec):
    """Either `weights` say what is wanted, or text like it: `corpus`, empty with weights."""

    method: Literal["instantiate"]
    soup: SoupSource
    weights: tuple[DomainWeight, ...] = ()
    """Sorted by name; domains that are not named have none. They sum to one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        has_text = self.corpus != NO_DIGEST
        require(has_text != bool(self.weights), "weights", len(self.weights), "weights, or text in corpus, not both")
        require(bool(self.soup.tree) or not has_text, "corpus", self.corpus, "empty: a soup by source places no text")
        names = [each.name for each in self.weights]
        require(names == sorted(set(names)), "weights", names, "each domain once, sorted by name")
        total = math.fsum(each.weight for each in self.weights)
        ok = not self.weights or abs(total - 1.0) <= SUM_TOLERANCE
        require(ok, "weights", total, "a sum of 1")
        fits = self.soup.model.context == self.text.sequence_length + 1
        require(fits, "text.sequence_length", self.text.sequence_length, f"{self.soup.model.context - 1}, the soup's")

    def resolved(self) -> InstantiateSpec:
        return self
