"""k-means with a good start: greedy k-means++ on a sample, then Lloyd's iterations by faiss.

On one thread equal vectors and seeds give equal bits on one machine. With more threads or another
BLAS, sums may round otherwise, so near ties can fall to another centroid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from potluck.errors import DataError, SpecError
from sampling.assign import fill_in_order
from sampling.cluster_extras import extra
from sampling.embed_lsi import normalised

SEED_POINTS_PER_CENTROID = 16
MIN_SEED_POINTS = 4096
"""Vectors among which a start is sought: enough for each centroid to have neighbours to be chosen from."""
MAX_PLAIN_START = 1024
"""Centroids up to which k-means++ looks at the whole sample; beyond, it would cost more than the iterations."""
GROUP_CENTROIDS = 256
COARSE_ITERATIONS = 4
DUPLICATE_TOLERANCE = 1e-6
"""Distances that sum to less than this share of the squared lengths are rounding: all points are chosen."""
GPU_SCORES = 1 << 24
"""Vectors times centroids from which a GPU is worth the transfer."""


@dataclass(frozen=True, kw_only=True)
class KMeans:
    centroids: np.ndarray
    """float32 [k, dim]; of length 1 if spherical."""
    objective: float
    """Mean squared distance to the nearest centroid, seen by the last iteration before it moved them."""


class Search:
    """Nearest centroids, on a GPU where faiss has one."""

    def __init__(self) -> None:
        self._faiss = extra("faiss")
        self._gpu: Any = self._faiss.StandardGpuResources() if num_gpus() else None

    def nearest(self, vectors: np.ndarray, centroids: np.ndarray, *, spherical: bool) -> tuple[np.ndarray, np.ndarray]:
        """int64 [n] and float32 [n]: index of, and squared distance to, the nearest centroid.

        Spherical means the largest inner product; the distance is Euclidean all the same.
        """
        if not len(vectors):
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
        metric = self._faiss.METRIC_INNER_PRODUCT if spherical else self._faiss.METRIC_L2
        if self._gpu is not None and len(vectors) * len(centroids) >= GPU_SCORES:
            values, indices = self._faiss.knn_gpu(self._gpu, vectors, centroids, 1, metric=metric)
        else:
            values, indices = self._faiss.knn(vectors, centroids, 1, metric=metric)
        nearest = indices[:, 0].astype(np.int64)
        if not spherical:
            return nearest, np.maximum(values[:, 0], 0.0)
        lengths = np.einsum("nd,nd->n", vectors, vectors) + np.einsum("kd,kd->k", centroids, centroids)[nearest]
        return nearest, np.maximum(lengths - 2.0 * values[:, 0], 0.0).astype(np.float32)


def num_gpus() -> int:
    """GPUs that faiss can use: none with faiss-cpu."""
    count: Callable[[], int] = getattr(extra("faiss"), "get_num_gpus", lambda: 0)
    return int(count()) if hasattr(extra("faiss"), "StandardGpuResources") else 0


def kmeans(
    vectors: np.ndarray, k: int, *, iterations: int, seed: int, spherical: bool = False, restarts: int = 1
) -> KMeans:
    """Clusters float32 [n, dim]; of several restarts the one of least objective is taken.

    Raises:
        SpecError: ``spec.k-too-large``, fewer vectors, or fewer different ones, than centroids;
            ``spec.bad-value``, no iterations or no restarts.
        DataError: ``data.bad-vectors``, a NaN or an infinity.
        ResourceError: ``resource.missing-package``.
    """
    if iterations < 1 or restarts < 1:
        raise SpecError("spec.bad-value", f"iterations = {iterations}, restarts = {restarts}", "give at least 1")
    check_vectors(vectors)
    points = normalised(vectors) if spherical else np.ascontiguousarray(vectors, dtype=np.float32)
    best: KMeans | None = None
    for restart in range(restarts):
        start = start_centroids(points, k, seed=seed + restart)
        found = _lloyd(points, start, iterations=iterations, seed=seed + restart, spherical=spherical)
        best = found if best is None or found.objective < best.objective else best
    assert best is not None
    return best


def balanced_kmeans(
    vectors: np.ndarray, k: int, *, iterations: int, seed: int, spherical: bool = False
) -> tuple[KMeans, np.ndarray]:
    """k-means whose clusters have equal sizes, within one: Lloyd's iterations with a capacity.

    Starts from plain k-means. Memory is n times k; fit on a sample.

    Returns:
        Centroids, and the label of each vector, uint16 [n].
    """
    found = kmeans(vectors, k, iterations=iterations, seed=seed, spherical=spherical)
    points = normalised(vectors) if spherical else np.ascontiguousarray(vectors, dtype=np.float32)
    centroids = found.centroids
    for _ in range(iterations):
        distances = squared_distances(points, centroids)
        labels = balanced_labels(distances, np.zeros(k, dtype=np.int64))
        centroids = _means(points, labels, k)
        centroids = normalised(centroids) if spherical else centroids
    objective = float(np.take_along_axis(distances, labels[:, None].astype(np.int64), axis=1).mean())
    return KMeans(centroids=centroids, objective=objective), labels


def balanced_labels(distances: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Labels so that all sizes, with those already there, differ by at most one if they did before.

    Vectors are visited in the order of what they would lose by their second choice, most first; each
    takes the nearest cluster that has room.

    Args:
        distances: float [n, k].
        sizes: int [k], vectors that the clusters hold already.

    Returns:
        uint16 [n].
    """
    count, k = distances.shape
    demand = np.bincount(distances.argmin(axis=1), minlength=k) if count else np.zeros(k, dtype=np.int64)
    share, extras = divmod(count, k)
    room = np.full(k, share, dtype=np.int64)
    room[np.lexsort((-demand, sizes))[:extras]] += 1
    if k == 1:
        return np.zeros(count, dtype=np.uint16)
    two = np.partition(distances, 1, axis=1)[:, :2]
    return fill_in_order(distances, np.argsort(two[:, 0] - two[:, 1], kind="stable"), room)


