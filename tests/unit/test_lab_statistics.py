"""Verdicts on differences between seeds."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potluck.lab.statistics import (
    Estimate,
    Verdict,
    every,
    less,
    monotone,
    over_documents,
    over_seeds,
    t_quantile,
    within,
)

# No subnormals: a test that trains leaves this process flushing them to zero, as a worker does.
share = st.floats(-1, 1, allow_nan=False, allow_subnormal=False)
differences = st.lists(share.map(lambda x: round(x, 6)), min_size=1, max_size=8)
margins = st.floats(0.001, 0.5)
OPPOSITE: dict[Verdict, Verdict] = {"held": "not held", "not held": "held", "not decidable": "not decidable"}


@pytest.mark.parametrize(
    ("freedom", "two_sided"),
    # NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2, column 0.975.
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (9, 2.262), (10, 2.228), (30, 2.042), (100, 1.984)],
)
def test_quantiles_are_those_of_the_handbook(freedom: int, two_sided: float) -> None:
    assert t_quantile(0.975, freedom) == pytest.approx(two_sided, abs=5e-4)


@pytest.mark.parametrize(("probability", "expected"), [(0.9, 1.638), (0.95, 2.353), (0.99, 4.541)])
def test_other_confidences_have_quantiles_too(probability: float, expected: float) -> None:
    assert t_quantile(probability, 3) == pytest.approx(expected, abs=5e-4)


def test_three_seeds_give_the_interval_that_the_textbook_does() -> None:
    found = over_seeds([-0.1, -0.2, -0.3])
    half = 4.3026527 * 0.1 / math.sqrt(3)
    assert (found.mean, found.seeds) == (pytest.approx(-0.2), 3)
    assert (found.low, found.high) == (pytest.approx(-0.2 - half), pytest.approx(-0.2 + half))
    assert found.smallest_effect == pytest.approx(half)


@given(differences)
def test_what_holds_of_first_minus_second_does_not_of_second_minus_first(values: list[float]) -> None:
    there, back = over_seeds(values), over_seeds([-value for value in values])
    assert less(back) == OPPOSITE[less(there)]
    assert back.smallest_effect == there.smallest_effect


@given(differences, margins)
def test_being_alike_knows_no_sign(values: list[float], margin: float) -> None:
    assert within(over_seeds(values), margin) == within(over_seeds([-value for value in values]), margin)


@given(st.floats(-1e6, 1e6, allow_subnormal=False), margins)
def test_one_seed_never_decides(value: float, margin: float) -> None:
    one = over_seeds([value])
    of_documents = over_documents({"mean": value, "low": value - 1e-9, "high": value + 1e-9})
    assert of_documents is not None
    for estimate in (one, of_documents):
        assert not estimate.decides
        verdicts = (less(estimate), within(estimate, margin), monotone([estimate]))
        assert verdicts == ("not decidable",) * 3


@given(differences.filter(lambda values: len(values) > 1 and len(set(values)) > 1), st.integers(2, 5))
def test_more_seeds_with_equal_differences_narrow_the_interval(values: list[float], times: int) -> None:
    few, many = over_seeds(values), over_seeds(values * times)
    assert many.mean == pytest.approx(few.mean)
    assert many.smallest_effect < few.smallest_effect


@given(differences.filter(lambda values: len(values) > 1), margins)
def test_a_verdict_never_turns_round_when_the_margin_moves(values: list[float], margin: float) -> None:
    estimate = over_seeds(values)
    if less(estimate) == "held":
        assert less(estimate, margin) == "held"
    if less(estimate, margin) == "not held":
        assert less(estimate) == "not held"


def test_a_difference_that_is_not_finite_decides_nothing() -> None:
    assert less(over_seeds([-1.0, -math.inf, -1.0])) == "not decidable"
    assert over_documents(None) is None
    unbounded = over_documents({"mean": -1.0, "low": None, "high": None})
    assert unbounded is not None
    assert unbounded.smallest_effect == math.inf


def test_no_seed_at_all_is_no_estimate() -> None:
    with pytest.raises(ValueError, match="one seed at least"):
        over_seeds([])


def test_a_chain_of_steps_is_as_good_as_its_worst() -> None:
    down = over_seeds([-0.1, -0.11, -0.09])
    up = over_seeds([0.1, 0.11, 0.09])
    unclear = over_seeds([-0.1, 0.1, 0.0])
    assert monotone([down, down]) == "held"
    assert monotone([down, unclear]) == "not decidable"
    assert monotone([down, unclear, up]) == "not held"
    assert every([]) == "not decidable"


def test_alike_means_the_whole_interval_within_the_margin() -> None:
    def of(low: float, high: float) -> Estimate:
        return Estimate(mean=(low + high) / 2, low=low, high=high, seeds=3)

    assert within(of(-0.01, 0.01), 0.02) == "held"
    assert within(of(-0.03, 0.01), 0.02) == "not decidable"
    assert within(of(0.03, 0.05), 0.02) == "not held"
    assert within(of(-0.05, -0.03), 0.02) == "not held"
