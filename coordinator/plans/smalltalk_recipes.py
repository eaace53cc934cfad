"""The lineages of a SmallTalk run.

Routers differ by their init and their first data. Experts differ by init; expert e of the random split
has the init of expert e of the mixture, so that the two differ by data alone. The dense twin has its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from coordinator.core.values import LineageWanted
from coordinator.plans.smalltalk_sizes import Cell, Sizes, derive
from potluck.config import to_mapping
from potluck.ids import Digest, Json, canonical_json
from potluck.lm.memory import predict_training_bytes
from potluck.recipe import Recipe, Schedule, Segment, commit_interval

FIRST_RANK = 0
"""Routers, experts and the dense twin."""
CONTROL_RANK = 1

FullRowRole = Literal["expert", "random_split", "dense"]
"""Models that read S + 1 tokens of a row."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """A lineage before its data is all known."""

    recipe: Recipe
    flops_per_step: float
    memory_bytes: int
    label: str
    rank: int
    profile_json: str

    @property
    def total_steps(self) -> int:
        return self.recipe.schedule.total_steps

    def wanted(self, segments: tuple[Segment, ...]) -> LineageWanted:
        return LineageWanted(
            id=self.recipe.id,
            recipe_json=self.recipe.to_json(),
            segments_json=tuple(segment.to_json() for segment in segments),
            profile_json=self.profile_json,
            total_steps=self.total_steps,
            known_steps=segments[-1].end_step if segments else 0,
            commit_every=self.recipe.commit_every,
            flops_per_step=self.flops_per_step,
            memory_bytes=self.memory_bytes,
            role=self.recipe.role,
            label=self.label,
            rank=self.rank,
        )


class Recipes:
    """Builds each lineage of a run, once the tokens have a digest."""

    def __init__(self, sizes: Sizes, tokens: Digest) -> None:
        self._sizes = sizes
        self._spec = sizes.spec
        self._tokens = tokens

    def router(self, index: int) -> Training:
        spec, sizes = self._spec, self._sizes
        model, total = spec.router_model(), sizes.router_steps
        prefix, batch = spec.text.prefix_length, spec.routers.batch_size
        schedule = Schedule(
            kind="constant",
            learning_rate=spec.routers.learning_rate,
            warmup_steps=_warmup(spec.routers.warmup_fraction, total),
            total_steps=total,
        )
        recipe = Recipe(
            role="router",
            index=index,
            model=model,
            optimizer=spec.optimizer,
            schedule=schedule,
            batch_size=batch,
            columns=prefix,
            init_seed=derive(spec.seed, "router", index),
            data_rule=self._rule("balanced_em", self._em_rule()),
            commit_every=self._interval(model.num_parameters, batch, prefix - 1, total),
        )
        return self._training(recipe, sizes.router_row_flops, f"router {index}", FIRST_RANK)

    def expert(self, index: int, cell: Cell, suffix: str = "") -> Training:
        rule = self._rule("routed", {**self._em_rule(), **self._chunk_rule()})
        return self._expert_like("expert", index, cell, rule, f"expert {index}{suffix}", FIRST_RANK)

    def random_split(self, index: int, cell: Cell) -> Training:
        rule = self._rule("random_split", self._chunk_rule())
        return self._expert_like("random_split", index, cell, rule, f"random split {index}", CONTROL_RANK)

    def dense(self, cell: Cell, suffix: str = "") -> Training:
        spec, sizes = self._spec, self._sizes
        total = sizes.dense_steps(cell)
        recipe = self._full_row_recipe(
            "dense",
            0,
            cell,
            schedule=self._cosine(cell, spec.dense.warmup_fraction, spec.dense.final_fraction, total),
            init_seed=derive(spec.seed, "dense"),
            rule=self._rule("stream", {"start": sizes.expert_chunk_start(0)}),
        )
        return self._training(recipe, sizes.expert_row_flops, f"dense twin{suffix}", FIRST_RANK)

    def _expert_like(self, role: FullRowRole, index: int, cell: Cell, rule: str, label: str, rank: int) -> Training:
        spec, sizes = self._spec, self._sizes
        total = sizes.expert_steps(cell)
        recipe = self._full_row_recipe(
            role,
            index,
            cell,
            schedule=self._cosine(cell, spec.experts.warmup_fraction, spec.experts.final_fraction, total),
            init_seed=derive(spec.seed, "expert", index),
            rule=rule,
        )
        return self._training(recipe, sizes.expert_row_flops, label, rank)

    def _full_row_recipe(
        self, role: FullRowRole, index: int, cell: Cell, *, schedule: Schedule, init_seed: int, rule: str
    ) -> Recipe:
        spec = self._spec
        model, length = spec.expert_model(), spec.text.sequence_length
        return Recipe(
            role=role,
            index=index,
            model=model,
            optimizer=spec.optimizer,
            schedule=schedule,
            batch_size=cell.batch_size,
            columns=length + 1,
            init_seed=init_seed,
            data_rule=rule,
            commit_every=self._interval(model.num_parameters, cell.batch_size, length, schedule.total_steps),
        )

    def _training(self, recipe: Recipe, row_flops: float, label: str, rank: int) -> Training:
        # A router reads `columns` tokens; the others read S inputs of their S + 1 columns.
        sequence = recipe.columns if recipe.role == "router" else recipe.columns - 1
        return Training(
            recipe=recipe,
            flops_per_step=recipe.batch_size * row_flops,
            memory_bytes=predict_training_bytes(recipe.model, batch_size=recipe.batch_size, sequence=sequence),
            label=label,
            rank=rank,
            profile_json=canonical_json(to_mapping(self._spec.profile)),
        )

    @staticmethod
    def _cosine(cell: Cell, warmup_fraction: float, final_fraction: float, total: int) -> Schedule:
        return Schedule(
            kind="cosine",
            learning_rate=cell.learning_rate,
            warmup_steps=_warmup(warmup_fraction, total),
            total_steps=total,
            final_fraction=final_fraction,
        )

    def _interval(self, num_parameters: int, batch_size: int, targets_per_row: int, total_steps: int) -> int:
        return commit_interval(
            num_parameters=num_parameters,
            batch_size=batch_size,
            targets_per_row=targets_per_row,
            total_steps=total_steps,
            bytes_per_token=self._spec.bytes_per_token,
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
        spec = self._spec
        return {
            "router_model": to_mapping(spec.router_model()),
            "routers": to_mapping(spec.routers),
            "optimizer": to_mapping(spec.optimizer),
            "profile": to_mapping(spec.profile),
            "bytes_per_token": spec.bytes_per_token,
        }

    def _chunk_rule(self) -> dict[str, Json]:
        experts = self._spec.experts
        return {
            "start": self._sizes.expert_chunk_start(0),
            "chunks": experts.chunks,
            "chunk_sequences": experts.chunk_sequences,
        }


def _warmup(fraction: float, total: int) -> int:
    return math.ceil(fraction * total)
