"""The spec of a SmallTalk run (arXiv 2410.03529): routers, experts, their opponents."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from potluck.config import added
from potluck.lm.config import ModelConfig
from potluck.recipe import require_shares
from potluck.specs.sections import CommonSpec, ModelShape, require, require_rates

MAX_EXPERTS = 256


@dataclass(frozen=True, kw_only=True)
class RouterSpec:
    """EM over tiny language models (2410.03529, algorithm 1)."""

    model: ModelShape = field(default_factory=lambda: ModelShape(preset="router-24"))
    rounds: int = 8
    chunk_sequences: int = 2048
    """N: fresh rows a round, over all routers."""
    batch_size: int = 16
    learning_rate: float = 3e-3
    warmup_fraction: float = 0.05
    score_batch: int = 16
    assignment: Literal["sorted", "stream"] = added("sorted")
    """How balanced assignment visits the rows of a chunk: the most confidently modelled first, or, as a control, as
    they come."""

    def __post_init__(self) -> None:
        require(self.rounds >= 1, "routers.rounds", self.rounds, "1 or more")
        require_rates(
            "routers",
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            warmup_fraction=self.warmup_fraction,
        )
        require(self.score_batch >= 1, "routers.score_batch", self.score_batch, "1 or more")


@dataclass(frozen=True, kw_only=True)
class ExpertSpec:
    model: ModelShape = field(default_factory=lambda: ModelShape(preset="0.08M"))
    num: int = 4
    chunks: int = 4
    """Segments of each expert; routers score one chunk at a time, so experts start after the first."""
    chunk_sequences: int = 16_384
    """Rows of a chunk, over all experts."""
    batch_size: int = 16
    learning_rate: float = 3e-3
    warmup_fraction: float = 0.05
    final_fraction: float = 0.1

    def __post_init__(self) -> None:
        require(2 <= self.num <= MAX_EXPERTS, "experts.num", self.num, f"2 to {MAX_EXPERTS}")
        require(self.chunks >= 1, "experts.chunks", self.chunks, "1 or more")
        require_rates(
            "experts",
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            warmup_fraction=self.warmup_fraction,
            final_fraction=self.final_fraction,
        )
        per_step = self.num * self.batch_size
        ok = self.chunk_sequences > 0 and self.chunk_sequences % per_step == 0
        require(ok, "experts.chunk_sequences", self.chunk_sequences, f"a multiple of num x batch_size = {per_step}")


@dataclass(frozen=True, kw_only=True)
class DenseSpec:
    """The opponent: one expert's size, all the mixture's FLOPs; its steps follow from them."""

    enabled: bool = True
    batch_size: int = 32
    learning_rate: float = 3e-3
    warmup_fraction: float = 0.05
    final_fraction: float = 0.1

    def __post_init__(self) -> None:
        require_rates(
            "dense",
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            warmup_fraction=self.warmup_fraction,
            final_fraction=self.final_fraction,
        )


@dataclass(frozen=True, kw_only=True)
class ControlSpec:
    random_split: Literal["none", "one", "all"] = "one"
    """Experts on random equal shares: exchangeable, so one may stand for all."""
    prefixes: tuple[int, ...] = added(())
    """Shorter prefixes that test rows are routed by too; what is compared stays the text after the whole prefix."""


@dataclass(frozen=True, kw_only=True)
class SearchSpec:
    """How batch and learning rate were chosen, for both sides alike.

    `none`: they were not. `recorded`: `table` names a committed table that chose them.
    `grid`: every (batch, rate) cell of both sides is trained as ordinary lineages, the best by
    validation NLL is taken, and tables report test.
    """

    mode: Literal["none", "recorded", "grid"] = "none"
    table: str = ""
    dense_batch: tuple[int, ...] = ()
    dense_learning_rate: tuple[float, ...] = ()
    expert_batch: tuple[int, ...] = ()
    expert_learning_rate: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        lists = ("dense_batch", "dense_learning_rate", "expert_batch", "expert_learning_rate")
        if self.mode == "grid":
            for name in lists:
                values = getattr(self, name)
                ok = bool(values) and all(0 < value < math.inf for value in values)
                require(ok, f"search.{name}", list(values), "a list of positive, finite numbers")
        if self.mode == "recorded":
            require(bool(self.table), "search.table", self.table, "the path of a committed search table")


@dataclass(frozen=True, kw_only=True)
class SmallTalkSpec(CommonSpec):
    method: Literal["smalltalk"] = "smalltalk"
    partition_by: Literal["routers", "clusters", "source"] = added("routers")
    """What sorts the text: routers, or for comparison clusters of tf-idf vectors of prefixes, or the sources."""
    routers: RouterSpec = field(default_factory=RouterSpec)
    experts: ExpertSpec = field(default_factory=ExpertSpec)
    dense: DenseSpec = field(default_factory=DenseSpec)
    controls: ControlSpec = field(default_factory=ControlSpec)
    search: SearchSpec = field(default_factory=SearchSpec)

    def __post_init__(self) -> None:
        super().__post_init__()
        per_round = self.experts.num * self.routers.batch_size
        ok = self.routers.chunk_sequences > 0 and self.routers.chunk_sequences % per_round == 0
        allowed = f"a multiple of experts.num x routers.batch_size = {per_round}"
        require(ok, "routers.chunk_sequences", self.routers.chunk_sequences, allowed)
        batches = [self.routers.batch_size, self.experts.batch_size]
        batches += [self.dense.batch_size] if self.dense.enabled else []
        batches += [*self.search.expert_batch, *self.search.dense_batch] if self.search.mode == "grid" else []
        for batch in batches:
            require_shares(batch, self.profile)
        self._check_memory(batches[1:])
        self._check_routing()
        for batch in self.search.expert_batch if self.search.mode == "grid" else ():
            step = self.experts.num * batch
            ok = self.experts.chunk_sequences % step == 0
            require(ok, "search.expert_batch", batch, f"{step} must divide experts.chunk_sequences")

    def _check_routing(self) -> None:
        assignment, prefixes, whole = self.routers.assignment, self.controls.prefixes, self.text.prefix_length
        require(self.has_routers or assignment == "sorted", "routers.assignment", assignment, "sorted without routers")
        require(self.has_routers or not prefixes, "controls.prefixes", list(prefixes), "none without routers")
        for prefix in prefixes:
            require(2 <= prefix < whole, "controls.prefixes", prefix, f"2 to {whole - 1}, below text.prefix_length")

    def _check_memory(self, batches: list[int]) -> None:
        if self.memory_mib and self.experts.model.hidden and self.routers.model.hidden:
            prefix, length = self.text.prefix_length, self.text.sequence_length
            self.profile_for(self.router_model(), batch_size=self.routers.batch_size, sequence=prefix)
            for batch in batches:
                self.profile_for(self.expert_model(), batch_size=batch, sequence=length)

    @property
    def has_routers(self) -> bool:
        return self.partition_by == "routers"

    def resolved(self) -> SmallTalkSpec:
        """Presets become numbers."""
        return replace(
            self,
            routers=replace(self.routers, model=self.routers.model.resolved("routers.model")),
            experts=replace(self.experts, model=self.experts.model.resolved("experts.model")),
        )

    def expert_model(self) -> ModelConfig:
        return self.experts.model.config(
            vocab=self.text.vocab_size, context=self.text.sequence_length + 1, attention=self.text.attention
        )

    def router_model(self) -> ModelConfig:
        return self.routers.model.config(
            vocab=self.text.vocab_size, context=self.text.prefix_length, attention=self.text.attention
        )
