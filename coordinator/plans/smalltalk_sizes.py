"""SmallTalk's arithmetic: steps, positions in the stream, FLOPs (2410.03529, sections 2 and 5 of its card)."""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.plans.seeds import derive
from potluck.lm.flops import forward_flops, train_flops
from potluck.specs.smalltalk import SmallTalkSpec


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A batch size (rows a step of one model) and a peak learning rate."""

    batch_size: int
    learning_rate: float


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Numbers that follow from a spec alone.

    The stream is one permutation of the training rows: router chunk r holds positions
    [r N, (r + 1) N), expert chunk c holds [R N + c Nc, R N + (c + 1) Nc); the dense twin reads from R N on.
    """

    spec: SmallTalkSpec

    @property
    def key(self) -> int:
        return derive(self.spec.seed, "stream")

    @property
    def router_steps_per_round(self) -> int:
        routers = self.spec.routers
        return routers.chunk_sequences // (self.spec.experts.num * routers.batch_size)

    @property
    def router_rounds(self) -> int:
        """0 where something else sorts the text."""
        return self.spec.routers.rounds if self.spec.has_routers else 0

    @property
    def router_steps(self) -> int:
        return self.router_rounds * self.router_steps_per_round

    def router_chunk_start(self, round_index: int) -> int:
        return round_index * self.spec.routers.chunk_sequences

    def expert_chunk_start(self, chunk: int) -> int:
        return self.router_chunk_start(self.router_rounds) + chunk * self.spec.experts.chunk_sequences

    def expert_steps_per_chunk(self, cell: Cell) -> int:
        return self.spec.experts.chunk_sequences // (self.spec.experts.num * cell.batch_size)

    def expert_steps(self, cell: Cell) -> int:
        return self.spec.experts.chunks * self.expert_steps_per_chunk(cell)

    def dense_steps(self, cell: Cell) -> int:
        """As many as the mixture's FLOPs pay for, at least one."""
        per_step = cell.batch_size * self.expert_row_flops
        return max(1, int(self.mixture_flops["total"] // per_step))

    @property
    def expert_row_flops(self) -> float:
        """Forward and backward over one full row."""
        return train_flops(self.spec.expert_model(), self.spec.text.sequence_length)

    @property
    def router_row_flops(self) -> float:
        """Forward and backward over one prefix."""
        return train_flops(self.spec.router_model(), self.spec.text.prefix_length)

    @property
    def router_score_flops(self) -> float:
        """Forward over one prefix, by one router."""
        return forward_flops(self.spec.router_model(), self.spec.text.prefix_length)

    @property
    def mixture_flops(self) -> dict[str, float]:
        """By part, and `total`: what the dense twin is given to spend.

        Round 0 trains on random shares, so R - 1 router chunks are scored; every row by all E routers.
        """
        spec = self.spec
        router_rows = self.router_rounds * spec.routers.chunk_sequences
        expert_rows = spec.experts.chunks * spec.experts.chunk_sequences
        scored_rows = max(0, self.router_rounds - 1) * spec.routers.chunk_sequences
        parts = {
            "router_training": router_rows * self.router_row_flops,
            "router_scoring": scored_rows * spec.experts.num * self.router_score_flops,
            "expert_scoring": expert_rows * spec.experts.num * self.router_score_flops * spec.has_routers,
            "experts": expert_rows * self.expert_row_flops,
        }
        return {**parts, "total": sum(parts.values())}

    @property
    def paper_bytes_per_round(self) -> int:
        """4 T E / S of the paper, T tokens a router between rounds: T E / S is the rows of a chunk."""
        return 4 * self.spec.routers.chunk_sequences
