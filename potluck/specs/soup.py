"""The spec of a soup: one training from which any specialist is made on request (Soup-of-Experts, 2502.01804)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from potluck.config import added
from potluck.lm.config import ModelConfig
from potluck.lm.soup_config import SoupConfig
from potluck.lm.soup_memory import SoupCost, round_bytes, soup_cost
from potluck.lm.soup_spread import Spread
from potluck.recipe import AdEMAMixConfig, require_shares
from potluck.specs.partition import PartitionSpec
from potluck.specs.sections import CommonSpec, ModelShape, require
from potluck.specs.single import TrainingSpec

MAX_ROUNDS = 2000
"""Of a spread soup: the coordinator keeps each round's results until the run ends, and walks through them all."""


@dataclass(frozen=True, kw_only=True)
class BankSpec:
    """The bank, its coefficients, and the mixtures that it is trained over."""

    experts: int = 16
    rank: int = 0
    """0: experts as large as the model; else each of their matrices is a product of two of this rank."""
    coefficients: Literal["mlp", "linear"] = "mlp"
    hidden: int = 128
    """Width of the MLP."""
    mixtures_per_step: int = 4
    support: int = 4
    """Domains that a mixture has weight on; all of them where a corpus has fewer sources."""
    natural_share: float = 0.1
    """Chance of a mixture to be the corpus' own proportions; 0 is the paper's. The network then knows the mixture that
    most text comes from: over 32 clusters (0.04M, 16 experts, 600 steps, one seed) theta of the corpus gained 0.07
    nats by it, those of 8 sources 0.02."""
    expert_rate: float = 8.0
    """Learning rate of the experts, as a multiple of the shared model's.

    Both are divided by 1 + the L1 norm of the coefficients, a bound that the experts seldom need together: chosen from
    1, 4, 8 and 16 on 0.04M parameters, 8 experts and 600 steps of mixed text (one seed), at which specialists gained
    0.07, 0.16, 0.20 and 0.18 nats."""
    coefficient_rate: float = 1.0
    """Learning rate of the coefficients' network, as a multiple of the schedule's."""

    def __post_init__(self) -> None:
        for name in ("experts", "hidden", "mixtures_per_step", "support"):
            require(getattr(self, name) >= 1, f"bank.{name}", getattr(self, name), "1 or more")
        require(self.rank >= 0, "bank.rank", self.rank, "0 (as large as the model) or more")
        require(0 <= self.natural_share <= 1, "bank.natural_share", self.natural_share, "[0, 1]")
        for name in ("expert_rate", "coefficient_rate"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"bank.{name}", value, "0 or more, finite")

    def config(self, domains: int, *, coefficients: Literal["mlp", "linear", "constant", ""] = "") -> SoupConfig:
        """The shape over so many domains; with other coefficients, the control's."""
        return SoupConfig(
            domains=domains,
            experts=self.experts,
            rank=self.rank,
            coefficients=coefficients or self.coefficients,
            hidden=self.hidden,
            expert_rate=self.expert_rate,
            coefficient_rate=self.coefficient_rate,
        )


@dataclass(frozen=True, kw_only=True)
class SoupControls:
    """What a soup is compared with, each a lineage of equal tokens."""

    generic: bool = True
    """A plain model on the corpus as it lies."""
    constant: bool = True
    """A soup whose coefficients do not see the mixture: as large, and it cannot specialise."""


@dataclass(frozen=True, kw_only=True)
class SoupSpec(CommonSpec):
    method: Literal["soup"]
    model: ModelShape = field(default_factory=lambda: ModelShape(preset="0.08M"))
    training: TrainingSpec = field(default_factory=TrainingSpec)
    partition: PartitionSpec = field(default_factory=lambda: PartitionSpec(by="source"))
    bank: BankSpec = field(default_factory=BankSpec)
    controls: SoupControls = field(default_factory=SoupControls)
    spread: Spread = added(Spread())  # noqa: RUF009 - a frozen value

    def __post_init__(self) -> None:
        super().__post_init__()
        by = self.partition.by
        require(by != "none", "partition.by", by, "source, clusters")
        support, known = self.bank.support, self._domains if by == "clusters" else self.bank.support
        require(support <= known, "bank.support", support, f"at most the {known} domains")
        width = self.model.hidden or self.model.resolved("model").hidden
        require(self.bank.rank <= width, "bank.rank", self.bank.rank, f"at most the model's width, {width}")
        batch, per_step = self.training.batch_size, self.bank.mixtures_per_step
        require(batch % per_step == 0, "training.batch_size", batch, f"a multiple of {per_step} mixtures a step")
        require(self.profile.processes == 1, "profile.processes", self.profile.processes, "1; nodes share a soup")
        require_shares(batch // per_step, self.profile)
        require(not self.memory_mib, "memory_mib", self.memory_mib, "0; set profile.micro_batch")
        if self.spread.parts > 1:
            self._require_spread()

    def resolved(self) -> SoupSpec:
        """Presets become numbers."""
        return replace(self, model=self.model.resolved("model"))

    def full_model(self) -> ModelConfig:
        return self.model.config(
            vocab=self.text.vocab_size, context=self.text.sequence_length + 1, attention=self.text.attention
        )

    def cost(self, domains: int = 0, *, parts: int = 0) -> SoupCost:
        """What the bank takes on a node.

        Args:
            domains: if they are known yet; they matter to phi alone, which is small.
            parts: other than those it is spread over.
        """
        return soup_cost(
            self.full_model(),
            self.bank.config(domains or self._domains),
            per_step=self.bank.mixtures_per_step,
            batch_size=self.training.batch_size,
            sequence=self.text.sequence_length,
            profile=self.profile,
            optimizer=self.optimizer,
            parts=parts or self.spread.parts,
        )

    def round_bytes(self) -> int:
        """What a round puts on the hub, if it is spread."""
        per_step = self.bank.mixtures_per_step
        config = self.bank.config(self._domains)
        return round_bytes(self.full_model(), config, self.spread, per_step=per_step, optimizer=self.optimizer)

    def _require_spread(self) -> None:
        """Refuses what tasks cannot do, or not with the bits of one node."""
        parts, local = self.spread.parts, self.spread.local_steps
        for name in ("experts", "mixtures_per_step"):
            value = getattr(self.bank, name)
            require(value % parts == 0, f"bank.{name}", value, f"a multiple of {parts} spread.parts")
        require(not self.bank.rank, "bank.rank", self.bank.rank, "0 where spread.parts is above 1")
        own, plain = self.profile, "{}, which is what tasks run with, where spread.parts is above 1"
        for name, wanted in (("device", "cpu"), ("threads", 1), ("compile", False)):
            require(getattr(own, name) == wanted, f"profile.{name}", getattr(own, name), plain.format(wanted))
        narrow = isinstance(self.optimizer, AdEMAMixConfig) and self.optimizer.slow_dtype == "bfloat16"
        require(not narrow, "optimizer.slow_dtype", "bfloat16", "float32 where spread.parts is above 1")
        rounds, steps = self.spread.rounds(self.training.steps), self.training.steps
        least = f"{-(-steps // MAX_ROUNDS)} or more: {steps} steps in at most {MAX_ROUNDS} rounds, not {rounds}"
        require(rounds <= MAX_ROUNDS, "spread.local_steps", local, least)

    @property
    def _domains(self) -> int:
        how = self.partition
        return 1 if how.by == "source" else how.k or how.branch**how.depth
