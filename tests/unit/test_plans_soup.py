"""The plan of a soup: what it trains, publishes and compares, as one lineage and spread over parts."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import Any

import pytest

from coordinator.core.values import Finished, LineageWanted, TaskWanted
from potluck.errors import SpecError
from potluck.lm.flops import train_flops
from potluck.lm.soup_spread import Spread
from potluck.recipe import AdEMAMixConfig, Mixtures, Profile, Recipe, Segment
from potluck.specs.partition import PartitionSpec
from potluck.specs.run import spec_from_json
from potluck.specs.single import TrainingSpec
from potluck.specs.soup import MAX_ROUNDS, BankSpec, SoupControls
from tests.unit.soup_fold import SoupFold, soup

ALONE = SoupControls(generic=False, constant=False)
SINGLE = Spread(parts=2)
LOCAL = Spread(parts=2, local_steps=16, outer_momentum=0.9)


def named(fold: SoupFold) -> dict[str, LineageWanted]:
    return {one.label: one for one in fold.seen_lineages.values()}


def tasks(fold: SoupFold, what: str) -> list[TaskWanted]:
    return [task for task in fold.seen_tasks.values() if json.loads(task.params_json).get("what") == what]


def rounds(fold: SoupFold) -> list[TaskWanted]:
    return [task for task in fold.seen_tasks.values() if task.kind in ("train", "outer_step")]


def finished(fold: SoupFold, seed: int | None = 0) -> Finished:
    outcome = fold.run(seed).outcome
    assert isinstance(outcome, Finished)
    return outcome


# --- one lineage -----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, None])
@pytest.mark.parametrize("partition", [PartitionSpec(by="source"), PartitionSpec(by="clusters", k=4)])
def test_soup_and_controls_train_equally_long_on_mixtures_or_on_the_corpus(
    seed: int | None, partition: PartitionSpec
) -> None:
    fold = SoupFold(soup(partition=partition))
    finished(fold, seed)
    models = named(fold)
    assert set(models) == {"soup", "generic", "constant"}
    assert {model.total_steps for model in models.values()} == {40}
    kinds = {label: [Segment.from_json(text) for text in model.segments_json] for label, model in models.items()}
    assert all([(s.start_step, s.end_step) for s in segments] == [(0, 40)] for segments in kinds.values())
    assert kinds["soup"][0].data == kinds["constant"][0].data
    data = kinds["soup"][0].data
    assert isinstance(data, Mixtures)
    assert (data.start, data.batch_size, data.per_step, data.support) == (0, 8, 4, 4)
    assert kinds["generic"][0].data.kind == "clustered"
    recipes = {label: Recipe.from_json(model.recipe_json) for label, model in models.items()}
    assert recipes["generic"].soup is None
    coefficients = {label: recipe.soup.coefficients for label, recipe in recipes.items() if recipe.soup is not None}
    assert coefficients == {"soup": "mlp", "constant": "constant"}
    assert len({recipe.init_seed for recipe in recipes.values()}) == 1
    assert not rounds(fold)


@pytest.mark.parametrize(
    ("controls", "labels"),
    [(ALONE, set()), (replace(ALONE, generic=True), {"generic"}), (replace(ALONE, constant=True), {"constant"})],
)
@pytest.mark.parametrize("spread", [Spread(), SINGLE])
def test_controls_are_trained_and_compared_only_where_they_are_wanted(
    controls: SoupControls, labels: set[str], spread: Spread
) -> None:
    fold = SoupFold(soup(controls=controls, spread=spread))
    finished(fold)
    assert set(named(fold)) == labels | ({"soup"} if spread.parts == 1 else set())
    (contest,) = tasks(fold, "contest")
    assert set(json.loads(contest.params_json)["models"]) == {"soup for a", "soup for b", "soup", *labels}


def test_stages_follow_each_other() -> None:
    fold = SoupFold(soup())
    stages: dict[str, None] = {}
    for _ in range(1000):
        wanted = fold.advance()
        stages[wanted.stage] = None
        work = fold.open_work(wanted)
        if not work:
            break
        fold.do(work[0])
    assert list(stages) == [
        "fitting the tokenizer",
        "tokenising",
        "assigning rows to their sources",
        "collecting the labels",
        "training",
        "evaluating",
        "done",
    ]


@pytest.mark.parametrize("spread", [Spread(), SINGLE, LOCAL])
def test_the_soup_is_published_beside_the_plain_model_that_was_made_of_it(spread: Spread) -> None:
    fold = SoupFold(soup(spread=spread))
    wanted = fold.run()
    published = {one.slot: one for one in wanted.publish}
    assert set(published) == {"soup", "bank"}
    assert {one.step for one in wanted.publish} == {40}
    assert len({one.lineage for one in wanted.publish}) == 1
    bank = json.loads(published["bank"].model_json)
    assert bank["soup"]["experts"] == 8
    assert json.loads(published["soup"].model_json) == bank["model"]
    last = next(
        task for task in tasks(fold, "instantiate") if fold.done[task.id].blobs["weights"] == published["soup"].weights
    )
    assert dict(last.inputs)["weights"] == published["bank"].weights
    view = json.loads(wanted.serving_json)
    assert (view["default_slot"], view["route_by"], view["soup"]["slot"]) == ("soup", "one", "bank")
    assert view["soup"]["config"] == bank["soup"]
    probes = {task.label for task in tasks(fold, "probe")}
    steps = [10, 20, 30, 40] if spread != LOCAL else [16, 32, 40]
    assert probes == {f"probe soup at step {step}" for step in steps}


@pytest.mark.parametrize("spread", [Spread(), SINGLE, LOCAL])
def test_each_sources_model_is_tested_on_all_text_and_compared_with_the_others(spread: Spread) -> None:
    fold = SoupFold(soup(spread=spread))
    figures = finished(fold).figures
    (contest,) = tasks(fold, "contest")
    params = json.loads(contest.params_json)
    assert params["models"] == ["soup for a", "soup for b", "soup", "generic", "constant"]
    pairs = {tuple(pair) for pair in params["pairs"]}
    assert {("soup for a", "soup for b"), ("soup for a", "generic"), ("soup", "constant")} <= pairs
    assert set(params["facts"]["soup"]["mixtures"]) == {"a", "b"}
    assert params["facts"]["targets"]["windows"] == [9, 9]
    final = figures["soup"]
    assert isinstance(final, dict)
    made = {dict(task.inputs)["mixture"]: dict(task.inputs)["weights"] for task in tasks(fold, "instantiate")}
    assert {made[mixture] for mixture in final["mixtures"].values()} == {final["weights"]}
    curves = figures["lineages"]
    assert isinstance(curves, dict)
    assert set(curves) == {"soup", "generic", "constant"}
    assert curves["soup"][-1] == [40, 3.0]


def test_a_soup_is_charged_for_its_bank_and_its_lease_told_to_need_it() -> None:
    spec = soup()
    fold = SoupFold(spec)
    finished(fold)
    models, cost = named(fold), spec.cost(2)
    plain = 8 * train_flops(spec.full_model(), 16)
    assert models["generic"].flops_per_step == plain
    assert models["soup"].flops_per_step == plain + cost.flops
    assert cost.flops == 6.0 * 4 * 8 * spec.full_model().num_parameters
    assert models["soup"].memory_bytes == cost.memory_bytes
    held = cost.bank_parameters + cost.coefficient_parameters
    assert models["soup"].memory_bytes - models["generic"].memory_bytes > 7 * 4 * held
    assert models["soup"].commit_every >= models["generic"].commit_every


# --- spread ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, None])
@pytest.mark.parametrize(("spread", "each"), [(SINGLE, 5), (replace(SINGLE, parts=4), 9), (LOCAL, 3)])
def test_a_spread_soup_is_rounds_of_tasks_each_done_once(seed: int | None, spread: Spread, each: int) -> None:
    fold = SoupFold(soup(controls=ALONE, spread=spread))
    finished(fold, seed)
    assert not fold.seen_lineages
    number = spread.rounds(40)
    assembled = tasks(fold, "assemble")
    assert len(rounds(fold)) == 1 + number * each + len(assembled)
    assert len(assembled) == min(4, number)
    assert {task.rank for task in rounds(fold)} == {0}
    labels = [task.label for task in rounds(fold)]
    assert len(set(labels)) == len(labels)


def test_a_step_waits_for_the_gradients_of_all_parts_and_the_next_for_all_that_was_stepped() -> None:
    fold = SoupFold(soup(controls=ALONE, spread=SINGLE))
    finished(fold)
    gradients = {task.label: fold.done[task.id].blobs["gradients"] for task in tasks(fold, "gradients")}
    for task in [*tasks(fold, "bank"), *tasks(fold, "common")]:
        number = json.loads(task.params_json)["round"]
        inputs = dict(task.inputs)
        for part in range(2):
            of_round = gradients[f"round {number + 1}: part {part + 1} of 2"]
            assert inputs[f"weights-gradients-{part:03d}"] == of_round
        assert ("weights-optimizer" in inputs) == (number > 0)
    stepped = {json.loads(task.params_json)["round"]: fold.done[task.id].blobs for task in tasks(fold, "common")}
    for task in tasks(fold, "gradients"):
        number = json.loads(task.params_json)["round"]
        if number:
            assert dict(task.inputs)["weights-common"] == stepped[number - 1]["common"]


def test_a_parts_optimizer_stays_with_the_part_and_momentum_with_the_average() -> None:
    fold = SoupFold(soup(controls=ALONE, spread=LOCAL))
    finished(fold)
    made = {(p["round"], p["part"]): fold.done[t.id].blobs for t in tasks(fold, "local_steps") for p in [_params(t)]}
    for task in tasks(fold, "local_steps"):
        number, part, inputs = _params(task)["round"], _params(task)["part"], dict(task.inputs)
        if number:
            assert inputs["weights-optimizer"] == made[number - 1, part]["optimizer"]
            assert [inputs[f"weights-bank-{q:03d}"] for q in range(2)] == [
                made[number - 1, q]["bank"] for q in range(2)
            ]
    averages = sorted(tasks(fold, "average"), key=lambda task: _params(task)["round"])
    for before, after in itertools.pairwise(averages):
        assert dict(after.inputs)["weights-momentum"] == fold.done[before.id].blobs["momentum"]


def _params(task: TaskWanted) -> dict[str, Any]:
    params = json.loads(task.params_json)
    assert isinstance(params, dict)
    return params


def test_the_stage_of_a_spread_soup_names_the_round() -> None:
    fold = SoupFold(soup(controls=ALONE, spread=LOCAL))
    stages: dict[str, None] = {}
    while work := fold.open_work(wanted := fold.advance()):
        stages[wanted.stage] = None
        fold.do(work[0])
    assert list(stages)[-4:] == [*(f"training: round {number} of 3" for number in (1, 2, 3)), "evaluating"]


def test_settled_rounds_are_not_named_again() -> None:
    fold = SoupFold(soup(controls=ALONE, spread=SINGLE))
    while work := fold.open_work(wanted := fold.advance()):
        assert len(wanted.tasks) == len(work)
        fold.do(work[0])


def test_parts_divide_the_optimizers_state_of_the_bank() -> None:
    whole, halves = soup().cost(2), soup(spread=SINGLE).cost(2)
    held = whole.bank_parameters + whole.coefficient_parameters
    assert whole.memory_bytes - halves.memory_bytes == pytest.approx(4 * held * (2 * 2 - 2), abs=2)
    fold = SoupFold(soup(controls=replace(ALONE, constant=True), spread=SINGLE))
    finished(fold)
    assert named(fold)["constant"].memory_bytes == whole.memory_bytes
    assert {task.memory_bytes for task in rounds(fold)} == {halves.memory_bytes}


# --- the spec --------------------------------------------------------------------------------


def test_a_spec_of_one_part_keeps_its_digest_and_parts_are_another_run() -> None:
    assert "spread" not in soup().to_json()
    spread = soup(spread=LOCAL)
    assert spec_from_json(spread.to_json()) == spread
    assert len({soup().id, spread.id, soup(spread=SINGLE).id}) == 3


@pytest.mark.parametrize(
    ("changes", "key", "fix"),
    [
        ({"spread": Spread(parts=3)}, "bank.experts", "a multiple of 3 spread.parts"),
        ({"spread": SINGLE, "bank": BankSpec(mixtures_per_step=1)}, "bank.mixtures_per_step", "a multiple of 2"),
        ({"spread": SINGLE, "bank": BankSpec(rank=4)}, "bank.rank", "0 where spread.parts"),
        ({"spread": SINGLE, "profile": Profile(threads=2)}, "profile.threads", "1, which is what tasks run with"),
        ({"spread": SINGLE, "profile": Profile(device="cuda")}, "profile.device", "cpu, which is what tasks run with"),
        ({"spread": SINGLE, "optimizer": AdEMAMixConfig(slow_dtype="bfloat16")}, "optimizer.slow_dtype", "float32"),
        (
            {"spread": SINGLE, "training": TrainingSpec(steps=2 * MAX_ROUNDS + 1, batch_size=8)},
            "spread.local_steps",
            "3 or more: 4001 steps in at most 2000 rounds, not 4001",
        ),
    ],
)
def test_what_cannot_be_spread_is_refused_with_what_can(changes: dict[str, Any], key: str, fix: str) -> None:
    with pytest.raises(SpecError) as refused:
        soup(**changes)
    assert refused.value.error_id == "spec.bad-value"
    assert key in refused.value.message
    assert fix in str(refused.value.fix)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"parts": 0}, "parts"),
        ({"parts": 65}, "parts"),
        ({"local_steps": 4}, "local_steps"),
        ({"parts": 2, "outer_momentum": 0.9}, "outer_rate"),
        ({"parts": 2, "local_steps": 2, "outer_momentum": 1.0}, "outer_momentum"),
        ({"parts": 2, "local_steps": 2, "outer_rate": 0.0}, "outer_rate"),
    ],
)
def test_a_division_without_sense_is_refused(values: dict[str, Any], name: str) -> None:
    with pytest.raises(SpecError, match=f"spread.{name}"):
        Spread(**values)
