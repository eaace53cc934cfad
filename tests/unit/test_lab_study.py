"""What a study says of its claims, and of its searches."""

from __future__ import annotations

import math

import pytest

from potluck.ids import RunId
from potluck.lab.statistics import less, over_seeds
from potluck.lab.study import ONE_SEED, Cell, Found, Searched, TextWish, ended, judge, number, tenth_of, undecided

CELLS = (Cell(key="a", body={}), Cell(key="b", body={}))


def found(cell: Cell, **results: object) -> Found:
    return Found(cell=cell, run=RunId("0"), state="finished", reason="", report=None, results=results, seconds=1.0)


def test_one_seed_says_in_words_that_it_makes_no_claim() -> None:
    judgement = judge("1", "less", over_seeds([-5.0]), "held", note="a against b.", tokens=10)
    assert judgement.verdict == "not decidable"
    assert judgement.note == f"{ONE_SEED}. A against b."
    assert (judgement.effect, judgement.low, judgement.smallest_effect) == (-5.0, None, None)


def test_several_seeds_are_told_with_their_interval() -> None:
    estimate = over_seeds([-0.3, -0.2, -0.1])
    judgement = judge("1", "less", estimate, less(estimate), note="a against b", tokens=10)
    assert (judgement.effect, judgement.low, judgement.high) == (estimate.mean, estimate.low, estimate.high)
    assert judgement.smallest_effect == pytest.approx((estimate.high - estimate.low) / 2)
    assert judgement.seeds == 3


def test_what_was_not_measured_is_not_decidable_for_a_reason() -> None:
    judgement = undecided("4", "monotone", note="the product has no such thing")
    assert (judgement.verdict, judgement.seeds, judgement.effect) == ("not decidable", 0, None)


@pytest.mark.parametrize(
    ("scores", "best", "edge"),
    [
        ({1.0: 3.0, 2.0: 2.5, 4.0: 2.7}, 2.0, ""),
        ({1.0: 2.0, 2.0: 2.5, 4.0: 2.7}, 1.0, "the least tried"),
        ({1.0: 3.0, 2.0: 2.5, 4.0: None}, 2.0, ""),
        ({1.0: 2.5, 2.0: 2.5, 4.0: 2.5}, 1.0, "the least tried"),
        ({1.0: None, 2.0: None, 4.0: None}, None, ""),
    ],
)
def test_a_search_takes_the_least_and_tells_an_edge(
    scores: dict[float, float | None], best: float | None, edge: str
) -> None:
    search = Searched(side="dense", values=(1.0, 2.0, 4.0), scores=scores)
    assert (search.best, search.edge) == (best, edge)
    table = search.table("learning rate")
    assert [row[0] for row in table.rows] == [1.0, 2.0, 4.0]
    assert sum("chosen" in str(row[2]) for row in table.rows) == (best is not None)


def test_cells_have_ended_when_all_have() -> None:
    one, two = (found(cell) for cell in CELLS)
    assert ended(CELLS, {"a": one}) is None
    assert ended(CELLS, {"b": two, "a": one}) == [one, two]


def test_a_figure_is_a_finite_number_or_nothing() -> None:
    held = {"a": [{"b": 1}], "c": None, "d": True, "e": math.inf}
    assert number(held, "a", 0, "b") == 1.0
    assert [number(held, *path) for path in (("a", 1, "b"), ("c", "x"), ("d",), ("e",), ("z",))] == [None] * 5
    assert found(CELLS[0], headline={"nll": 2.5}).figure("headline", "nll") == 2.5
    assert found(CELLS[0]).told("anything") is None


def test_pieces_of_a_document_are_in_one_tenth_and_documents_in_all_of_them() -> None:
    assert tenth_of("bible/Genesis#3") == tenth_of("bible/Genesis#17") == tenth_of("bible/Genesis")
    assert {tenth_of(f"document {number}") for number in range(200)} == set(range(10))


def test_a_wish_takes_the_part_that_is_named_for_an_entry_or_for_all_others_or_everything() -> None:
    wish = TextWish(parts={"legal": (0, 3), "": (3, 10)})
    assert (wish.part_of("legal"), wish.part_of("recipes")) == ((0, 3), (3, 10))
    assert TextWish(parts={"legal": (0, 3)}).part_of("recipes") == (0, 10)
