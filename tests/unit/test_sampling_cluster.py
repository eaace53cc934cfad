"""k-means, trees and their tasks: what is found, what is refused, and in which words."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from potluck.errors import DataError, PotluckError, ResourceError, SpecError
from potluck.ids import Digest, digest_file
from sampling import cluster_kmeans
from sampling.cluster_kmeans import Search, kmeans, start_centroids
from sampling.cluster_tree import Tree, assign_blocks, fit_tree
from sampling.cluster_vectors import Vectors
from sampling.rows import stream_rows
from sampling.taskio import LocalBlobs, TaskOutput, load_array
from sampling.tasks import run_task

GROUPS, DIM = 12, 5


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before)


def planted(count: int = 600, groups: int = GROUPS, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """float32 [count, DIM] around far apart centres, and the group of each."""
    rng = np.random.default_rng(seed)
    centres = 20.0 * rng.standard_normal((groups, DIM))
    group = np.arange(count) % groups
    return (centres[group] + rng.standard_normal((count, DIM))).astype(np.float32), group


def domains(tree: Tree, vectors: np.ndarray) -> np.ndarray:
    return np.concatenate([found for _, found, _ in assign_blocks(tree, vectors)])


def test_planted_groups_are_found() -> None:
    vectors, group = planted()
    found = kmeans(vectors, GROUPS, iterations=5, seed=0)
    label = Search().nearest(vectors, found.centroids, spherical=False)[0]
    assert len({(int(a), int(b)) for a, b in zip(label, group, strict=True)}) == GROUPS
    assert found.objective == pytest.approx(DIM, rel=0.1)


def test_a_start_is_better_than_chance_and_made_of_different_vectors() -> None:
    vectors, _ = planted()

    def potential(centroids: np.ndarray) -> float:
        return float(Search().nearest(vectors, centroids, spherical=False)[1].mean())

    starts = [start_centroids(vectors, GROUPS, seed=seed) for seed in range(5)]
    by_chance = [vectors[np.random.default_rng(seed).permutation(600)[:GROUPS]] for seed in range(5)]
    assert max(map(potential, starts)) < min(map(potential, by_chance))
    assert all(len(np.unique(start, axis=0)) == GROUPS for start in starts)


def test_a_start_of_very_many_centroids_is_still_better_than_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, _ = planted(3000, groups=60)
    for name, value in (("MAX_PLAIN_START", 20), ("GROUP_CENTROIDS", 20), ("MIN_SEED_POINTS", 500)):
        monkeypatch.setattr(cluster_kmeans, name, value)
    for k in (60, 1500, 3000):
        start = start_centroids(vectors, k, seed=0)
        assert len(np.unique(start, axis=0)) == k
    by_chance = vectors[np.random.default_rng(0).permutation(3000)[:60]]
    ends = [
        Search().nearest(vectors, centroids, spherical=False)[1].mean()
        for centroids in (start_centroids(vectors, 60, seed=0), by_chance)
    ]
    assert ends[0] < 0.5 * ends[1]


def test_more_restarts_never_end_higher() -> None:
    vectors, _ = planted(groups=40)
    ends = [kmeans(vectors, 9, iterations=3, seed=0, restarts=n).objective for n in (1, 4)]
    assert ends[1] <= ends[0]


def test_spherical_clusters_go_by_direction_alone() -> None:
    rng = np.random.default_rng(0)
    direction = np.eye(3, dtype=np.float32)[np.arange(90) % 3]
    vectors = (direction * rng.uniform(0.1, 50.0, (90, 1))).astype(np.float32)
    found = kmeans(vectors, 3, iterations=5, seed=0, spherical=True)
    assert found.objective == pytest.approx(0.0, abs=1e-5)
    assert np.allclose(np.sort(found.centroids @ np.eye(3), axis=0)[-1], 1.0)
    nearest, squared = Search().nearest(vectors, found.centroids, spherical=True)
    assert len({(int(n), i % 3) for i, n in enumerate(nearest)}) == 3
    assert np.allclose(squared, (np.linalg.norm(vectors, axis=1) - 1.0) ** 2, atol=1e-3)


def test_equal_seeds_on_one_thread_give_equal_bytes(tmp_path: Path) -> None:
    vectors, _ = planted(groups=30)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        fit_tree(vectors, branch=4, depth=3, iterations=4, seed=seed).save(tmp_path / name)
    assert digest_file(tmp_path / "a") == digest_file(tmp_path / "b") != digest_file(tmp_path / "c")
    loaded = Tree.load(tmp_path / "a")
    again = fit_tree(vectors, branch=4, depth=3, iterations=4, seed=1)
    assert (loaded.branch, loaded.depth, loaded.dim, loaded.spherical) == (4, 3, DIM, False)
    assert np.array_equal(domains(loaded, vectors), domains(again, vectors))


def test_two_threads_find_the_same_clusters_where_nothing_is_near_a_border() -> None:
    vectors, _ = planted()
    one = domains(fit_tree(vectors, branch=GROUPS, depth=1, iterations=5, seed=0), vectors)
    faiss.omp_set_num_threads(2)
    assert np.array_equal(domains(fit_tree(vectors, branch=GROUPS, depth=1, iterations=5, seed=0), vectors), one)


@pytest.mark.parametrize(
    ("vectors", "k", "says"),
    [
        (np.zeros((3, 2)), 5, "k = 5 for 3 vectors"),
        (np.repeat(np.arange(4.0)[:, None], 25, axis=0), 5, "k = 5, but of 100 vectors only 4 are different"),
        (np.ones((9, 2)), 0, "k = 0 for 9 vectors"),
    ],
)
def test_more_clusters_than_different_vectors_are_refused_with_both_numbers(
    vectors: np.ndarray, k: int, says: str
) -> None:
    with pytest.raises(SpecError, match=says) as caught:
        kmeans(vectors.astype(np.float32), k, iterations=2, seed=0)
    assert caught.value.error_id == "spec.k-too-large"


def test_vectors_that_differ_by_less_than_rounding_can_still_be_told_apart() -> None:
    vectors = (100.0 + 1e-5 * np.arange(50.0)[:, None] * np.ones(3)).astype(np.float32)
    different = len(np.unique(vectors, axis=0))
    assert len(np.unique(start_centroids(vectors, different, seed=0), axis=0)) == different


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_vector_that_is_no_number_is_named(bad: float) -> None:
    vectors, _ = planted()
    tree = fit_tree(vectors, branch=3, depth=2, iterations=2, seed=0)
    vectors[321, 2] = vectors[400, 0] = bad
    for attempt in (
        lambda: kmeans(vectors, 3, iterations=2, seed=0),
        lambda: fit_tree(vectors, branch=3, depth=1, iterations=2, seed=0),
        lambda: list(assign_blocks(tree, vectors, block=50)),
    ):
        with pytest.raises(DataError, match="vector 321 holds") as caught:
            attempt()
        assert caught.value.error_id == "data.bad-vectors"


def test_vectors_of_another_encoder_are_refused() -> None:
    tree = fit_tree(planted()[0], branch=3, depth=1, iterations=2, seed=0)
    with pytest.raises(DataError, match="dimension 4 for a tree of 5"):
        list(assign_blocks(tree, np.zeros((2, 4), dtype=np.float32)))


@pytest.mark.parametrize(
    "options", [{"depth": 0}, {"depth": 5}, {"branch": 0}, {"balanced": True, "depth": 2}, {"iterations": 0}]
)
def test_a_tree_that_cannot_be_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(SpecError) as caught:
        fit_tree(planted()[0], **{"branch": 3, "depth": 1, "iterations": 2, "seed": 0, **options})
    assert caught.value.error_id == "spec.bad-value"


def test_a_machine_without_faiss_is_told_which_extras_bring_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ResourceError) as caught:
        kmeans(planted()[0], 3, iterations=2, seed=0)
    assert caught.value.error_id == "resource.missing-package"
    assert "potluck[cluster]" in caught.value.fix
    assert "potluck[cluster-gpu]" in caught.value.fix


def test_a_file_that_is_no_tree_is_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    (tmp_path / "junk").write_bytes(b"junk")
    save_file({"x": np.zeros(2)}, tmp_path / "other", metadata={"header": '{"kind":"lsi"}'})
    for name in ("junk", "other"):
        with pytest.raises(DataError) as caught:
            Tree.load(tmp_path / name)
        assert caught.value.error_id == "data.bad-tree"


def test_parts_read_as_one_array_in_any_order_and_as_float32(tmp_path: Path) -> None:
    def on_disk(*parts: np.ndarray) -> list[Path]:
        paths = [tmp_path / f"{number}.npy" for number in range(len(parts))]
        for path, part in zip(paths, parts, strict=True):
            np.save(path, part)
        return paths

    whole = np.arange(20, dtype=np.float16).reshape(10, 2)
    vectors = Vectors(on_disk(whole[:3], whole[3:3], whole[3:]))
    assert vectors.shape == (10, 2)
    assert np.array_equal(vectors[2:7], whole[2:7].astype(np.float32))
    assert vectors[np.array([9, 0, 3])][:, 0].tolist() == [18.0, 0.0, 6.0]
    for parts in ((), (whole, whole[:, :1]), (whole[0],)):
        with pytest.raises(DataError, match="parts of vectors") as caught:
            Vectors(on_disk(*parts))
        assert caught.value.error_id == "data.bad-vectors"


class Bench:
    """Vectors in two parts, as blobs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.blobs = folder, LocalBlobs()
        self.vectors, self.group = planted(600)
        self.parts: dict[str, Digest] = {}
        for number, part in enumerate(np.split(self.vectors, [250])):
            np.save(folder / f"v{number}.npy", part)
            self.parts[f"vectors-{number:05d}"] = self.blobs.add(folder / f"v{number}.npy")

    def run(self, kind: str, params: dict[str, Any], inputs: dict[str, Digest]) -> TaskOutput:
        out = self.folder / f"out-{len(list(self.folder.iterdir()))}"
        out.mkdir()
        seen: list[float] = []
        done = run_task(kind, params, inputs, self.blobs, out, seen.append)
        assert seen == sorted(seen)
        assert seen[-1] == 1.0
        return done

    def tree(self, **params: Any) -> Digest:
        options = {"iterations": 4, "sample": 500, "seed": 0, **params}
        return self.blobs.add(self.run("fit_clusters", options, self.parts).files["tree"])


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_the_tasks_fit_on_a_sample_and_label_every_part(bench: Bench) -> None:
    params = {"k": GROUPS, "iterations": 4, "sample": 500, "seed": 0}
    fitted = bench.run("fit_clusters", params, bench.parts)
    figures: Any = fitted.figures
    assert figures["mean_squared_distance"] == pytest.approx(DIM, rel=0.1)
    assert (figures["domains"], figures["sample"], figures["vectors"]) == (GROUPS, 500, 600)
    tree = bench.blobs.add(fitted.files["tree"])
    labels = []
    for name in sorted(bench.parts):
        done = bench.run("assign", {"rule": "partition"}, {"tree": tree, "vectors": bench.parts[name]})
        labels.append(load_array(done.files["labels"]))
        counts: Any = done.figures["counts"]
        assert counts == np.bincount(labels[-1], minlength=GROUPS).tolist()
        assert done.figures["mean_squared_distance"] == pytest.approx(DIM, rel=0.1)
    label = np.concatenate(labels)
    assert label.dtype == np.dtype("<u4")
    assert len({(int(a), int(b)) for a, b in zip(label, bench.group, strict=True)}) == GROUPS


