"""The SmallTalk study, played against worlds in which the paper is right, wrong, or undecided."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from potluck.lab.cost import core_seconds
from potluck.lab.studies.smalltalk import SmallTalkStudy
from potluck.lab.studies.smalltalk_claims import key_of, variant_key
from potluck.lab.study import Cell, Found, run_file
from potluck.report.study import render_study, study_page, study_report
from potluck.sizing import Rates
from potluck.specs.run import UNKNOWN_DIGEST
from potluck.specs.smalltalk import SmallTalkSpec
from tests.unit.lab_world import Ended, claim, play

STUDY = SmallTalkStudy()
QUICK, STANDARD = STUDY.budget("quick"), STUDY.budget("standard")
CLAIMS = ("1", "2", "3", "4", "5", "6", "control: random split", "control: sorted assignment")
NOT_MEASURED = ("7", "control: no balancing")
DENSE = 4.0
BEST = {"experts": (16, 1.8e-2), "dense": (8, 3.6e-2)}


def world(sign: float = 1.0, *, spread: float = 0.001) -> Callable[[Cell], Ended]:
    """The mixture gains by what the paper says, times `sign`; seeds differ by `spread`."""

    def ends(cell: Cell) -> Ended:
        num, seed = cell.body["experts"]["num"], cell.body["seed"]
        gain = sign * 0.05 * num + spread * (seed % 3 - 1)
        if cell.body.get("partition_by") == "clusters" or "assignment" in cell.body["routers"]:
            gain -= sign * 0.1
        gap = {"mean": -gain}
        prefixes = {
            str(length): {"mixture": {"nll_suffix": DENSE - gain + sign * lost}}
            for length, lost in zip(cell.body["controls"].get("prefixes", ()), (0.02, 0.05, 0.1), strict=False)
        }
        results: dict[str, Any] = {
            "headline": {
                "mixture": {"nll_suffix": DENSE - gain},
                "dense": {"nll_suffix": DENSE},
                "random_split": {"nll_suffix": DENSE + sign * 0.3 + spread * seed},
                "oracle": {"nll_suffix": DENSE - 0.5},
                "mixture_minus_dense": gap,
                "random_minus_dense": {"mean": sign * 0.3 + spread * seed},
                "loads": [10] * num,
            },
            "prefixes": prefixes,
        }
        if "search" in cell.body:
            results["search"] = {side: _table(cell.body["search"], side) for side in BEST}
        report = {"by_expert": [{"mixture_minus_dense": gap}] * num, "flops": {"mixture": 1e12 * num, "dense": 1e12}}
        return Ended(results=results, report=report)

    return ends


def _table(search: Mapping[str, Any], side: str) -> list[dict[str, Any]]:
    name = {"experts": "expert", "dense": "dense"}[side]
    return [
        {"batch_size": batch, "learning_rate": rate, "steps": 10, "valid_nll_suffix": 4 - ((batch, rate) == BEST[side])}
        for batch in search[f"{name}_batch"]
        for rate in search[f"{name}_learning_rate"]
    ]


def spec_of(found: Mapping[str, Found], key: str) -> SmallTalkSpec:
    spec = run_file(found[key].cell).canonical(UNKNOWN_DIGEST)
    assert isinstance(spec, SmallTalkSpec)
    return spec


def test_where_the_paper_is_right_its_claims_hold() -> None:
    claims = STUDY.claims(STANDARD, play(STUDY, STANDARD, world()))
    assert {name: claim(claims, name).verdict for name in CLAIMS} == dict.fromkeys(CLAIMS, "held")
    assert claim(claims, "1").effect == pytest.approx(-0.2)
    assert claim(claims, "2").effect == pytest.approx(-0.1), "the step from two to four is the lesser one"
    assert {claim(claims, name).seeds for name in CLAIMS} == {3}


def test_where_it_is_wrong_they_do_not_and_where_seeds_disagree_nothing_is_said() -> None:
    wrong = STUDY.claims(STANDARD, play(STUDY, STANDARD, world(-1.0)))
    told = {name: claim(wrong, name).verdict for name in CLAIMS if name != "3"}
    assert set(told.values()) == {"not held"}
    unclear = STUDY.claims(STANDARD, play(STUDY, STANDARD, world(0.1, spread=0.5)))
    assert claim(unclear, "1").verdict == claim(unclear, "6").verdict == "not decidable"


def test_a_quick_study_makes_no_claim_at_all() -> None:
    claims = STUDY.claims(QUICK, play(STUDY, QUICK, world()))
    assert {one.verdict for one in claims} == {"not decidable"}
    assert all("makes no claim" in claim(claims, name).note for name in CLAIMS)


@pytest.mark.parametrize("name", NOT_MEASURED)
def test_what_the_product_cannot_measure_is_said_to_be_missing(name: str) -> None:
    told = claim(STUDY.claims(STANDARD, play(STUDY, STANDARD, world())), name)
    assert (told.verdict, told.effect) == ("not decidable", None)
    assert "the product has no" in told.note


def test_both_sides_search_the_same_rates_and_every_seed_takes_what_its_side_found() -> None:
    found = play(STUDY, STANDARD, world())
    main = spec_of(found, key_of(4, 0)).search
    assert main.expert_batch == main.dense_batch
    assert main.expert_learning_rate == main.dense_learning_rate
    other = spec_of(found, key_of(8, 2))
    assert (other.experts.batch_size, other.experts.learning_rate) == BEST["experts"]
    assert (other.dense.batch_size, other.dense.learning_rate) == BEST["dense"]
    assert other.search.mode == "none"
    clusters = spec_of(found, variant_key("clusters", 0))
    assert clusters.search.expert_learning_rate == main.expert_learning_rate, "a control that may win"
    table = next(one for one in STUDY.tables(STANDARD, found) if one.title == f"Search: {key_of(4, 0)}")
    chosen = [row for row in table.rows if row[-1]]
    assert [row[-1] for row in chosen] == ["chosen, batch at an edge", "chosen, rate at an edge, batch at an edge"]


def test_tokens_an_expert_are_equal_whatever_the_number_of_experts() -> None:
    found = play(STUDY, STANDARD, world())
    rows = {num: spec_of(found, key_of(num, 1)).experts for num in (2, 4, 8)}
    assert len({each.chunks * each.chunk_sequences // each.num for each in rows.values()}) == 1


def test_a_cell_that_failed_leaves_its_claims_undecided_and_the_others_as_they_are() -> None:
    right = world()
    lost = variant_key("clusters", 1)

    def ends(cell: Cell) -> Ended:
        return Ended(results={}, state="failed") if cell.key == lost else right(cell)

    claims = STUDY.claims(STANDARD, play(STUDY, STANDARD, ends))
    assert claim(claims, "5").verdict == "not decidable"
    assert claim(claims, "1").verdict == "held"


def test_what_is_expected_is_what_is_wanted_in_the_end() -> None:
    for budget in (QUICK, STANDARD):
        found = play(STUDY, budget, world())
        assert {cell.key for cell in STUDY.expected(budget)} == set(found)


def test_a_budget_is_told_in_core_seconds_that_follow_from_the_rates() -> None:
    slow = Rates(expert_flops_per_second=1e9, router_tokens_per_second=1e4, score_tokens_per_second=1e5)
    told = {
        (budget.name, rates): core_seconds(
            [run_file(cell).canonical(UNKNOWN_DIGEST) for cell in STUDY.expected(budget)], rates, held_out_tokens=10_000
        )
        for budget in (QUICK, STANDARD)
        for rates in (slow, slow.scaled(10))
    }
    assert told["quick", slow] < told["standard", slow]
    assert told["standard", slow.scaled(10)] < told["standard", slow] / 5


def test_the_page_has_the_verdicts_first_and_fetches_nothing() -> None:
    found = play(STUDY, STANDARD, world())
    cost = {"expected_core_s": 10.0, "core_s": 20.0, "wall_s": 30.0, "calls": 1}
    report = study_report(STUDY, STANDARD, found, machine={"cores": 2}, cost=cost, repeat="potluck reproduce")
    page, text = study_page(report), render_study(report)
    assert page.index("Verdicts") < page.index("Claim 1") < page.index("Search: E=4 seed=0") < page.index("Cells")
    assert all(word not in page for word in ("http", "<script", "<link", "src="))
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "✓ held" in page
