"""What a study will take, from measured rates: core-seconds, before anything is trained."""

from __future__ import annotations

from collections.abc import Iterable

from potluck.lm.flops import forward_flops, train_flops
from potluck.sizing import Rates, cost_of
from potluck.specs.contest import ContestSpec
from potluck.specs.crisp import CrispSpec
from potluck.specs.run import RunSpec
from potluck.specs.single import SingleSpec
from potluck.specs.smalltalk import SmallTalkSpec
from potluck.specs.soup import SoupSpec

EACH_RUN_S = 4.0
"""Of a run's tasks: leases, fetches, the bootstrap of its tables."""
FIRST_S = 25.0
"""Daemons started, text read, tokenizer fitted, rows made."""
EM_ROUND_S = 1.5


def core_seconds(specs: Iterable[RunSpec], rates: Rates, *, held_out_tokens: int) -> float:
    """Of all runs together, each thread at the rate it was measured at.

    Args:
        held_out_tokens: of one held-out split.
    """
    return FIRST_S + sum(_of_run(spec, rates, held_out_tokens) for spec in specs)


def _of_run(spec: RunSpec, rates: Rates, held_out_tokens: int) -> float:
    speed = rates.expert_flops_per_second
    match spec:
        case SmallTalkSpec():
            return EACH_RUN_S + _of_mixture(spec, rates, held_out_tokens)
        case SingleSpec() | CrispSpec() | SoupSpec():
            length, how = spec.text.sequence_length, spec.training
            flops = how.steps * how.batch_size * train_flops(spec.full_model(), length)
            models = 1.0
            if isinstance(spec, CrispSpec):
                rows = spec.finetune.steps * spec.finetune.batch_size
                models = 2 * (1 + rows / (how.steps * how.batch_size))
            if isinstance(spec, SoupSpec):
                share = spec.cost().flops / (how.batch_size * train_flops(spec.full_model(), length))
                models = (1 + share) * (1 + spec.controls.constant) + spec.controls.generic
            evaluation = 2 * held_out_tokens / length * forward_flops(spec.full_model(), length)
            return EACH_RUN_S + models * (flops + evaluation) / speed
        case ContestSpec():
            length = spec.text.sequence_length
            flops = sum(forward_flops(each.model, length) for each in spec.models)
            return EACH_RUN_S + held_out_tokens / length * flops / speed
        case _:
            return EACH_RUN_S


def _of_mixture(spec: SmallTalkSpec, rates: Rates, held_out_tokens: int) -> float:
    """Every cell of a grid is trained in full; routers and their scores are shared by all."""
    cost, num = cost_of(spec), spec.experts.num
    length, prefix = spec.text.sequence_length, spec.text.prefix_length
    grid = spec.search if spec.search.mode == "grid" else None
    sides = {
        "experts": len(grid.expert_batch) * len(grid.expert_learning_rate) if grid else 1,
        "dense": len(grid.dense_batch) * len(grid.dense_learning_rate) if grid else 1,
    }
    flops = sides["experts"] * cost.expert_flops + sides["dense"] * cost.dense_flops + cost.random_split_flops
    rows = held_out_tokens / length
    controls = {"none": 0, "one": 1, "all": num}[spec.controls.random_split]
    models = 2 * (sides["experts"] * num + sides["dense"]) + controls
    flops += models * rows * forward_flops(spec.expert_model(), length)
    if not spec.has_routers:
        return flops / rates.expert_flops_per_second
    scored = (spec.routers.rounds - 1) * spec.routers.chunk_sequences
    scored += spec.experts.chunks * spec.experts.chunk_sequences + int(2 * rows)
    routing = cost.router_tokens / rates.router_tokens_per_second
    routing += scored * num * prefix / rates.score_tokens_per_second
    return EM_ROUND_S * spec.routers.rounds + routing + flops / rates.expert_flops_per_second
