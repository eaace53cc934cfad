"""Bootstrap, purity and mutual information."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampling.evaluate import contingency, normalised_mutual_information, paired_bootstrap, purity

TRIALS = 300
PACKS = 60


def planted(rng: np.random.Generator, effect: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of one pack share a deviation, so that rows alone would give too narrow an interval."""
    packs = np.repeat(np.arange(PACKS), rng.integers(1, 6, size=PACKS))
    targets = rng.integers(20, 97, size=len(packs))
    shared = rng.normal(0.0, 0.05, size=PACKS)[packs]
    return (effect + shared + rng.normal(0.0, 0.05, size=len(packs))) * targets, targets, packs


def test_the_interval_covers_a_planted_difference_as_often_as_it_says() -> None:
    covered = 0
    for trial in range(TRIALS):
        difference, targets, packs = planted(np.random.default_rng(trial), -0.03)
        found = paired_bootstrap(difference, targets, packs, samples=300, confidence=0.9, seed=trial)
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= -0.03 <= found.high
    # 0.9 less a little for 60 packs; three standard errors of 300 trials are 0.052.
    assert 0.83 <= covered / TRIALS <= 0.95


def test_resampling_rows_instead_of_packs_would_be_too_sure() -> None:
    difference, targets, packs = planted(np.random.default_rng(0), 0.0)
    by_pack = paired_bootstrap(difference, targets, packs, samples=2000, confidence=0.95, seed=1)
    by_row = paired_bootstrap(difference, targets, np.arange(len(packs)), samples=2000, confidence=0.95, seed=1)
    assert by_pack is not None
    assert by_row is not None
    assert by_pack.mean == pytest.approx(by_row.mean)
    assert (by_pack.high or 0) - (by_pack.low or 0) > 1.2 * ((by_row.high or 0) - (by_row.low or 0))


def test_equal_seeds_give_equal_intervals_and_others_do_not() -> None:
    difference, targets, packs = planted(np.random.default_rng(5), 0.1)
    one, two, three = (
        paired_bootstrap(difference, targets, packs, samples=200, confidence=0.95, seed=s) for s in (1, 1, 2)
    )
    assert one == two
    assert one != three


def test_the_mean_is_the_ratio_of_sums() -> None:
    found = paired_bootstrap(
        np.array([3.0, 1.0]), np.array([1, 7]), np.array([0, 1]), samples=100, confidence=0.9, seed=0
    )
    assert found is not None
    assert found.mean == 0.5


def test_rows_without_targets_weigh_nothing_and_none_at_all_is_no_interval() -> None:
    packs = np.array([0, 0, 1, 2])
    full = paired_bootstrap(
        np.array([1.0, 0.0, 2.0, 0.0]), np.array([2, 0, 2, 0]), packs, samples=100, confidence=0.9, seed=0
    )
    bare = paired_bootstrap(
        np.array([1.0, 2.0]), np.array([2, 2]), np.array([0, 1]), samples=100, confidence=0.9, seed=0
    )
    assert full == bare
    assert paired_bootstrap(np.zeros(2), np.zeros(2, int), packs[:2], samples=9, confidence=0.9, seed=0) is None
    single = paired_bootstrap(np.ones(2), np.ones(2, int), packs[:2], samples=9, confidence=0.9, seed=0)
    assert single is not None
    assert (single.mean, single.low, single.high) == (1.0, None, None)


TABLES = st.integers(1, 5).flatmap(
    lambda e: st.integers(1, 5).flatmap(
        lambda s: st.lists(st.lists(st.integers(0, 30), min_size=s, max_size=s), min_size=e, max_size=e)
    )
)


@given(table=TABLES.filter(lambda t: sum(map(sum, t)) > 0))
def test_purity_and_information_stay_in_their_ranges_and_ignore_the_order_of_experts(table: list[list[int]]) -> None:
    array = np.array(table)
    nmi = normalised_mutual_information(array)
    assert -1e-9 <= nmi <= 1 + 1e-9
    assert 0 < purity(array) <= 1
    assert normalised_mutual_information(array[::-1]) == pytest.approx(nmi, abs=1e-12)
    assert normalised_mutual_information(array.T) == pytest.approx(nmi, abs=1e-12)


def test_a_perfect_division_scores_one_and_an_unrelated_one_nothing() -> None:
    assert purity(np.diag([5, 7, 2])) == 1.0
    assert normalised_mutual_information(np.diag([5, 7, 2])) == pytest.approx(1.0)
    assert normalised_mutual_information(np.full((3, 4), 6)) == pytest.approx(0.0, abs=1e-12)
    assert normalised_mutual_information(np.array([[8]])) == 1.0


def test_a_known_table_gives_the_known_information() -> None:
    table = np.array([[3, 1], [1, 3]])
    mutual = math.log(2) - (0.75 * math.log(4 / 3) + 0.25 * math.log(4))
    assert normalised_mutual_information(table) == pytest.approx(mutual / math.log(2))
    assert purity(table) == 0.75


def test_the_table_counts_each_row_once() -> None:
    table = contingency(np.array([0, 1, 1, 2]), np.array([1, 0, 0, 1]), 3, 2)
    assert table.tolist() == [[0, 1], [2, 0], [0, 1]]
