"""Clusters against slow renditions: a tree's leaves by brute force, equal shares by a loop."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sampling.cluster_kmeans import balanced_kmeans, balanced_labels, squared_distances
from sampling.cluster_tree import Tree, assign_blocks, fit_tree


def points(seed: int, count: int, dim: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)


def all_domains(tree: Tree, vectors: np.ndarray, block: int = 1 << 16) -> tuple[np.ndarray, np.ndarray]:
    blocks = list(assign_blocks(tree, vectors, block=block))
    assert [begin for begin, _, _ in blocks] == list(range(0, len(vectors), block))
    return np.concatenate([d for _, d, _ in blocks]), np.concatenate([s for _, _, s in blocks])


@given(
    seed=st.integers(0, 99),
    branch=st.integers(2, 5),
    depth=st.integers(1, 4),
    spherical=st.booleans(),
    block=st.sampled_from([7, 64, 1000]),
)
def test_a_vector_goes_to_the_nearest_child_at_every_level(
    seed: int, branch: int, depth: int, spherical: bool, block: int
) -> None:
    tree = fit_tree(points(seed, 90, 3), branch=branch, depth=depth, iterations=4, seed=seed, spherical=spherical)
    vectors = points(seed + 1000, 50, 3)
    domains, distances = all_domains(tree, vectors, block)
    codes = tree.leaves[domains]
    for level, below in enumerate(range(depth - 1, -1, -1)):
        chosen = codes // branch**below
        here = tree.levels[level]
        for vector, code in zip(vectors.astype(np.float64), chosen, strict=True):
            siblings = here.codes // branch == code // branch
            if spherical:
                cost = -here.centroids[siblings].astype(np.float64) @ vector
            else:
                cost = ((here.centroids[siblings] - vector) ** 2).sum(axis=1)
            assert cost[here.codes[siblings] == code].item() <= cost.min() + 1e-5
    leaves = tree.levels[-1].centroids[domains].astype(np.float64)
    assert np.allclose(distances, ((vectors - leaves) ** 2).sum(axis=1), atol=1e-4)


@given(seed=st.integers(0, 99), branch=st.integers(2, 6), depth=st.integers(2, 4), distinct=st.integers(6, 40))
def test_every_node_has_children_and_every_leaf_a_place_under_its_parents(
    seed: int, branch: int, depth: int, distinct: int
) -> None:
    vectors = points(seed, distinct, 2)[np.random.default_rng(seed).integers(0, distinct, 120)]
    vectors[:distinct] = points(seed, distinct, 2)
    tree = fit_tree(vectors, branch=branch, depth=depth, iterations=3, seed=seed)
    for level, (above, here) in enumerate(zip(tree.levels, tree.levels[1:], strict=False), 1):
        assert (np.diff(here.codes) > 0).all()
        assert np.array_equal(np.unique(here.codes // branch), above.codes)
        assert here.codes[-1] < branch ** (level + 1)
    assert tree.num_empty == branch**depth - len(tree.leaves)
    assert len(np.unique(all_domains(tree, vectors)[0])) <= min(distinct, len(tree.leaves))


@given(
    data=st.data(),
    k=st.integers(1, 6),
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=3),
    levels=st.sampled_from([2, 5, 1000]),
)
def test_shares_stay_equal_within_one_over_any_blocks_and_rows_take_the_best_that_is_left(
    data: st.DataObject, k: int, counts: list[int], levels: int
) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    sizes = np.zeros(k, dtype=np.int64)
    for count in counts:
        distances = rng.integers(0, levels, (count, k)).astype(np.float32)
        labels = balanced_labels(distances, sizes)
        room = np.bincount(labels, minlength=k)
        assert labels.tolist() == by_a_loop(distances, room)
        sizes += room
        assert sizes.max() - sizes.min() <= 1


def by_a_loop(distances: np.ndarray, room: np.ndarray) -> list[int]:
    """Those who lose most by their second choice come first; ties keep the rows' order and the lower cluster."""
    two = np.sort(distances, axis=1)
    regret = two[:, 1] - two[:, 0] if distances.shape[1] > 1 else np.zeros(len(distances))
    left, labels = room.tolist(), [0] * len(distances)
    for row in sorted(range(len(distances)), key=lambda r: (-regret[r], r)):
        best = min((c for c in range(len(left)) if left[c]), key=lambda c: (distances[row, c], c))
        labels[row] = best
        left[best] -= 1
    return labels


@given(seed=st.integers(0, 99), k=st.integers(1, 6), count=st.integers(6, 60), spherical=st.booleans())
def test_balanced_clusters_have_equal_sizes_within_one(seed: int, k: int, count: int, spherical: bool) -> None:
    vectors = points(seed, count, 3)
    found, labels = balanced_kmeans(vectors, k, iterations=3, seed=seed, spherical=spherical)
    sizes = np.bincount(labels, minlength=k)
    assert sizes.max() - sizes.min() <= 1
    assert found.centroids.shape == (k, 3)
    if spherical:
        assert np.allclose((found.centroids**2).sum(axis=1), 1.0, atol=1e-5)


@given(seed=st.integers(0, 99))
def test_distances_are_those_of_plain_arithmetic(seed: int) -> None:
    vectors, centroids = points(seed, 9, 4), points(seed + 1, 5, 4)
    plain = ((vectors[:, None].astype(np.float64) - centroids[None]) ** 2).sum(axis=2)
    assert np.allclose(squared_distances(vectors, centroids), plain, atol=1e-4)
