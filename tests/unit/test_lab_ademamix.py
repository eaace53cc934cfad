"""The AdEMAMix study in worlds whose outcomes are planted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest

from potluck.lab.judging import step_equivalent
from potluck.lab.studies.ademamix import AdEMAMixStudy
from potluck.lab.studies.ademamix_cells import DESIGNS
from potluck.lab.study import Budget, BudgetName, Cell, Found
from tests.unit.lab_world import Ended, claim, digest_of, model_of, play, require_sound

STUDY = AdEMAMixStudy()
STANDARD = STUDY.budget("standard")
QUICK = STUDY.budget("quick")


def nll(body: Mapping[str, Any], gain: float) -> float:
    """Lower with steps, best at one rate, ahead by `gain` with a slow average, less of it in every weaker form."""
    rate, steps, how = body["training"]["learning_rate"], body["training"]["steps"], body["optimizer"]
    level = 4.0 - 0.3 * math.log(steps / 600) + 0.02 * abs(math.log(rate / 1e-2)) + 0.1 * body["seed"]
    noise = 0.001 * (int(digest_of(body)[:2], 16) / 255 - 0.5)
    if how["name"] == "adamw":
        return level + (0.2 if "beta1" in how else 0.0) + noise
    share = 1.0 if how["alpha"] else 0.0
    share *= 1.0 - how.get("from_fraction", 0.0) if how.get("from_fraction") else how.get("until_fraction", 1.0)
    unready = 0.3 if how.get("warmup_fraction") == 0 and "from_fraction" not in how else 0.0
    return level - gain * share + unready + noise * (1 if share else 0)


def world(gain: float, *, forgets: float = 0.05, tiny_test: float = 0.05, fails: str = "") -> Any:
    def of(cell: Cell) -> Ended:
        body = cell.body
        if fails and fails in cell.key:
            return Ended(results={}, state="failed")
        if body["method"] == "contest":
            return _contest(body, forgets)
        names = ("model",) if body["method"] == "single" else ("specialist", "generalist")
        models = {name: model_of(digest_of(cell.key, name), body) for name in names}
        made = {"tokens": digest_of(cell.data, body["seed"]), "models": models}
        if body["method"] == "crisp":
            return Ended(results={"made": made})
        test = nll(body, gain)
        trained = test - 1.0
        if cell.data == "tiny" and body["optimizer"]["name"] == "ademamix":
            test = nll({**body, "optimizer": {"name": "adamw"}}, 0.0) + tiny_test
        level = {"models": {"model": {"nll": test}}}
        lineages = {"the model": [[10, 9.0], [20, trained]]}
        return Ended(results={"headline": {"valid": level, "test": level}, "lineages": lineages, "made": made})

    return of


def _contest(body: Mapping[str, Any], forgets: float) -> Ended:
    seed, levels = body["seed"], {}
    for each in body["models"]:
        rise = (0.5 if "AdamW" in each["name"] else 0.5 - forgets) if "specialist" in each["name"] else 0.0
        levels[each["name"]] = {"nll": 4.0 + rise + 0.001 * seed}
    pairs = {"AdEMAMix - AdamW": {"mean": -0.1, "low": -0.2, "high": -0.05}}
    return Ended(results={}, report={"by_source": {"quotes": {"models": levels}}, "pairs": pairs})


def verdicts(budget: Budget, outcome: Any) -> dict[str, str]:
    return {each.claim: each.verdict for each in STUDY.claims(budget, play(STUDY, budget, outcome))}


def test_where_the_slow_average_helps_as_in_the_paper_its_claims_hold() -> None:
    found = verdicts(STANDARD, world(0.1))
    assert found == {
        **dict.fromkeys(("1", "2", "2b", "3", "4", "5", "6a", "6b", "6c", "7a", "8", "9"), "held"),
        "7b": "not decidable",
    }


def test_where_it_harms_the_claims_of_a_gain_do_not_hold() -> None:
    found = verdicts(STANDARD, world(-0.1, forgets=-0.05, tiny_test=-0.05))
    assert {found[number] for number in ("2", "3", "6a", "6b", "6c", "7a")} == {"not held"}
    assert (found["1"], found["4"]) == ("held", "held")


def test_where_training_and_test_both_gain_the_warning_about_tiny_text_does_not_hold() -> None:
    assert verdicts(STANDARD, world(0.1, tiny_test=-0.05))["9"] == "not held"


def test_one_seed_decides_nothing() -> None:
    judgements = STUDY.claims(QUICK, play(STUDY, QUICK, world(0.1)))
    assert {each.verdict for each in judgements} == {"not decidable"}
    assert claim(judgements, "2").note.startswith("one seed")


def test_what_blows_up_without_warm_up_counts_as_guessing() -> None:
    judgements = STUDY.claims(STANDARD, play(STUDY, STANDARD, world(0.1, fails="warm-up 0 lr=0.01")))
    assert claim(judgements, "5").verdict == "held"


def test_with_a_side_that_never_trains_nothing_is_claimed_of_it() -> None:
    found = verdicts(STANDARD, world(0.1, fails="AdamW lr"))
    assert {found[number] for number in ("1", "2", "2b", "6a", "7a")} == {"not decidable"}


@pytest.mark.parametrize("budget", ["quick", "standard", "full"])
def test_every_cell_is_a_valid_spec_and_no_two_keys_are_one_run(budget: BudgetName) -> None:
    require_sound(STUDY, STUDY.budget(budget), world(0.1))


def test_both_sides_search_the_same_rates_with_all_seeds_and_every_control_searches_its_own() -> None:
    design = DESIGNS["standard"]
    for side in design.searches:
        assert side.values == design.rates
    found = play(STUDY, STANDARD, world(0.1))
    for side in (design.adamw, design.ademamix):
        assert {side.cell(rate, seed).key for rate in design.rates for seed in STANDARD.seeds} <= set(found)


def test_rates_are_chosen_on_valid_text_whatever_the_test_text_says() -> None:
    honest = world(0.1)

    def misled(cell: Cell) -> Ended:
        ended = honest(cell)
        if cell.body["method"] != "single":
            return ended
        better = 1.0 if cell.body["training"]["learning_rate"] == 4e-2 else 0.0
        test = {"models": {"model": {"nll": ended.results["headline"]["test"]["models"]["model"]["nll"] - better}}}
        return Ended(results={**ended.results, "headline": {**ended.results["headline"], "test": test}})

    design = DESIGNS["standard"]
    assert design.adamw.best(play(STUDY, STANDARD, honest)) == design.adamw.best(play(STUDY, STANDARD, misled)) == 1e-2


def test_the_cost_told_beforehand_is_of_as_many_trainings_as_come() -> None:
    wanted = [each.cell for each in play(STUDY, STANDARD, world(0.1)).values() if each.cell.body["method"] != "contest"]
    expected = STUDY.expected(STANDARD)
    assert sorted(cell.body["training"]["steps"] for cell in expected) == sorted(
        cell.body["training"]["steps"] for cell in wanted
    )


def test_the_step_equivalent_is_read_off_the_curve_and_cut_at_its_ends() -> None:
    curve = [(1.0, 4.0), (2.0, 3.8)]
    assert step_equivalent(curve, 3.9) == pytest.approx(math.sqrt(2))
    assert (step_equivalent(curve, 4.1), step_equivalent(curve, 3.0)) == (1.0, 2.0)


def test_searches_and_curves_are_told() -> None:
    found: dict[str, Found] = play(STUDY, STANDARD, world(0.1))
    assert len(STUDY.tables(STANDARD, found)) == len(DESIGNS["standard"].searches)
    assert [plot.title for plot in STUDY.plots(STANDARD, found)] == [
        "Valid NLL by learning rate",
        "Test NLL by steps, each at its best rate",
    ]
    assert STUDY.plots(STANDARD, {})
