"""Score columns of a partition that is not made by routers: so that all that follows from columns stays the same.

A column says how badly a row fits an expert, in steps that `scoring` has for prefix NLL; the least wins.
"""

from __future__ import annotations

import numpy as np

from potluck.errors import SpecError
from sampling.cluster_kmeans import squared_distances
from sampling.cluster_tree import Tree
from sampling.cluster_vectors import Vectors
from sampling.rows import META_SOURCE, TokenRows, stream_rows
from sampling.scoring import to_fixed_point
from sampling.taskio import TaskCall, TaskOutput

BLOCK = 1 << 14
"""Rows whose distances are in memory at once."""


def score_distance(call: TaskCall) -> TaskOutput:
    """Task `score`, what `distance`: squared distance of rows to the centroid of one cluster, uint16 [count].

    Rows are positions [start, start + count) of the stream `key` for train, the rows themselves else.
    Vectors are of the whole split; SmallTalk's baseline routing (2410.03529, section 4) compares tf-idf + SVD ones.

    Raises:
        SpecError: ``spec.bad-value``, the tree is not one flat level.
    """
    params = call.params
    tree, vectors = Tree.load(call.path("tree")), Vectors.of(call)
    cluster = int(params["cluster"])
    if tree.depth != 1 or cluster >= len(tree.leaves):
        what = f"cluster {cluster} of a tree of {len(tree.leaves)} clusters, depth {tree.depth}"
        raise SpecError("spec.bad-value", what, "fit flat clusters, one for each expert")
    rows = _rows(call, len(vectors))
    centroid = tree.levels[0].centroids[cluster : cluster + 1]
    column = np.empty(len(rows), dtype=np.uint16)
    for begin in range(0, len(rows), BLOCK):
        some = rows[begin : begin + BLOCK]
        column[begin : begin + len(some)], _ = to_fixed_point(squared_distances(vectors[some], centroid)[:, 0])
        call.progress((begin + len(some)) / len(rows))
    return TaskOutput(files={"column": call.write_array("column", column)})


def score_source(call: TaskCall) -> TaskOutput:
    """Task `score`, what `source`: 0 where a row's source is one of the expert's, else 1; uint16 [count].

    Source s belongs to expert s modulo `num_experts`.
    """
    params = call.params
    tokens = TokenRows(call.json("tokens_manifest"), call.blobs, str(params["split"]))
    rows = _rows(call, len(tokens))
    source = tokens.meta(rows)[:, META_SOURCE]
    column = (source % int(params["num_experts"]) != int(params["expert"])).astype(np.uint16)
    return TaskOutput(files={"column": call.write_array("column", column)})


def _rows(call: TaskCall, size: int) -> np.ndarray:
    start, count = int(call.params["start"]), int(call.params["count"])
    if call.params["split"] == "train":
        return stream_rows(size, int(call.params["key"]), start, count)
    return np.arange(start, start + count, dtype=np.int64)
