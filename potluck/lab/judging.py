"""From differences to judgements: what claims of several studies have in common."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from potluck.lab.sides import Side
from potluck.lab.statistics import Estimate, Verdict, monotone
from potluck.lab.study import NATS, Found, Judgement, judge, undecided


def decide(rule: Callable[..., Verdict], estimate: Estimate | None, *margin: float) -> Verdict:
    """What a rule says of an estimate, if there is one."""
    return "not decidable" if estimate is None else rule(estimate, *margin)


def known(estimates: Iterable[Estimate | None]) -> list[Estimate]:
    return [estimate for estimate in estimates if estimate is not None]


def chain(
    claim: str,
    words: str,
    estimates: Sequence[Estimate | None],
    *,
    note: str,
    tokens: int,
    numbers: Sequence[Mapping[str, Any]],
    margin: float = 0.0,
    unit: str = NATS,
) -> Judgement:
    """A claim of several differences that should all lie below `margin`: told is the one furthest from it.

    One of them that was not measured is enough to leave the claim open.
    """
    measured = known(estimates)
    if not measured or len(measured) < len(estimates):
        return undecided(claim, words, note=f"not all of it was measured. {note}", tokens=tokens, numbers=numbers)
    told = max(measured, key=lambda estimate: estimate.high)
    verdict = monotone(measured, margin)
    return judge(claim, words, told, verdict, note=note, tokens=tokens, unit=unit, numbers=numbers)


def chosen(side: Side, found: Mapping[str, Found]) -> str:
    """Side and value in words, with the edge that it lies on."""
    search = side.search(found)
    edge = f", {search.edge}" if search.edge else ""
    return f"{side.name} {search.best:g}{edge}" if search.best is not None else f"{side.name}: none"


def step_equivalent(curve: Sequence[tuple[float, float]], target: float) -> float:
    """The length at which a curve of (length, loss) reaches a loss, linear in the logarithm; cut at both ends."""
    if target >= curve[0][1]:
        return curve[0][0]
    for (short, high), (long, low) in itertools.pairwise(curve):
        if low <= target:
            done = (high - target) / (high - low) if high > low else 1.0
            return float(math.exp(math.log(short) + done * (math.log(long) - math.log(short))))
    return curve[-1][0]
