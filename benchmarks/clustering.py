"""k-means against bare faiss.Kmeans, in time and objective, and the memory of streaming assignment.

    python -m benchmarks.clustering [--turns 3] [--threads 1] [--json FILE]

Each turn clusters the same vectors three ways: ours, its start counted; `faiss.Kmeans` as it comes, which starts from
random points; and `faiss.Kmeans` from scikit-learn's `kmeans_plusplus` on as large a sample as ours takes. All do
equal iterations over all vectors, and every other turn goes through the ways backwards. A ratio is taken within each
turn, over two kinds of vectors: a planted mixture, and points like those of LSI, on a sphere, in groups of very
unequal sizes and with axes of falling weight.

Figures are the median of all turns with the least and the greatest. Below 1 is better for us:

- `time_vs_faiss`: our seconds over those of bare faiss.
- `objective_vs_kmeanspp`: our mean squared distance over that of the k-means++ start.
- `objective_vs_faiss`: the same over bare faiss, for its time is worth only what it finds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.turns import spread
from sampling.cluster_extras import extra
from sampling.cluster_kmeans import MIN_SEED_POINTS, SEED_POINTS_PER_CENTROID, Search, kmeans
from sampling.cluster_tree import Level, Tree, assign_blocks
from sampling.cluster_vectors import Vectors

COUNT, DIM, K, ITERATIONS = 200_000, 64, 512, 10
STREAMED = (100_000, 1_000_000)
WRITE_ROWS = 50_000
Way = Callable[[np.ndarray, int], np.ndarray]
"""Vectors and a seed to centroids."""


def ours(vectors: np.ndarray, seed: int) -> np.ndarray:
    return kmeans(vectors, K, iterations=ITERATIONS, seed=seed).centroids


def bare(vectors: np.ndarray, seed: int, start: np.ndarray | None = None) -> np.ndarray:
    model = extra("faiss").Kmeans(
        DIM, K, niter=ITERATIONS, seed=seed, min_points_per_centroid=1, max_points_per_centroid=len(vectors)
    )
    model.train(vectors, init_centroids=start)
    centroids: np.ndarray = model.centroids
    return centroids


def plus_plus(vectors: np.ndarray, seed: int) -> np.ndarray:
    size = max(MIN_SEED_POINTS, SEED_POINTS_PER_CENTROID * K)
    sample = vectors[np.random.default_rng(seed).permutation(len(vectors))[:size]]
    start, _ = extra("sklearn.cluster").kmeans_plusplus(sample, K, random_state=seed)
    return bare(vectors, seed, start)


def planted() -> np.ndarray:
    """K Gaussian groups whose centres are spread as wide as the groups themselves."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((K, DIM), dtype=np.float32)
    return centres[rng.integers(0, K, COUNT)] + rng.standard_normal((COUNT, DIM), dtype=np.float32)


def like_lsi() -> np.ndarray:
    """Unit vectors in groups of Zipf's sizes; the i-th axis weighs i^-1/2."""
    rng = np.random.default_rng(1)
    groups = 4 * K
    axes = (np.arange(1, DIM + 1) ** -0.5).astype(np.float32)
    share = 1.0 / np.arange(1, groups + 1)
    centres = rng.standard_normal((groups, DIM), dtype=np.float32)
    group = rng.choice(groups, COUNT, p=share / share.sum())
    vectors = axes * (centres[group] + 0.7 * rng.standard_normal((COUNT, DIM), dtype=np.float32))
    scaled: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled


def turn(vectors: np.ndarray, seed: int) -> dict[str, float]:
    """The three ratios of one turn."""
    seconds: dict[str, float] = {}
    objective: dict[str, float] = {}
    search = Search()
    ways: dict[str, Way] = {"ours": ours, "bare": bare, "plus_plus": plus_plus}
    for name, way in list(ways.items())[:: -1 if seed % 2 else 1]:
        begin = time.perf_counter()
        centroids = way(vectors, seed)
        seconds[name] = time.perf_counter() - begin
        objective[name] = float(search.nearest(vectors, centroids, spherical=False)[1].mean(dtype=np.float64))
    told = ", ".join(f"{name} {seconds[name]:.2f} s {objective[name]:.5g}" for name in ways)
    print(f"  {told}", flush=True)
    return {
        "time_vs_faiss": seconds["ours"] / seconds["bare"],
        "objective_vs_kmeanspp": objective["ours"] / objective["plus_plus"],
        "objective_vs_faiss": objective["ours"] / objective["bare"],
    }


def stream(count: int) -> None:
    """Writes vectors to disk, assigns them block by block, and prints this process's peak memory."""
    rng = np.random.default_rng(0)
    centroids = rng.standard_normal((K, DIM), dtype=np.float32)
    tree = Tree(branch=K, spherical=False, levels=(Level(codes=np.arange(K), centroids=centroids),))
    with tempfile.TemporaryDirectory() as folder:
        parts = [Path(folder) / f"{begin}.npy" for begin in range(0, count, WRITE_ROWS)]
        for part in parts:
            np.save(part, rng.standard_normal((WRITE_ROWS, DIM), dtype=np.float32))
        begin = time.perf_counter()
        squared = sum(float(distances.sum()) for _, _, distances in assign_blocks(tree, Vectors(parts)))
        seconds = time.perf_counter() - begin
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    size = count * DIM * 4 / 2**20
    print(f"{count:9,d} vectors, {size:4.0f} MiB: peak RSS {int(peak.split()[1]) / 1024:.0f} MiB, ", end="")
    print(f"{count / seconds:,.0f} vectors/s, mean squared distance {squared / count:.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of faiss and of BLAS")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--stream", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    extra("faiss").omp_set_num_threads(options.threads)
    with extra("threadpoolctl").threadpool_limits(options.threads):
        if options.stream:
            stream(options.stream)
            return
        ratios: dict[str, list[float]] = {}
        for name, vectors in (("planted", planted()), ("like LSI", like_lsi())):
            print(f"{name}: {COUNT:,} x {DIM}, k = {K}, {ITERATIONS} iterations; seconds and objective", flush=True)
            for seed in range(options.turns):
                for ratio, value in turn(vectors, seed).items():
                    ratios.setdefault(ratio, []).append(value)
    figures = {ratio: spread(values) for ratio, values in ratios.items()}
    for ratio, figure in figures.items():
        print(f"{ratio} {figure['median']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})")
    for count in STREAMED:  # in processes of their own: a peak never falls
        command = [sys.executable, "-m", "benchmarks.clustering", "--stream", str(count)]
        subprocess.run([*command, "--threads", str(options.threads)], check=True)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