def test_labels_of_a_tree_are_ranks_of_its_leaves(bench: Bench) -> None:
    tree = bench.tree(branch=4, depth=3)
    loaded = Tree.load(bench.blobs.path(tree))
    done = bench.run("assign", {"rule": "partition"}, {"tree": tree, **bench.parts})
    labels = load_array(done.files["labels"])
    assert labels.max() < len(loaded.leaves) == done.figures["domains"]
    assert np.array_equal(labels, domains(loaded, bench.vectors))


def test_balanced_routing_gives_equal_shares_of_the_rows_that_a_stream_reads(bench: Bench) -> None:
    tree = bench.tree(k=5, balanced=True)
    params = {"rule": "balanced_clusters", "num_experts": 5, "start": 550, "count": 200}
    done = bench.run("assign", {**params, "key": 7}, {"tree": tree, **bench.parts})
    assignment = load_array(done.files["assignment"])
    assert assignment.dtype == np.dtype("<u2")
    assert done.figures["shares"] == np.bincount(assignment).tolist() == [40] * 5
    rows = bench.vectors[stream_rows(600, 7, 550, 200)]
    centroids = Tree.load(bench.blobs.path(tree)).levels[0].centroids
    free = Search().nearest(rows, centroids, spherical=False)[0]
    assert (free == assignment).mean() > 0.5
    own = bench.run("assign", {**params, "start": 0, "count": 11}, {"tree": tree, **bench.parts})
    shares: Any = own.figures["shares"]
    assert sorted(shares) == [2, 2, 2, 2, 3]


@pytest.mark.parametrize(
    ("kind", "params"),
    [
        ("fit_clusters", {"iterations": 1, "sample": 10, "seed": 0}),
        ("fit_clusters", {"k": 3, "branch": 2, "iterations": 1, "sample": 10, "seed": 0}),
        ("assign", {"rule": "balanced_clusters", "num_experts": 3, "start": 0, "count": 9}),
    ],
)
def test_tasks_refuse_what_does_not_go_together(bench: Bench, kind: str, params: dict[str, Any]) -> None:
    inputs = {**bench.parts, "tree": bench.tree(k=2)}
    with pytest.raises(PotluckError) as caught:
        bench.run(kind, params, inputs)
    assert caught.value.error_id == "spec.bad-value"
