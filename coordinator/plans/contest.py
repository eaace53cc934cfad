"""Models of other runs on the same held-out rows, as a plan: NLL of each, which is what their own runs asked, and one
table with paired differences."""

from __future__ import annotations

from coordinator.core.values import Finished
from coordinator.plans.base import Results, Wanted, Wishes
from coordinator.plans.held_out import made_models, want_nll
from coordinator.plans.one_model import want_contest
from potluck.ids import Json
from potluck.specs.contest import ContestSpec


def advance(spec: ContestSpec, results: Results) -> Wanted:
    """All that the run wants now, from scratch."""
    wishes = Wishes(results)
    scored = {
        each.name: want_nll(
            spec,
            wishes,
            each.model,
            each.weights,
            spec.tokens,
            spec.split,
            label=f"{spec.split} NLL of {each.name}",
        )
        for each in spec.models
    }
    table = want_contest(
        spec,
        wishes,
        spec.tokens,
        spec.split,
        scored,
        pairs=[(first, second) for first, second in spec.pairs],
        facts={"method": spec.method, "spec": spec.id, "seed": spec.seed},
        label=f"{spec.split} table",
    )
    if table is None:
        return wishes.wanted("evaluating")
    figures: dict[str, Json] = {
        "headline": {spec.split: dict(table.figures)},
        "lineages": {},
        "made": made_models(spec.tokens, {each.name: (each.weights, each.model) for each in spec.models}),
    }
    return wishes.wanted("done", outcome=Finished(report=table.blobs["report"], figures=figures))