def squared_distances(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """float32 [n, k]."""
    lengths = np.einsum("nd,nd->n", vectors, vectors)[:, None] + np.einsum("kd,kd->k", centroids, centroids)
    distances: np.ndarray = np.maximum(lengths - 2.0 * (vectors @ centroids.T), 0.0)
    return distances


def start_centroids(vectors: np.ndarray, k: int, *, seed: int) -> np.ndarray:
    """float32 [k, dim]: k different vectors by greedy k-means++ (Arthur and Vassilvitskii, 2007) on a sample.

    Raises:
        SpecError: ``spec.k-too-large``.
    """
    if k < 1 or k > len(vectors):
        fix = f"give k from 1 to {len(vectors)}, or more vectors"
        raise SpecError("spec.k-too-large", f"k = {k} for {len(vectors)} vectors", fix)
    rng = np.random.Generator(np.random.PCG64(seed))
    size = min(len(vectors), max(MIN_SEED_POINTS, SEED_POINTS_PER_CENTROID * k))
    sample = vectors[np.sort(rng.permutation(len(vectors))[:size])]
    points = sample - sample.mean(axis=0)
    chosen = _plus_plus(points, k, rng) if k <= MAX_PLAIN_START else _in_groups(points, k, rng)
    start = np.ascontiguousarray(sample[chosen])
    if len(np.unique(start, axis=0)) == k:
        return start
    different = np.unique(vectors, axis=0)
    if len(different) < k:
        what = f"k = {k}, but of {len(vectors)} vectors only {len(different)} are different"
        raise SpecError("spec.k-too-large", what, f"give k from 1 to {len(different)}")
    return np.ascontiguousarray(different[np.sort(rng.permutation(len(different))[:k])])


def check_vectors(vectors: np.ndarray, first: int = 0) -> None:
    """Args:
        vectors: [n, dim].
        first: number of the first one, for the message.

    Raises:
        DataError: ``data.bad-vectors``, with the first row that holds a NaN or an infinity.
    """
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if bad.size:
        what = f"vector {first + int(bad[0])} holds a NaN or an infinity, as {bad.size} of {len(vectors)} here do"
        raise DataError("data.bad-vectors", what, "embed the part again; the encoder may be broken")


def _in_groups(points: np.ndarray, k: int, rng: np.random.Generator) -> list[int]:
    """k indices for a large k: a few coarse clusters, and k-means++ within each for its share of the spread.

    k-means++ costs points x k; this costs points x GROUP_CENTROIDS, and its end is within a percent.
    """
    num_groups = -(-k // GROUP_CENTROIDS)
    coarse = points[_plus_plus(points[: MIN_SEED_POINTS + SEED_POINTS_PER_CENTROID * num_groups], num_groups, rng)]
    coarse = _lloyd(points, coarse, iterations=COARSE_ITERATIONS, seed=0, spherical=False).centroids
    group, squared = Search().nearest(points, coarse, spherical=False)
    spread = np.bincount(group, weights=squared, minlength=len(coarse))
    wanted = k * spread / (float(spread.sum()) or 1.0)
    share = np.floor(wanted).astype(np.int64)
    share[np.argsort(share - wanted, kind="stable")[: k - int(share.sum())]] += 1
    chosen: list[int] = []
    for number in np.flatnonzero(share).tolist():
        members = np.flatnonzero(group == number)
        inside = points[members] - coarse[number]
        chosen += members[_plus_plus(inside, min(int(share[number]), len(members)), rng)].tolist()
    # Groups with fewer points than their share leave some over: chance fills up.
    left = np.setdiff1d(rng.permutation(len(points)), chosen, assume_unique=True)
    chosen += left[: k - len(chosen)].tolist()
    return chosen


def _plus_plus(points: np.ndarray, k: int, rng: np.random.Generator) -> list[int]:
    """Up to k indices of points about the origin; fewer where no more can be told apart.

    Each is the best of 2 + log k drawn in proportion to their squared distance from those chosen.
    """
    if k < 1 or not len(points):
        return []
    trials = 2 + int(np.log(k))
    lengths = np.einsum("nd,nd->n", points, points)[:, None]
    ones = np.ones_like(lengths)
    # One product gives |y|^2 - 2xy + |x|^2 of all: passes over memory are what this costs.
    columns = np.ascontiguousarray(np.concatenate([points, lengths, ones], axis=1).T)
    rows = np.concatenate([-2.0 * points, ones, lengths], axis=1)
    rounding = DUPLICATE_TOLERANCE * float(lengths.sum(dtype=np.float64))
    chosen = [int(rng.integers(len(points)))]
    closest = np.maximum(rows[chosen[0]] @ columns, 0.0)
    closest[chosen[0]] = 0.0
    while len(chosen) < k:
        summed = np.cumsum(closest, dtype=np.float64)
        if summed[-1] <= rounding:
            break
        picks = np.searchsorted(summed, rng.random(trials) * summed[-1], side="right")
        picks = np.minimum(picks, int(np.searchsorted(summed, summed[-1], side="left")))
        after = rows[picks] @ columns
        np.minimum(after, closest, out=after)
        best = int(after.sum(axis=1).argmin())
        closest = np.maximum(after[best], 0.0)
        closest[picks[best]] = 0.0
        chosen.append(int(picks[best]))
    return chosen


def _lloyd(points: np.ndarray, start: np.ndarray, *, iterations: int, seed: int, spherical: bool) -> KMeans:
    k, dim = start.shape
    model = extra("faiss").Kmeans(
        dim,
        k,
        niter=iterations,
        seed=seed,
        spherical=spherical,
        min_points_per_centroid=1,
        max_points_per_centroid=len(points),  # the sample is the caller's choice
        gpu=num_gpus(),
    )
    model.train(points, init_centroids=start)
    total = float(model.obj[-1])
    if spherical:  # faiss sums inner products of vectors of length 1
        total = 2.0 * (len(points) - total)
    centroids = np.ascontiguousarray(model.centroids, dtype=np.float32)
    return KMeans(centroids=centroids, objective=total / len(points))


def _means(points: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """float32 [k, dim]; every label occurs, or its mean is zero."""
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels, minlength=k)
    begins = np.cumsum(counts) - counts
    present = np.flatnonzero(counts)
    means = np.zeros((k, points.shape[1]), dtype=np.float32)
    sums = np.add.reduceat(points[order].astype(np.float64), begins[present], axis=0)
    means[present] = sums / counts[present, None]
    return means
