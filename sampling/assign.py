"""Balanced assignment of rows to experts: SmallTalk's greedy rule (arXiv 2410.03529, algorithm 1).

Rows are visited from the best best-score up; each goes to its best-scoring expert that still has
room. Ties go to the lower expert, then the lower row.
"""

from __future__ import annotations

import numpy as np

from potluck.errors import SpecError


def balanced_assignment(columns: np.ndarray) -> np.ndarray:
    """Assigns every row to an expert, each expert getting exactly count / E rows.

    Runs in E phases, one for each expert that fills up: within a phase the set of open experts is
    fixed, so a whole stretch of rows takes its first choice at once.

    Args:
        columns: uint16 [count, E], prefix NLL in nats per token x 4096; lower is better.

    Returns:
        uint16 [count], the expert of each row.

    Raises:
        SpecError: ``spec.bad-value``, count is not a multiple of E.
    """
    count, experts = columns.shape
    if experts < 1 or count % experts:
        raise SpecError("spec.bad-value", f"{count} rows for {experts} experts", "give a multiple of the experts")
    order = np.argsort(columns.min(axis=1), kind="stable")
    scores = columns[order]
    room = np.full(experts, count // experts, dtype=np.int64)
    is_open = np.ones(experts, dtype=bool)
    choice = scores.argmin(axis=1).astype(np.uint16)
    begin = 0
    while begin < count:
        stretch, closed = _until_one_fills(choice[begin:], room, is_open)
        room -= np.bincount(choice[begin : begin + stretch], minlength=experts)
        begin += stretch
        is_open[closed] = False
        if begin < count:
            late = begin + np.flatnonzero(choice[begin:] == closed)
            still_open = np.flatnonzero(is_open)
            choice[late] = still_open[scores[np.ix_(late, still_open)].argmin(axis=1)]
    assignment = np.empty(count, dtype=np.uint16)
    assignment[order] = choice
    return assignment


def _until_one_fills(choice: np.ndarray, room: np.ndarray, is_open: np.ndarray) -> tuple[int, int]:
    """How many rows are served up to and including the one that fills an expert, and which it is."""
    by_expert = np.argsort(choice, kind="stable")
    wanted = np.bincount(choice, minlength=len(room))
    first = np.cumsum(wanted) - wanted
    filling = np.flatnonzero(is_open & (wanted >= room))
    last_served = by_expert[first[filling] + room[filling] - 1]
    soonest = int(last_served.argmin())
    return int(last_served[soonest]) + 1, int(filling[soonest])
