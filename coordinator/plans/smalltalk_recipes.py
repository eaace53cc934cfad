"""The lineages of a SmallTalk run.

Routers differ by their init and their first data. Experts differ by init; expert e of the random split
has the init of expert e of the mixture, so that the two differ by data alone. The dense twin has its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from coordinator.plans.seeds import derive
from coordinator.plans.smalltalk_sizes import Cell, Sizes
from coordinator.plans.trainings import CONTROL_RANK, FIRST_RANK, Training, cosine, make_training, warm_up
from potluck.config import to_mapping
from potluck.ids import Digest, Json, canonical_json
from potluck.recipe import Schedule
from potluck.specs.smalltalk import DenseSpec, ExpertSpec

FullRowRole = Literal["expert", "random_split", "dense"]
"""Models that read S + 1 tokens of a row."""


class Recipes:
    """Builds each lineage of a run, once the tokens have a digest."""

    def __init__(self, sizes: Sizes, tokens: Digest) -> None:
        self._sizes = sizes
        self._spec = sizes.spec
        self._tokens = tokens

    def router(self, index: int) -> Training:
        spec, sizes = self._spec, self._sizes
        total, prefix = sizes.router_steps, spec.text.prefix_length
        schedule = Schedule(
            kind="constant",
            learning_rate=spec.routers.learning_rate,
            warmup_steps=warm_up(spec.routers.warmup_fraction, total),
            total_steps=total,
        )
        return make_training(
            spec,
            role="router",
            index=index,
            model=spec.router_model(),
            schedule=schedule,
            batch_size=spec.routers.batch_size,
            inputs=prefix,
            columns=prefix,
            init_seed=derive(spec.seed, "router", index),
            rule=self._rule("balanced_em", self._em_rule()),
            label=f"router {index}",
            rank=FIRST_RANK,
        )

    def expert(self, index: int, cell: Cell, suffix: str = "") -> Training:
        sorted_by = self._em_rule() if self._spec.has_routers else {"partition_by": self._spec.partition_by}
        rule = self._rule("routed", {**sorted_by, **self._chunk_rule()})
        return self._expert_like("expert", index, cell, rule, f"expert {index}{suffix}", FIRST_RANK)

    def random_split(self, index: int, cell: Cell) -> Training:
        rule = self._rule("random_split", self._chunk_rule())
        return self._expert_like("random_split", index, cell, rule, f"random split {index}", CONTROL_RANK)

    def dense(self, cell: Cell, suffix: str = "") -> Training:
        spec, sizes = self._spec, self._sizes
        return self._full_row(
            "dense",
            0,
            cell,
            schedule=_schedule(cell, spec.dense, sizes.dense_steps(cell)),
            init_seed=derive(spec.seed, "dense"),
            rule=self._rule("stream", {"start": sizes.expert_chunk_start(0)}),
            label=f"dense twin{suffix}",
            rank=FIRST_RANK,
        )

    def _expert_like(self, role: FullRowRole, index: int, cell: Cell, rule: str, label: str, rank: int) -> Training:
        spec, sizes = self._spec, self._sizes
        return self._full_row(
            role,
            index,
            cell,
            schedule=_schedule(cell, spec.experts, sizes.expert_steps(cell)),
            init_seed=derive(spec.seed, "expert", index),
            rule=rule,
            label=label,
            rank=rank,
        )

    def _full_row(
        self,
        role: FullRowRole,
        index: int,
        cell: Cell,
        *,
        schedule: Schedule,
        init_seed: int,
        rule: str,
        label: str,
        rank: int,
    ) -> Training:
        spec = self._spec
        return make_training(
            spec,
            role=role,
            index=index,
            model=spec.expert_model(),
            schedule=schedule,
            batch_size=cell.batch_size,
            inputs=spec.text.sequence_length,
            columns=spec.text.sequence_length + 1,
            init_seed=init_seed,
            rule=rule,
            label=label,
            rank=rank,
        )

    def _rule(self, name: str, parameters: Mapping[str, Json]) -> str:
        """Everything the segments' data follows from: equal rules, equal data, and so equal lineages."""
        spec = self._spec
        common: dict[str, Json] = {
            "rule": name,
            "tokens": self._tokens,
            "key": self._sizes.key,
            "seed": spec.seed,
            "num_experts": spec.experts.num,
        }
        return canonical_json({**common, **parameters})

    def _em_rule(self) -> dict[str, Json]:
        """All that the routers, and so their scores and assignments, depend on."""
        spec, model = self._spec, self._spec.router_model()
        profile = spec.profile_for(model, batch_size=spec.routers.batch_size, sequence=spec.text.prefix_length)
        return {
            "router_model": to_mapping(model),
            "routers": to_mapping(spec.routers),
            "optimizer": to_mapping(spec.optimizer),
            "profile": to_mapping(profile),
            "bytes_per_token": spec.bytes_per_token,
        }

    def _chunk_rule(self) -> dict[str, Json]:
        experts = self._spec.experts
        return {
            "start": self._sizes.expert_chunk_start(0),
            "chunks": experts.chunks,
            "chunk_sequences": experts.chunk_sequences,
        }


def _schedule(cell: Cell, side: ExpertSpec | DenseSpec, total_steps: int) -> Schedule:
    return cosine(
        learning_rate=cell.learning_rate,
        warmup_fraction=side.warmup_fraction,
        final_fraction=side.final_fraction,
        total_steps=total_steps,
    )
