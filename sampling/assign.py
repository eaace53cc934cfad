"""Balanced assignment of rows to experts: SmallTalk's greedy rule (arXiv 2410.03529, algorithm 1).

Rows are visited from the best best-score up; each goes to its best-scoring expert that still has
room. Ties go to the lower expert, then the lower row.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from potluck.errors import SpecError


def balanced_assignment(columns: np.ndarray, *, visit: Literal["sorted", "stream"] = "sorted") -> np.ndarray:
    """Assigns every row to an expert, each expert getting exactly count / E rows.

    Runs in E phases, one for each expert that fills up: within a phase the set of open experts is
    fixed, so a whole stretch of rows takes its first choice at once.

    Args:
        columns: uint16 [count, E], prefix NLL in nats per token x 4096; lower is better.
        visit: `stream` takes rows as they come, the failure case of the paper's figure 1: a control.

    Returns:
        uint16 [count], the expert of each row.

    Raises:
        SpecError: ``spec.bad-value``, count is not a multiple of E.
    """
    count, experts = columns.shape
    if experts < 1 or count % experts:
        raise SpecError("spec.bad-value", f"{count} rows for {experts} experts", "give a multiple of the experts")
    order = np.argsort(columns.min(axis=1), kind="stable") if visit == "sorted" else np.arange(count)
    return fill_in_order(columns, order, np.full(experts, count // experts, dtype=np.int64))


def fill_in_order(columns: np.ndarray, order: np.ndarray, room: np.ndarray) -> np.ndarray:
    """Rows in the order given each take the best expert that still has room; ties go to the lower expert.

    Args:
        columns: [count, E], lower is better.
        order: a permutation of the rows.
        room: int [E], rows that each expert takes; at least count in all.

    Returns:
        uint16 [count], the expert of each row, in the rows' own order.
    """
    count, experts = columns.shape
    if not count:
        return np.empty(0, dtype=np.uint16)
    scores = columns[order]
    room = room.copy()
    is_open = room > 0
    choice = np.flatnonzero(is_open)[scores[:, is_open].argmin(axis=1)].astype(np.uint16)
    begin = 0
    while begin < count:
        stretch, closed = _until_one_fills(choice[begin:], room, is_open)
        room -= np.bincount(choice[begin : begin + stretch], minlength=experts)
        begin += stretch
        if closed is None:
            break
        is_open[closed] = False
        if begin < count:
            late = begin + np.flatnonzero(choice[begin:] == closed)
            still_open = np.flatnonzero(is_open)
            choice[late] = still_open[scores[np.ix_(late, still_open)].argmin(axis=1)]
    assignment = np.empty(count, dtype=np.uint16)
    assignment[order] = choice
    return assignment


def _until_one_fills(choice: np.ndarray, room: np.ndarray, is_open: np.ndarray) -> tuple[int, int | None]:
    """How many rows are served up to and including the one that fills an expert, and which it is.

    All rows and None where no expert fills up.
    """
    by_expert = np.argsort(choice, kind="stable")
    wanted = np.bincount(choice, minlength=len(room))
    first = np.cumsum(wanted) - wanted
    filling = np.flatnonzero(is_open & (wanted >= room))
    if not filling.size:
        return len(choice), None
    last_served = by_expert[first[filling] + room[filling] - 1]
    soonest = int(last_served.argmin())
    return int(last_served[soonest]) + 1, int(filling[soonest])
