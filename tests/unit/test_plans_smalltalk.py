"""The SmallTalk plan, run to its end by an executor that invents results out of hashes."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.core.values import (
    Failed,
    Finished,
)
from coordinator.plans.smalltalk_sizes import Cell, Sizes
from potluck.errors import SpecError
from potluck.ids import Digest, LineageId, TaskId
from potluck.lm.flops import forward_flops, train_flops
from potluck.recipe import Recipe, Segment
from potluck.specs.sections import ModelShape, TextSpec
from potluck.specs.smalltalk import ControlSpec, DenseSpec, ExpertSpec, RouterSpec, SearchSpec, SmallTalkSpec
from tests.unit.plan_fold import Fold


def spec_with(num: int = 2, **changes: Any) -> SmallTalkSpec:
    spec = SmallTalkSpec(
        corpus=Digest("c" * 64),
        seed=3,
        text=TextSpec(vocab_size=300, sequence_length=16, prefix_length=8),
        routers=RouterSpec(
            model=ModelShape(preset="router-24").resolved(""), rounds=3, chunk_sequences=32, batch_size=4
        ),
        experts=ExpertSpec(
            model=ModelShape(preset="0.05M").resolved(""), num=num, chunks=3, chunk_sequences=64, batch_size=4
        ),
        dense=DenseSpec(batch_size=4),
    )
    return replace(spec, **changes)


GRID = SearchSpec(
    mode="grid",
    dense_batch=(4, 8),
    dense_learning_rate=(1e-3,),
    expert_batch=(4, 8),
    expert_learning_rate=(1e-3, 3e-3),
)


def labels(fold: Fold) -> list[str]:
    return [*(one.label for one in fold.seen_lineages.values()), *(task.label for task in fold.seen_tasks.values())]


def facts_of(fold: Fold) -> dict[str, Any]:
    compared = [task for task in fold.seen_tasks.values() if task.label == "compare on test rows"]
    assert len(compared) == 1
    facts: dict[str, Any] = json.loads(compared[0].params_json)["facts"]
    return facts


@pytest.mark.parametrize("num", [2, 4])
def test_a_run_ends_with_a_report_and_every_slot_published(num: int) -> None:
    fold = Fold(spec_with(num))
    wanted = fold.run()
    assert isinstance(wanted.outcome, Finished)
    assert [one.slot for one in wanted.publish] == [*(f"expert-{e}" for e in range(num)), "dense"]
    totals = {one.id: one.total_steps for one in wanted.lineages}
    assert all(one.step == totals[one.lineage] for one in wanted.publish)
    assert json.loads(wanted.serving_json)["routers"] == [
        fold.commits(one.id)[one.total_steps].weights for one in wanted.lineages if one.role == "router"
    ]
    assert set(wanted.outcome.figures) == {"headline", "lineages", "purity", "made"}


def test_every_lineage_is_trained_to_its_total_and_named_for_people() -> None:
    fold = Fold(spec_with(4))
    wanted = fold.run()
    assert [one.label for one in wanted.lineages] == [
        *(f"router {e}" for e in range(4)),
        *(f"expert {e}" for e in range(4)),
        "dense twin",
        "random split 0",
    ]
    for one in wanted.lineages:
        assert one.known_steps == one.total_steps == max(fold.commits(one.id))
        assert Recipe.from_json(one.recipe_json).id == one.id
    assert len(set(labels(fold))) == len(labels(fold))


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.sampled_from(["none", "grid"]))
def test_results_in_any_order_lead_to_the_same_tasks_lineages_and_report(seed: int, mode: str) -> None:
    expected, lineages, outcome = _in_order(mode)
    fold = Fold(spec_with(search=GRID if mode == "grid" else SearchSpec()))
    wanted = fold.run(seed)
    assert set(fold.seen_tasks) == expected
    assert {one.id: one.segments_json for one in wanted.lineages} == lineages
    assert wanted.outcome == outcome


@cache
def _in_order(mode: str) -> tuple[set[TaskId], dict[LineageId, tuple[str, ...]], Any]:
    fold = Fold(spec_with(search=GRID if mode == "grid" else SearchSpec()))
    wanted = fold.run(None)
    return set(fold.seen_tasks), {one.id: one.segments_json for one in wanted.lineages}, wanted.outcome


def test_a_grid_trains_every_cell_of_both_sides_and_tables_the_best_by_validation() -> None:
    fold = Fold(spec_with(search=GRID))
    wanted = fold.run()
    assert isinstance(wanted.outcome, Finished)
    roles = [one.role for one in wanted.lineages]
    assert (roles.count("expert"), roles.count("dense"), roles.count("random_split")) == (8, 2, 1)
    search = facts_of(fold)["search"]
    assert (len(search["experts"]), len(search["dense"])) == (4, 2)
    best = min(search["experts"], key=lambda cell: cell["valid_nll_suffix"])
    experts = facts_of(fold)["experts"]
    assert (experts["batch_size"], experts["learning_rate"]) == (best["batch_size"], best["learning_rate"])
    tested = [task.label for task in fold.seen_tasks.values() if task.label.startswith("test NLL of expert")]
    assert len(tested) == 2


def test_a_grid_of_one_cell_is_tabled_by_validation_too_and_kept_with_the_run() -> None:
    one = replace(GRID, dense_batch=(4,), expert_batch=(4,), expert_learning_rate=(1e-3,))
    wanted = Fold(spec_with(search=one)).run()
    assert isinstance(wanted.outcome, Finished)
    search: Any = wanted.outcome.figures["search"]
    assert [len(search[side]) for side in ("experts", "dense")] == [1, 1]
    assert 0 <= search["experts"][0]["valid_nll_suffix"] <= 1


def test_routers_score_each_fresh_chunk_with_the_weights_of_the_round_before() -> None:
    fold = Fold(spec_with())
    fold.run()
    sizes = Sizes(spec=fold.spec)
    routers = [one for one in fold.seen_lineages.values() if one.role == "router"]
    for round_index in (1, 2):
        for index, router in enumerate(routers):
            label = f"score round {round_index} with router {index}"
            task = next(task for task in fold.seen_tasks.values() if task.label == label)
            step = round_index * sizes.router_steps_per_round
            assert dict(task.inputs)["weights"] == fold.commits(router.id)[step].weights
            assert json.loads(task.params_json)["start"] == round_index * 32
    segments = [Segment.from_json(text) for text in routers[1].segments_json]
    assert [segment.data.kind for segment in segments] == ["random_share", "assigned", "assigned"]


def test_no_two_stages_train_on_the_same_positions_except_the_opponents() -> None:
    sizes = Sizes(spec=spec_with())
    assert [sizes.router_chunk_start(r) for r in range(3)] == [0, 32, 64]
    assert [sizes.expert_chunk_start(c) for c in range(3)] == [96, 160, 224]


def test_the_dense_twin_is_wanted_in_full_as_soon_as_there_are_tokens() -> None:
    fold = Fold(spec_with())
    while not (wanted := fold.advance()).lineages:
        fold.do(fold.open_work(wanted)[0])
    known = {one.label: one.known_steps == one.total_steps for one in wanted.lineages}
    assert known == {
        "router 0": False,
        "router 1": False,
        "expert 0": False,
        "expert 1": False,
        "dense twin": True,
        "random split 0": True,
    }


def test_the_dense_twin_spends_what_routers_scoring_and_experts_cost() -> None:
    spec = spec_with()
    router, expert = spec.router_model(), spec.expert_model()
    total = 3 * 32 * train_flops(router, 8) + 2 * 32 * 2 * forward_flops(router, 8)
    total += 192 * train_flops(expert, 16) + 192 * 2 * forward_flops(router, 8)
    sizes = Sizes(spec=spec)
    assert sizes.mixture_flops["total"] == pytest.approx(total)
    cell = Cell(batch_size=4, learning_rate=1e-3)
    spent = sizes.dense_steps(cell) * 4 * train_flops(expert, 16)
    assert total - 4 * train_flops(expert, 16) < spent <= total


def test_the_random_split_shares_its_init_with_the_experts_and_nothing_else_does() -> None:
    fold = Fold(spec_with(controls=ControlSpec(random_split="all")))
    fold.run()
    recipes = [Recipe.from_json(one.recipe_json) for one in fold.seen_lineages.values()]
    seeds = {(recipe.role, recipe.index): recipe.init_seed for recipe in recipes}
    assert seeds["random_split", 1] == seeds["expert", 1] != seeds["expert", 0]
    assert len(set(seeds.values())) == 5


def test_shorter_prefixes_route_the_same_test_rows_and_compare_the_same_targets() -> None:
    plain, fold = Fold(spec_with()), Fold(spec_with(controls=ControlSpec(prefixes=(4, 2))))
    plain.run()
    wanted = fold.run()
    assert isinstance(wanted.outcome, Finished)
    figures: Any = wanted.outcome.figures
    assert set(figures["prefixes"]) == {"4", "2"}
    assert set(fold.seen_lineages) == set(plain.seen_lineages)
    new = [json.loads(task.params_json) | {"kind": task.kind} for key, task in fold.seen_tasks.items()]
    new = [params for key, params in zip(fold.seen_tasks, new, strict=True) if key not in plain.seen_tasks]
    scores = [params for params in new if params["kind"] == "score"]
    assert sorted(params["prefix_length"] for params in scores) == [2, 2, 4, 4]
    assert {(params["split"], params["start"], params["count"]) for params in scores} == {("test", 0, 70)}
    compares = [params for params in new if params.get("what") == "compare" and not params["facts"]]
    assert [params["prefix_length"] for params in compares] == [8, 8]


def test_assignment_in_stream_order_is_another_rule_and_makes_other_routers_and_experts() -> None:
    plain, fold = Fold(spec_with()), Fold(spec_with(routers=replace(spec_with().routers, assignment="stream")))
    plain.run()
    fold.run()
    rules = {json.loads(task.params_json)["rule"] for task in fold.seen_tasks.values() if task.kind == "assign"}
    assert rules == {"stream_greedy"}
    shared = {fold.seen_lineages[key].label for key in set(fold.seen_lineages) & set(plain.seen_lineages)}
    assert shared == {"dense twin", "random split 0"}


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"controls": ControlSpec(prefixes=(8,))}, "controls.prefixes"),
        ({"controls": ControlSpec(prefixes=(1,))}, "controls.prefixes"),
        ({"controls": ControlSpec(prefixes=(4,)), "partition_by": "source"}, "controls.prefixes"),
        ({"routers": RouterSpec(chunk_sequences=64, assignment="stream"), "partition_by": "source"}, "assignment"),
    ],
)
def test_controls_of_routing_need_routers_and_a_shorter_prefix(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(SpecError, match=key):
        spec_with(**changes)


def test_a_run_without_opponents_still_ends() -> None:
    spec = spec_with(dense=DenseSpec(enabled=False), controls=ControlSpec(random_split="none"))
    fold = Fold(spec)
    wanted = fold.run()
    assert isinstance(wanted.outcome, Finished)
    assert facts_of(fold)["dense"] is None
    assert {one.role for one in wanted.lineages} == {"router", "expert"}


@pytest.mark.parametrize(("split", "rows"), [("train_rows", 0), ("valid_rows", 0), ("test_rows", 19)])
def test_too_little_text_fails_the_run_with_the_numbers(split: str, rows: int) -> None:
    wanted = Fold(spec_with(), **{split: rows}).run()
    assert isinstance(wanted.outcome, Failed)
    assert wanted.outcome.error_id == "corpus.too-small"
    assert f"has {rows} rows" in wanted.outcome.message


def test_text_for_less_than_an_epoch_is_allowed_and_reported() -> None:
    fold = Fold(spec_with(), train_rows=64)
    assert isinstance(fold.run().outcome, Finished)
    assert facts_of(fold)["epochs"]["experts"] == 3.0


def test_a_checkpoint_that_fails_its_probe_is_not_published_and_the_one_before_stays() -> None:
    fold = Fold(spec_with())
    fold.run()
    probes = [task for task in fold.seen_tasks.values() if task.label.startswith("probe expert 0")]
    assert len(probes) == 4
    last = fold.done[probes[-1].id]
    fold.done[probes[-1].id] = replace(last, figures={**last.figures, "mean_nll": 2.06})
    second_last = int(probes[-2].label.split()[-1])
    wanted = fold.advance()
    assert wanted.publish[0].step == second_last
    end, most = int(probes[-1].label.split()[-1]), fold.done[probes[-2].id].figures["mean_nll"] + 0.05
    told = f"expert-0 at step {end} (probe 2.06, at most {most:.2f}; serves step {second_last})"
    assert wanted.stage == f"done; not published: {told}"
    for probe in probes:
        fold.done[probe.id] = replace(last, figures={"mean_nll": None, "finite": False, "log_vocab": 5.7})
    wanted = fold.advance()
    assert [one.slot for one in wanted.publish] == ["expert-1", "dense"]
    assert wanted.stage == "done; not published: expert-0 (probe not finite, ln V 5.70)"
    fold.done[probes[-1].id] = replace(last, figures={"mean_nll": 7.012, "finite": True, "log_vocab": 5.7})
    assert fold.advance().stage == "done; not published: expert-0 (probe 7.01, ln V 5.70)"
    assert isinstance(wanted.outcome, Finished)


def test_the_next_chunk_becomes_urgent_when_an_expert_begins_the_last_it_has() -> None:
    fold = Fold(spec_with())
    wanted = fold.advance()
    while not any(one.role == "expert" and one.known_steps for one in wanted.lineages):
        work = [one for one in fold.open_work(wanted) if one.label.split()[0] not in ("dense", "random", "purity")]
        fold.do(work[0])
        wanted = fold.advance()
    ranks = {task.label: task.rank for task in wanted.tasks}
    assert (ranks["score chunk 1 with router 0"], ranks["score chunk 2 with router 0"]) == (1, 1)
    expert = next(one for one in wanted.lineages if one.label == "expert 0")
    fold.do(expert)
    ranks = {task.label: task.rank for task in fold.advance().tasks}
    assert (ranks["score chunk 1 with router 0"], ranks["score chunk 2 with router 0"]) == (0, 1)
