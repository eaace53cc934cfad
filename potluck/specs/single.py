"""The spec of a single model: one lineage on the whole corpus. What others are compared with."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from potluck.lm.config import ModelConfig
from potluck.recipe import require_shares
from potluck.specs.partition import MixtureSpec, PartitionSpec
from potluck.specs.sections import CommonSpec, ModelShape, require, require_rates


@dataclass(frozen=True, kw_only=True)
class TrainingSpec:
    steps: int = 1000
    batch_size: int = 16
    """Rows a step."""
    learning_rate: float = 6e-3
    warmup_fraction: float = 0.05
    final_fraction: float = 0.1
    """Of the peak rate, at the end of the cosine."""

    def __post_init__(self) -> None:
        require(self.steps >= 1, "training.steps", self.steps, "1 or more")
        require_rates(
            "training",
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            warmup_fraction=self.warmup_fraction,
            final_fraction=self.final_fraction,
        )


@dataclass(frozen=True, kw_only=True)
class SingleSpec(CommonSpec):
    method: Literal["single"]
    model: ModelShape = field(default_factory=lambda: ModelShape(preset="0.08M"))
    training: TrainingSpec = field(default_factory=TrainingSpec)
    partition: PartitionSpec = field(default_factory=PartitionSpec)
    mixture: MixtureSpec = field(default_factory=MixtureSpec)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_shares(self.training.batch_size, self.profile)
        if self.memory_mib and self.model.hidden:
            batch, length = self.training.batch_size, self.text.sequence_length
            self.profile_for(self.full_model(), batch_size=batch, sequence=length)

    def resolved(self) -> SingleSpec:
        """Presets become numbers."""
        return replace(self, model=self.model.resolved("model"))

    def full_model(self) -> ModelConfig:
        return self.model.config(
            vocab=self.text.vocab_size, context=self.text.sequence_length + 1, attention=self.text.attention
        )
