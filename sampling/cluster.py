"""Tasks over vectors: fit a tree of centroids, give vectors their domains, share them out evenly."""

from __future__ import annotations

import numpy as np

from potluck.errors import SpecError
from potluck.ids import Json
from sampling.cluster_kmeans import balanced_labels, squared_distances
from sampling.cluster_tree import BLOCK, Tree, assign_blocks, fit_tree
from sampling.cluster_vectors import Vectors
from sampling.embed_lsi import normalised
from sampling.permute import permute
from sampling.rows import stream_rows
from sampling.taskio import TaskCall, TaskOutput

MAX_COUNTS = 4096
"""Domains up to which a task's figures list their sizes."""


def fit_clusters(call: TaskCall) -> TaskOutput:
    """Task `fit_clusters`: a tree from `sample` vectors drawn by `seed`.

    `k` gives flat clusters, `branch` and `depth` a tree; `spherical` and `balanced` default to false.

    Raises:
        SpecError: ``spec.bad-value``, ``spec.k-too-large``.
        DataError: ``data.bad-vectors``.
    """
    params = call.params
    if ("k" in params) == ("branch" in params):
        raise SpecError("spec.bad-value", "both or neither of k and branch are given", "give k, or branch and depth")
    vectors = Vectors.of(call)
    size = min(len(vectors), int(params["sample"]))
    drawn = np.sort(permute(np.arange(size, dtype=np.int64), len(vectors), int(params["seed"])))
    sample = vectors[drawn]
    tree = fit_tree(
        sample,
        branch=int(params["k"] if "k" in params else params["branch"]),
        depth=int(params.get("depth", 1)),
        iterations=int(params["iterations"]),
        seed=int(params["seed"]),
        spherical=bool(params.get("spherical", False)),
        balanced=bool(params.get("balanced", False)),
        progress=lambda done: call.progress(0.9 * done),
    )
    path = call.out / "tree.safetensors"
    tree.save(path)
    squared = sum(float(distances.sum(dtype=np.float64)) for _, _, distances in assign_blocks(tree, sample))
    call.progress(1.0)
    return TaskOutput(
        files={"tree": path},
        figures={
            "domains": len(tree.leaves),
            "empty_leaves": tree.num_empty,
            "nodes": [len(level.codes) for level in tree.levels],
            "vectors": len(vectors),
            "sample": size,
            "mean_squared_distance": squared / size,
        },
    )


def assign_partition(call: TaskCall) -> TaskOutput:
    """Task `assign`, rule `partition`: the domain of each vector of a part, uint32 [count].

    With `distances` also its squared distance to the domain's centroid, float32 [count].
    """
    tree = Tree.load(call.path("tree"))
    vectors = Vectors.of(call)
    labels = np.empty(len(vectors), dtype=np.uint32)
    squared = np.empty(len(vectors), dtype=np.float32)
    for begin, domains, distances in assign_blocks(tree, vectors):
        labels[begin : begin + len(domains)] = domains
        squared[begin : begin + len(domains)] = distances
        call.progress((begin + len(domains)) / len(vectors))
    counts = np.bincount(labels, minlength=len(tree.leaves))
    figures: dict[str, Json] = {
        "vectors": len(vectors),
        "domains": len(tree.leaves),
        "domains_met": int((counts > 0).sum()),
        "mean_squared_distance": float(squared.sum(dtype=np.float64)) / max(1, len(vectors)),
    }
    if len(counts) <= MAX_COUNTS:
        figures["counts"] = counts.tolist()
    files = {"labels": call.write_array("labels", labels)}
    if call.params.get("distances"):
        files["distances"] = call.write_array("distances", squared)
    return TaskOutput(files=files, figures=figures)


def assign_balanced(call: TaskCall) -> TaskOutput:
    """Task `assign`, rule `balanced_clusters`: rows to experts by distance, shares equal within one.

    With `key`, the rows are the positions [start, start + count) of that stream, as `score` takes them;
    without, they are the vectors [start, start + count) themselves.

    Raises:
        SpecError: ``spec.bad-value``, the tree is not one flat level of `num_experts` clusters.
    """
    params = call.params
    tree = Tree.load(call.path("tree"))
    experts, start, count = (int(params[name]) for name in ("num_experts", "start", "count"))
    if tree.depth != 1 or len(tree.leaves) != experts:
        what = f"a tree of {len(tree.leaves)} clusters, depth {tree.depth}, for {experts} experts"
        raise SpecError("spec.bad-value", what, f"fit clusters with k = {experts}")
    vectors = Vectors.of(call)
    if "key" in params:
        rows = stream_rows(len(vectors), int(params["key"]), start, count)
    else:
        rows = np.arange(start, start + count, dtype=np.int64)
    assignment = np.empty(count, dtype=np.uint16)
    sizes = np.zeros(experts, dtype=np.int64)
    squared = 0.0
    for begin in range(0, count, BLOCK):
        points = vectors[rows[begin : begin + BLOCK]]
        points = normalised(points) if tree.spherical else points
        distances = squared_distances(points, tree.levels[0].centroids)
        labels = balanced_labels(distances, sizes)
        sizes += np.bincount(labels, minlength=experts)
        squared += float(distances[np.arange(len(labels)), labels].sum(dtype=np.float64))
        assignment[begin : begin + len(labels)] = labels
        call.progress((begin + len(labels)) / count)
    return TaskOutput(
        files={"assignment": call.write_array("assignment", assignment)},
        figures={"shares": sizes.tolist(), "mean_squared_distance": squared / max(1, count)},
    )
