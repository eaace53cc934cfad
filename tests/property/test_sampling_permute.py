"""The keyed permutation: the order in which rows are read."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampling.permute import permute
from sampling.rows import stream_rows

KEYS = st.integers(min_value=-(2**70), max_value=2**70)


@given(size=st.integers(min_value=1, max_value=3000), key=KEYS)
def test_every_key_gives_a_bijection_of_every_size(size: int, key: int) -> None:
    assert np.array_equal(np.sort(permute(np.arange(size), size, key)), np.arange(size))


@given(size=st.integers(min_value=1, max_value=2**40), key=KEYS, data=st.data())
def test_an_index_goes_where_it_goes_whatever_it_is_asked_with(size: int, key: int, data: st.DataObject) -> None:
    index = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=8)), dtype=np.int64)
    together = permute(index, size, key)
    alone = [int(permute(np.array([i]), size, key)[0]) for i in index]
    assert together.tolist() == alone
    assert ((together >= 0) & (together < size)).all()


@given(size=st.integers(min_value=200, max_value=5000), key=st.integers(0, 2**63))
def test_neighbouring_keys_give_unrelated_orders(size: int, key: int) -> None:
    first, second = (permute(np.arange(size), size, k) for k in (key, key + 1))
    # Two unrelated orders agree in one place on average (Poisson): 20 has probability 1e-19.
    assert int((first == second).sum()) < 20


def test_positions_are_spread_evenly_over_the_rows() -> None:
    size, buckets = 100_003, 10
    starts = permute(np.arange(size // buckets), size, 7)
    counts = np.bincount(starts * buckets // size, minlength=buckets)
    expected = len(starts) / buckets
    assert float(((counts - expected) ** 2 / expected).sum()) < 40  # chi-squared, 9 degrees of freedom


@pytest.mark.parametrize(("index", "size"), [(-1, 5), (5, 5), (0, 0)])
def test_what_is_outside_the_range_is_refused(index: int, size: int) -> None:
    with pytest.raises(ValueError):
        permute(np.array([index]), size, 0)


@given(size=st.integers(1, 200), key=st.integers(0, 2**40), start=st.integers(0, 500), count=st.integers(0, 500))
def test_a_chunk_of_the_stream_is_the_same_however_it_is_cut(size: int, key: int, start: int, count: int) -> None:
    whole = stream_rows(size, key, start, count)
    half = count // 2
    parts = [stream_rows(size, key, start, half), stream_rows(size, key, start + half, count - half)]
    assert np.array_equal(whole, np.concatenate(parts))
    naive = [int(permute(np.array([p % size]), size, key + p // size)[0]) for p in range(start, start + count)]
    assert whole.tolist() == naive


def test_each_pass_over_the_rows_reads_each_row_once_and_in_an_order_of_its_own() -> None:
    size = 1000
    passes = stream_rows(size, 3, 0, 2 * size).reshape(2, size)
    for each in passes:
        assert np.array_equal(np.sort(each), np.arange(size))
    assert not np.array_equal(passes[0], passes[1])
