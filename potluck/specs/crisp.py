"""The spec of a specialist: a model trained on the part of a corpus that looks like a target (CRISP, 2410.03735)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from potluck.ids import Digest
from potluck.lm.config import ModelConfig
from potluck.recipe import require_shares
from potluck.specs.partition import MixtureSpec, PartitionSpec
from potluck.specs.sections import CommonSpec, ModelShape, require, require_rates
from potluck.specs.single import TrainingSpec


@dataclass(frozen=True, kw_only=True)
class TargetWeight:
    name: str
    """A first-level folder of the target."""
    weight: float

    def __post_init__(self) -> None:
        require(0 < self.weight < math.inf, f"target_weights.{self.name}", self.weight, "above 0, finite")


@dataclass(frozen=True, kw_only=True)
class FinetuneSpec:
    """Training on the target's own text afterwards, of specialist and generalist alike."""

    steps: int = 0
    """0: none. The best of `checks` checkpoints on the target's valid text is kept (early stopping)."""
    checks: int = 4
    batch_size: int = 8
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        require(self.steps >= 0, "finetune.steps", self.steps, "0 (none) or more")
        require(1 <= self.checks <= 64, "finetune.checks", self.checks, "1 to 64")
        require_rates(
            "finetune",
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
        )


@dataclass(frozen=True, kw_only=True)
class CrispSpec(CommonSpec):
    method: Literal["crisp"]
    target: Digest
    """Digest of the target's corpus manifest; a spec file names a folder, a file or files."""
    target_weights: tuple[TargetWeight, ...] = ()
    """Of several targets, 1 for those without one; where none is given each counts by its text."""
    smoothing: float = 0.0
    """Windows added to the histogram of every domain."""
    max_repeats: float = 15.0
    """The run stops before training if text would be read more often than this on average."""
    switch_fraction: float = 0.0
    """Share of the training that reads naturally before the specialist begins: continued training of the generalist."""
    model: ModelShape = field(default_factory=lambda: ModelShape(preset="0.08M"))
    training: TrainingSpec = field(default_factory=TrainingSpec)
    partition: PartitionSpec = field(default_factory=lambda: PartitionSpec(by="clusters", k=64))
    mixture: MixtureSpec = field(default_factory=MixtureSpec)
    finetune: FinetuneSpec = field(default_factory=FinetuneSpec)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_shares(self.training.batch_size, self.profile)
        require(self.partition.by == "clusters", "partition.by", self.partition.by, "clusters, to place the target")
        require(0 <= self.smoothing < math.inf, "smoothing", self.smoothing, "0 or more, finite")
        require(self.max_repeats > 0, "max_repeats", self.max_repeats, "above 0")
        require(0 <= self.switch_fraction < 1, "switch_fraction", self.switch_fraction, "[0, 1)")

    def resolved(self) -> CrispSpec:
        """Presets become numbers."""
        return replace(self, model=self.model.resolved("model"))

    def full_model(self) -> ModelConfig:
        return self.model.config(
            vocab=self.text.vocab_size, context=self.text.sequence_length + 1, attention=self.text.attention
        )
