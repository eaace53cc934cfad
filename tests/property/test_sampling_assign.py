"""Balanced assignment against a naive rendition of the same rule."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from potluck.errors import SpecError
from sampling.assign import balanced_assignment


def naive_assignment(columns: np.ndarray, *, in_stream_order: bool = False) -> list[int]:
    """Word for word: visit rows by best score (ties: lower row), best expert with room (ties: lower)."""
    count, experts = columns.shape
    room = [count // experts] * experts
    result = [-1] * count
    for row in range(count) if in_stream_order else sorted(range(count), key=lambda n: (min(columns[n]), n)):
        for expert in sorted(range(experts), key=lambda e: (columns[row][e], e)):
            if room[expert]:
                room[expert] -= 1
                result[row] = expert
                break
    return result


@given(data=st.data(), experts=st.integers(1, 9), share=st.integers(0, 40), top=st.sampled_from([0, 1, 3, 20, 65535]))
def test_it_is_the_greedy_rule_ties_included(data: st.DataObject, experts: int, share: int, top: int) -> None:
    seed = data.draw(st.integers(0, 2**32))
    rng = np.random.default_rng(seed)
    columns = rng.integers(0, top + 1, size=(share * experts, experts)).astype(np.uint16)
    if data.draw(st.booleans()):
        columns[:, 0] //= 2  # one expert wanted by all
    assert balanced_assignment(columns).tolist() == naive_assignment(columns)
    as_they_come = balanced_assignment(columns, visit="stream")
    assert as_they_come.tolist() == naive_assignment(columns, in_stream_order=True)


@given(experts=st.integers(1, 16), share=st.integers(1, 200), seed=st.integers(0, 2**32))
def test_every_expert_gets_exactly_its_share(experts: int, share: int, seed: int) -> None:
    columns = np.random.default_rng(seed).integers(0, 50, size=(share * experts, experts)).astype(np.uint16)
    assert np.bincount(balanced_assignment(columns), minlength=experts).tolist() == [share] * experts


def test_rows_that_do_not_divide_are_refused() -> None:
    with pytest.raises(SpecError) as caught:
        balanced_assignment(np.zeros((5, 2), dtype=np.uint16))
    assert caught.value.error_id == "spec.bad-value"


def test_the_surest_rows_are_served_first() -> None:
    """Stream order would give row 0 to expert 0 (figure 1a of the paper); here row 1 is surer."""
    columns = np.array([[10, 12], [1, 50]], dtype=np.uint16)
    assert balanced_assignment(columns).tolist() == [1, 0]


def test_with_a_thousand_full_experts_it_still_ends() -> None:
    columns = np.zeros((1000, 1000), dtype=np.uint16)
    assert balanced_assignment(columns).tolist() == list(range(1000))
