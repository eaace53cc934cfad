"""Who predicts held-out text better, computed row by row: the oracle of a run's report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

PAIRS = {
    "mixture_minus_dense": ("mixture", "dense"),
    "random_minus_dense": ("random_split", "dense"),
    "mixture_minus_random": ("mixture", "random_split"),
}
Nll = tuple[float, float]
"""Of one row, in nats: summed over its targets in the prefix, and after it."""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """One entry a row."""

    sources: Sequence[int]
    packs: Sequence[int]
    targets: Sequence[int]
    suffix: Sequence[int]
    """Targets after the prefix."""
    bytes_all: Sequence[int]
    """Of text that the targets stand for."""
    bytes_suffix: Sequence[int]
    names: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Draws:
    samples: int
    confidence: float
    seed: int


def compare(
    columns: Sequence[Sequence[int]],
    experts: Sequence[Sequence[Nll]],
    others: Mapping[str, Sequence[Nll]],
    rows: HeldOut,
    draws: Draws,
) -> dict[str, Any]:
    """Every row goes to the router that likes its prefix best; nobody is ever full.

    Args:
        columns: scores by router, then by row.
        experts: NLL by expert, then by row.
        others: NLL of `dense` and `random_split` where they were trained.
    """
    every, num = range(len(rows.targets)), range(len(experts))
    choice = [min(num, key=lambda e: (columns[e][n], e)) for n in every]
    best = [min(num, key=lambda e: experts[e][n][1]) for n in every]
    sides: dict[str, Sequence[Nll]] = {
        "mixture": [experts[e][n] for n, e in enumerate(choice)],
        "oracle": [experts[e][n] for n, e in enumerate(best)],
        **others,
    }
    result: dict[str, Any] = _levels(sides, rows, every)
    for name, (left, right) in PAIRS.items():
        if left in sides and right in sides:
            difference = [a[1] - b[1] for a, b in zip(sides[left], sides[right], strict=True)]
            result[name] = _interval(difference, rows, draws)
    by_source = {name: [n for n in every if rows.sources[n] == number] for number, name in enumerate(rows.names)}
    result["by_source"] = {name: _levels(sides, rows, mine) for name, mine in by_source.items()}
    result["table"] = [[sum(choice[n] == e for n in mine) for mine in by_source.values()] for e in num]
    return result


def purity(columns: Sequence[Sequence[int]], sources: Sequence[int]) -> float:
    """Share of rows that belong to the largest source of the router that claims them."""
    num = range(len(columns))
    claims = [min(num, key=lambda e: (columns[e][n], e)) for n in range(len(sources))]
    largest = 0
    for e in num:
        mine = [source for source, claim in zip(sources, claims, strict=True) if claim == e]
        largest += max((mine.count(source) for source in set(mine)), default=0)
    return largest / len(sources)


def _levels(sides: Mapping[str, Sequence[Nll]], rows: HeldOut, mine: Sequence[int]) -> dict[str, Any]:
    """Nats per target, perplexity and bits per byte of each side over some rows."""
    found: dict[str, Any] = {}
    for side, nll in sides.items():
        sum_all, sum_suffix = math.fsum(nll[n][0] + nll[n][1] for n in mine), math.fsum(nll[n][1] for n in mine)
        nll_all = sum_all / sum(rows.targets[n] for n in mine)
        nll_suffix = sum_suffix / sum(rows.suffix[n] for n in mine)
        found[side] = {
            "nll_all": nll_all,
            "nll_suffix": nll_suffix,
            "perplexity_all": math.exp(nll_all),
            "perplexity_suffix": math.exp(nll_suffix),
            "bits_per_byte_all": sum_all / math.log(2) / sum(rows.bytes_all[n] for n in mine),
            "bits_per_byte_suffix": sum_suffix / math.log(2) / sum(rows.bytes_suffix[n] for n in mine),
        }
    return found


def _interval(difference: Sequence[float], rows: HeldOut, draws: Draws) -> dict[str, float]:
    """Packs with targets after the prefix are drawn with replacement; each draw's ratio of sums is one sample."""
    sums: dict[int, float] = {}
    counts: dict[int, int] = {}
    for value, count, pack in zip(difference, rows.suffix, rows.packs, strict=True):
        if count:
            sums[pack] = sums.get(pack, 0.0) + value
            counts[pack] = counts.get(pack, 0) + count
    order = sorted(sums)
    rng = np.random.Generator(np.random.PCG64(draws.seed))
    means = []
    for drawn in rng.integers(0, len(order), size=(draws.samples, len(order))).tolist():
        chosen = [order[n] for n in drawn]
        means.append(math.fsum(sums[p] for p in chosen) / sum(counts[p] for p in chosen))
    tail = (1 - draws.confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return {"mean": math.fsum(sums.values()) / sum(counts.values()), "low": float(low), "high": float(high)}
