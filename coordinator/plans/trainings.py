"""A lineage before its data is all known, and how a recipe becomes one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from coordinator.core.values import LineageWanted
from potluck.config import to_mapping
from potluck.ids import canonical_json
from potluck.lm.config import ModelConfig
from potluck.lm.flops import train_flops
from potluck.lm.optim.horizon import resolve_optimizer
from potluck.lm.soup_config import SoupConfig
from potluck.lm.soup_memory import SoupCost
from potluck.recipe import Origin, Recipe, Schedule, Segment, commit_interval
from potluck.specs.sections import CommonSpec

FIRST_RANK = 0
"""What a run is about."""
CONTROL_RANK = 1


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
        return self.recipe.num_steps

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


@dataclass(frozen=True, kw_only=True)
class Bank:
    """What a soup has beside its model."""

    config: SoupConfig
    cost: SoupCost


def make_training(
    spec: CommonSpec,
    *,
    role: Literal["router", "expert", "dense", "random_split", "soup"],
    index: int,
    model: ModelConfig,
    schedule: Schedule,
    batch_size: int,
    inputs: int,
    columns: int,
    init_seed: int,
    rule: str,
    label: str,
    rank: int,
    origin: Origin | None = None,
    bank: Bank | None = None,
) -> Training:
    """The lineage of a model under the run's optimizer and profile.

    Args:
        inputs: tokens of a row that are charged, S of a full row and M of a prefix.
        columns: tokens of a row that are read; all but the first are targets.
        bank: makes it a soup.
    """
    profile = spec.profile_for(model, batch_size=batch_size, sequence=inputs)
    held = bank.cost.bank_parameters + bank.cost.coefficient_parameters if bank is not None else 0
    recipe = Recipe(
        role=role,
        index=index,
        model=model,
        optimizer=resolve_optimizer(spec.optimizer, schedule.total_steps, of=label),
        schedule=schedule,
        batch_size=batch_size,
        columns=columns,
        init_seed=init_seed,
        data_rule=rule,
        commit_every=commit_interval(
            num_parameters=model.num_parameters + held,
            batch_size=batch_size,
            targets_per_row=columns - 1,
            total_steps=schedule.total_steps,
            bytes_per_token=spec.bytes_per_token,
        ),
        profile=profile,
        origin=origin,
        soup=bank.config if bank is not None else None,
    )
    flops = batch_size * train_flops(model, inputs)
    memory = spec.memory_for(model, batch_size=batch_size, sequence=inputs) if bank is None else bank.cost.memory_bytes
    return Training(
        recipe=recipe,
        flops_per_step=flops if bank is None else flops + bank.cost.flops,
        memory_bytes=memory,
        label=label,
        rank=rank,
        profile_json=canonical_json(to_mapping(profile)),
    )


def warm_up(fraction: float, total_steps: int) -> int:
    return math.ceil(fraction * total_steps)


def cosine(*, learning_rate: float, warmup_fraction: float, final_fraction: float, total_steps: int) -> Schedule:
    return Schedule(
        kind="cosine",
        learning_rate=learning_rate,
        warmup_steps=warm_up(warmup_fraction, total_steps),
        total_steps=total_steps,
        final_fraction=final_fraction,
    )
