"""What differences between seeds, or between documents, say of a claim. Pure arithmetic.

Differences are paired: of one seed each, or of one document each, first minus second; below zero the first is better.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal["held", "not held", "not decidable"]

CONFIDENCE = 0.95
_BISECTIONS = 200


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean and its interval, in the unit of the differences; infinite where nothing bounds it."""

    mean: float
    low: float
    high: float
    seeds: int
    """Trainings that it rests on: an interval over documents of one seed says nothing of the next seed."""

    @property
    def smallest_effect(self) -> float:
        """Half the interval: what could have been seen."""
        return (self.high - self.low) / 2

    @property
    def decides(self) -> bool:
        """One seed never does, whatever its interval over documents."""
        return self.seeds > 1 and math.isfinite(self.low) and math.isfinite(self.high)


def over_seeds(differences: Sequence[float], *, confidence: float = CONFIDENCE) -> Estimate:
    """Mean and t interval of one difference a seed; of one seed the interval is the whole line.

    Raises:
        ValueError: there is none.
    """
    if not differences:
        raise ValueError("no differences: an estimate needs one seed at least")
    mean, count = statistics.fmean(differences), len(differences)
    if count == 1 or not math.isfinite(mean):
        return Estimate(mean=mean, low=-math.inf, high=math.inf, seeds=count)
    half = t_quantile((1 + confidence) / 2, count - 1) * statistics.stdev(differences) / math.sqrt(count)
    return Estimate(mean=mean, low=mean - half, high=mean + half, seeds=count)


def over_documents(pair: Mapping[str, Any] | None) -> Estimate | None:
    """Of a contest's pair, {mean, low, high}: bootstrap over documents of one training; None where it has no figure."""
    if pair is None:
        return None
    low, high = pair["low"], pair["high"]
    bounded = low is not None and high is not None
    return Estimate(mean=pair["mean"], low=low if bounded else -math.inf, high=high if bounded else math.inf, seeds=1)


def less(estimate: Estimate, margin: float = 0.0) -> Verdict:
    """The claim that the difference is below `margin`: the interval lies on one side of it, or nothing is said."""
    if not estimate.decides:
        return "not decidable"
    if estimate.high < margin:
        return "held"
    return "not held" if estimate.low > margin else "not decidable"


def within(estimate: Estimate, margin: float) -> Verdict:
    """The claim that two are alike, to `margin` either way: the whole interval lies inside, or outside."""
    if not estimate.decides:
        return "not decidable"
    if -margin < estimate.low and estimate.high < margin:
        return "held"
    return "not held" if estimate.low > margin or estimate.high < -margin else "not decidable"


def monotone(steps: Iterable[Estimate], margin: float = 0.0) -> Verdict:
    """The claim that every step from one setting to the next goes down, or up by less than `margin`."""
    return every(less(step, margin) for step in steps)


def every(verdicts: Iterable[Verdict]) -> Verdict:
    """The claim that all of them hold: one that does not is enough against it. Of none at all nothing is said."""
    found = set(verdicts)
    if "not held" in found:
        return "not held"
    return "held" if found == {"held"} else "not decidable"


def t_quantile(probability: float, freedom: int) -> float:
    """The quantile of Student's distribution, by bisection of its distribution function.

    Args:
        probability: above 0.5, below 1.
        freedom: degrees of freedom, 1 or more.
    """
    low, high = 0.0, 1.0
    while _t_probability(high, freedom) < probability:
        low, high = high, 2 * high
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        low, high = (middle, high) if _t_probability(middle, freedom) < probability else (low, middle)
    return high


def _t_probability(t: float, freedom: int) -> float:
    """P(T <= t), t >= 0, of whole degrees of freedom (Abramowitz and Stegun, 1964, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine, term, total = math.cos(angle), 1.0, 1.0
    odd = freedom % 2
    for index in range(1, (freedom - odd) // 2):
        term *= cosine**2 * (2 * index - 1 + odd) / (2 * index + odd)
        total += term
    if odd:
        inside = 2 / math.pi * (angle + (math.sin(angle) * cosine * total if freedom > 1 else 0.0))
    else:
        inside = math.sin(angle) * total
    return (1 + inside) / 2
