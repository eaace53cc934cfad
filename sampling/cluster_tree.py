"""A tree of centroids: each level refines the one before, so a vector finds its leaf in branch x depth steps.

CRISP (arXiv 2410.03735): 64 branches and depth 1 to 4. Flat k-means is a tree of depth 1. A node's code at
level l is its path as a number in base `branch`; nodes that the fitted vectors do not reach are left
out, and a domain is the rank of its leaf's code among the leaves that there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from potluck.errors import DataError, SpecError
from potluck.ids import Json, canonical_json
from potluck.jsontext import read_json
from sampling.cluster_kmeans import Search, balanced_kmeans, check_vectors, kmeans
from sampling.cluster_vectors import Vectors
from sampling.embed_lsi import normalised

VERSION = 1
MAX_DEPTH = 4
MAX_LEAVES = 1 << 24
"""64 branches at depth 4, as in the paper."""
BLOCK = 1 << 16
"""Vectors that are assigned at once: memory does not grow with their number."""


@dataclass(frozen=True, kw_only=True)
class Level:
    codes: np.ndarray
    """int64 [nodes], ascending: the nodes that there are, each in [0, branch^(level + 1))."""
    centroids: np.ndarray
    """float32 [nodes, dim]."""


@dataclass(frozen=True, kw_only=True)
class Tree:
    branch: int
    spherical: bool
    levels: tuple[Level, ...]

    @property
    def depth(self) -> int:
        return len(self.levels)

    @property
    def dim(self) -> int:
        return int(self.levels[0].centroids.shape[1])

    @property
    def leaves(self) -> np.ndarray:
        """int64 [domains]: the code of each domain's leaf."""
        return self.levels[-1].codes

    @property
    def num_empty(self) -> int:
        """Leaves that a full tree would have and this one has not."""
        return int(self.branch**self.depth) - len(self.leaves)

    def save(self, path: Path) -> None:
        """One safetensors file with a JSON header; equal trees give equal bytes."""
        from safetensors.numpy import save_file

        header: dict[str, Json] = {
            "kind": "tree",
            "version": VERSION,
            "branch": self.branch,
            "depth": self.depth,
            "spherical": self.spherical,
        }
        tensors = {}
        for number, level in enumerate(self.levels):
            tensors[f"codes-{number}"] = level.codes
            tensors[f"centroids-{number}"] = level.centroids
        save_file(tensors, path, metadata={"header": canonical_json(header)})

    @staticmethod
    def load(path: Path) -> Tree:
        """Raises:
        DataError: ``data.bad-tree``.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                header = read_json((file.metadata() or {}).get("header", "{}"))
                if header.get("kind") != "tree" or header.get("version") != VERSION:
                    what = f"{path.name} is of kind {header.get('kind')!r}, version {header.get('version')}"
                    raise DataError("data.bad-tree", what, "give the blob `tree` of `fit_clusters`")
                _check_header(header)
                levels = tuple(
                    Level(codes=file.get_tensor(f"codes-{i}"), centroids=file.get_tensor(f"centroids-{i}"))
                    for i in range(header["depth"])
                )
                _check_levels(levels, header["branch"])
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError("data.bad-tree", f"{path.name}: {error}", "give the blob of `fit_clusters`") from error
        return Tree(branch=header["branch"], spherical=header["spherical"], levels=levels)


def fit_tree(
    vectors: np.ndarray,
    *,
    branch: int,
    depth: int,
    iterations: int,
    seed: int,
    spherical: bool = False,
    balanced: bool = False,
    progress: Callable[[float], None] = lambda _: None,
) -> Tree:
    """Fits a tree to float32 [n, dim], level by level, each node by k-means on its own vectors.

    A node with fewer different vectors than branches gets one child for each of them. Flat clusters
    are `branch` = k, `depth` = 1.

    Raises:
        SpecError: ``spec.bad-value``; ``spec.k-too-large``, the root cannot fill its branches.
        DataError: ``data.bad-vectors``.
    """
    if not 1 <= depth <= MAX_DEPTH or branch < 1:
        raise SpecError("spec.bad-value", f"depth = {depth}, branch = {branch}", f"give depth 1 to {MAX_DEPTH}")
    if balanced and depth > 1:
        raise SpecError("spec.bad-value", f"balanced clusters with depth = {depth}", "balanced clusters are flat")
    check_vectors(vectors)
    options = {"iterations": iterations, "spherical": spherical}
    if balanced:
        centroids = balanced_kmeans(vectors, branch, seed=seed, **options)[0].centroids  # type: ignore[arg-type]
    else:
        centroids = kmeans(vectors, branch, seed=seed, **options).centroids  # type: ignore[arg-type]
    levels = [Level(codes=np.arange(branch, dtype=np.int64), centroids=centroids)]
    search = Search()
    nodes = search.nearest(vectors, centroids, spherical=spherical)[0]
    progress(1.0 / depth)
    for number in range(1, depth):
        levels[-1], nodes = _reached(levels[-1], nodes)
        child_codes: list[np.ndarray] = []
        child_centroids: list[np.ndarray] = []
        children = np.empty(len(vectors), dtype=np.int64)
        for node, members in _groups(nodes):
            inside = np.ascontiguousarray(vectors[members])
            code = int(levels[-1].codes[node])
            centroids = _split(inside, branch, iterations, _node_seed(seed, number, code), spherical)
            children[members] = sum(map(len, child_codes))
            children[members] += search.nearest(inside, centroids, spherical=spherical)[0]
            child_codes.append(code * branch + np.arange(len(centroids), dtype=np.int64))
            child_centroids.append(centroids)
            progress((number + (node + 1) / len(levels[-1].codes)) / depth)
        levels.append(Level(codes=np.concatenate(child_codes), centroids=np.concatenate(child_centroids)))
        nodes = children
    return Tree(branch=branch, spherical=spherical, levels=tuple(levels))


def assign_blocks(
    tree: Tree, vectors: np.ndarray | Vectors, *, block: int = BLOCK
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Domains of vectors, block by block: (first vector, domains int64, squared distances to leaves float32).

    Raises:
        DataError: ``data.bad-vectors``, a NaN or an infinity, or another dimension than the tree's.
    """
    if vectors.shape[1] != tree.dim:
        what = f"vectors of dimension {vectors.shape[1]} for a tree of {tree.dim}"
        raise DataError("data.bad-vectors", what, "embed with the encoder that the tree was fitted on")
    search = Search()
    for begin in range(0, len(vectors), block):
        part = np.ascontiguousarray(vectors[begin : begin + block], dtype=np.float32)
        check_vectors(part, begin)
        yield begin, *_descend(tree, part, search)


