"""Near duplicates: what counts as a shingle, and which rows hold the target's test text."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampling.near_duplicates import Shingles, contained, shingle_hashes

EOD = 0


def text(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(1, 60_000, size=shape).astype(np.uint16)


def shingles(row: list[int], size: int) -> list[tuple[int, ...]]:
    """Word for word: runs of tokens that hold no end of a document."""
    runs = [tuple(row[i : i + size]) for i in range(len(row) + 1 - size)]
    return [run for run in runs if EOD not in run]


@given(
    rows=st.integers(4, 12).flatmap(
        lambda n: st.lists(st.lists(st.integers(0, 3), min_size=n, max_size=n), min_size=2, max_size=6)
    ),
    size=st.integers(1, 4),
)
def test_containment_is_the_share_of_a_rows_shingles_that_the_others_have(rows: list[list[int]], size: int) -> None:
    test, train = np.array(rows[:1], dtype=np.uint16), np.array(rows[1:], dtype=np.uint16)
    hashes, whole = shingle_hashes(test, size)
    found = contained(train, Shingles.of(hashes[whole]), size)
    known = set(shingles(rows[0], size))
    for share, row in zip(found, rows[1:], strict=True):
        mine = shingles(row, size)
        expected = sum(run in known for run in mine) / len(mine) if mine else 0.0
        assert share == pytest.approx(expected)


def test_hashes_of_different_runs_differ() -> None:
    runs = text(np.random.default_rng(0), 200_000, 13)
    runs[:100_000, 1:] = runs[100_000:, 1:]  # one token apart
    hashes, _ = shingle_hashes(runs, 13)
    assert len(np.unique(hashes)) == len(np.unique(runs, axis=0))


def test_text_that_is_shifted_by_some_tokens_is_still_found() -> None:
    rng = np.random.default_rng(1)
    test = text(rng, 1, 129)
    hashes, whole = shingle_hashes(test, 13)
    known = Shingles.of(hashes[whole])
    shifted = np.concatenate([text(rng, 1, 40), test[:, :89]], axis=1)
    assert contained(shifted, known, 13)[0] == pytest.approx((89 - 12) / 117)
    assert contained(text(rng, 1, 129), known, 13)[0] == 0
    assert contained(shifted, Shingles.of(np.empty(0, dtype=np.uint64)), 13)[0] == 0


@given(
    inside=st.lists(st.integers(0, 2**64 - 1), max_size=30),
    asked=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=30),
)
def test_a_set_of_shingles_has_what_is_in_it_and_nothing_else(inside: list[int], asked: list[int]) -> None:
    shingles = Shingles.of(np.array(inside, dtype=np.uint64))
    every = inside + asked + [each ^ 1 for each in inside]
    assert shingles.has(np.array(every, dtype=np.uint64)).tolist() == [each in set(inside) for each in every]
