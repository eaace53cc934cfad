"""Statistics of an evaluation: paired bootstrap, purity, mutual information. Pure functions over arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RESAMPLES_AT_ONCE = 64
"""Bootstrap samples drawn together: bounds memory at 64 x packs."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    mean: float
    low: float | None
    """None where fewer than two packs have targets: no interval can be had."""
    high: float | None


def paired_bootstrap(
    difference: np.ndarray,
    targets: np.ndarray,
    packs: np.ndarray,
    *,
    samples: int,
    confidence: float,
    seed: int,
) -> Interval | None:
    """Mean difference per target with a percentile interval; packs are resampled, rows never split.

    The estimator is the ratio of sums (sum of differences / sum of targets), recomputed for each
    resample, so packs of unequal length weigh by their targets (Efron and Tibshirani, 1993, ch. 13).

    Args:
        difference: float [rows], sum over a row's targets of NLL under A minus NLL under B, nats.
        targets: int [rows], how many targets that sum covers; rows with none are ignored.
        packs: int [rows], pack id.
        samples: number of bootstrap samples.
        confidence: e.g. 0.95.
        seed: equal seeds, equal intervals.

    Returns:
        None where no row has a target.
    """
    used = targets > 0
    if not used.any():
        return None
    _, pack = np.unique(packs[used], return_inverse=True)
    sums = np.bincount(pack, weights=difference[used])
    counts = np.bincount(pack, weights=targets[used])
    mean = float(sums.sum() / counts.sum())
    num_packs = len(sums)
    if num_packs < 2:
        return Interval(mean=mean, low=None, high=None)
    rng = np.random.Generator(np.random.PCG64(seed))
    means = np.empty(samples, dtype=np.float64)
    for begin in range(0, samples, RESAMPLES_AT_ONCE):
        drawn = rng.integers(0, num_packs, size=(min(RESAMPLES_AT_ONCE, samples - begin), num_packs))
        means[begin : begin + len(drawn)] = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return Interval(mean=mean, low=float(low), high=float(high))


def contingency(choice: np.ndarray, source: np.ndarray, num_experts: int, num_sources: int) -> np.ndarray:
    """int64 [experts, sources]: how many rows of each source each expert got."""
    flat = choice.astype(np.int64) * num_sources + source.astype(np.int64)
    return np.bincount(flat, minlength=num_experts * num_sources).reshape(num_experts, num_sources)


def purity(table: np.ndarray) -> float:
    """Share of rows that belong to their expert's largest source: 1 where experts hold one source each.

    It grows with the number of experts even by chance, so read it beside the mutual information.
    """
    return float(table.max(axis=1).sum() / table.sum())


def normalised_mutual_information(table: np.ndarray) -> float:
    """Mutual information of expert and source over the mean of their entropies: 0 to 1.

    1 where each determines the other, 0 where they are independent. Where both are constant there is
    nothing to tell and the value is 1, as in scikit-learn.
    """
    joint = table / table.sum()
    expert, source = joint.sum(axis=1), joint.sum(axis=0)
    scale = (_entropy(expert) + _entropy(source)) / 2.0
    if scale == 0.0:
        return 1.0
    return float((_entropy(expert) + _entropy(source) - _entropy(joint.ravel())) / scale)


def _entropy(probability: np.ndarray) -> float:
    positive = probability[probability > 0]
    return float(-(positive * np.log(positive)).sum())