def _check_header(header: Mapping[str, Any]) -> None:
    """Raises:
    ValueError: it is no tree's.
    """
    branch, depth, spherical = (header.get(name) for name in ("branch", "depth", "spherical"))
    if type(depth) is not int or not 1 <= depth <= MAX_DEPTH or type(spherical) is not bool:
        raise ValueError(f"depth {str(depth)[:80]}, spherical {str(spherical)[:80]}")
    if type(branch) is not int or not 1 <= branch <= MAX_LEAVES or branch**depth > MAX_LEAVES:
        raise ValueError(f"branch {str(branch)[:80]} with depth {depth}")


def _check_levels(levels: Sequence[Level], branch: int) -> None:
    """Raises:
    ValueError: a level does not refine the one before.
    """
    above = np.zeros(1, dtype=np.int64)
    for level in levels:
        codes, centroids = level.codes, level.centroids
        if codes.dtype != np.int64 or codes.ndim != 1 or centroids.dtype != np.float32 or centroids.ndim != 2:
            raise ValueError("a level has other arrays")
        if not len(codes) or len(codes) != len(centroids) or centroids.shape[1] != levels[0].centroids.shape[1]:
            raise ValueError(f"{len(codes)} codes for centroids of shape {centroids.shape}")
        if not centroids.shape[1] or not np.isfinite(centroids).all():
            raise ValueError("a centroid is no vector of finite numbers")
        if (np.diff(codes) <= 0).any() or not np.array_equal(np.unique(codes // branch), above):
            raise ValueError("codes are not ascending, or no children of the nodes above")
        above = codes


def _descend(tree: Tree, vectors: np.ndarray, search: Search) -> tuple[np.ndarray, np.ndarray]:
    nodes, distances = search.nearest(vectors, tree.levels[0].centroids, spherical=tree.spherical)
    for above, level in zip(tree.levels, tree.levels[1:], strict=False):
        begins = np.searchsorted(level.codes, above.codes * tree.branch)
        ends = np.searchsorted(level.codes, (above.codes + 1) * tree.branch)
        children = np.empty_like(nodes)
        for node, members in _groups(nodes):
            centroids = level.centroids[begins[node] : ends[node]]
            child, distances[members] = search.nearest(vectors[members], centroids, spherical=tree.spherical)
            children[members] = begins[node] + child
        nodes = children
    return nodes, distances


def _groups(nodes: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(node, its members ascending) for each node that has any."""
    order = np.argsort(nodes, kind="stable")
    present, begins = np.unique(nodes[order], return_index=True)
    yield from zip(present.tolist(), np.split(order, begins[1:]), strict=True)


def _reached(level: Level, nodes: np.ndarray) -> tuple[Level, np.ndarray]:
    """The level without nodes that no vector chose: nothing could refine them."""
    present, ranks = np.unique(nodes, return_inverse=True)
    return Level(codes=level.codes[present], centroids=level.centroids[present]), ranks


def _split(vectors: np.ndarray, branch: int, iterations: int, seed: int, spherical: bool) -> np.ndarray:
    """Centroids of a node's children: one for each different vector where there are too few."""
    different = np.unique(vectors, axis=0)
    if len(different) <= branch:
        return normalised(different) if spherical else different
    return kmeans(vectors, branch, iterations=iterations, seed=seed, spherical=spherical).centroids


def _node_seed(seed: int, level: int, code: int) -> int:
    """Every node draws alone, so a tree does not depend on the order in which nodes are split."""
    return int(np.random.SeedSequence([seed & 0xFFFFFFFF, level, code]).generate_state(1)[0]) >> 1
