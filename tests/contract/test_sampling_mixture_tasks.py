"""The tasks of mixtures, run as a node runs them, against the plain functions behind them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from potluck.errors import DataError, SpecError
from potluck.ids import Digest, Json, canonical_json, digest_file
from sampling.gate import gate, mixture_row_weights
from sampling.histogram import Target, histogram, warnings
from sampling.labels import EXCLUDED, distance_threshold, load_labels
from sampling.mixture import Mixture, normalised
from sampling.taskio import LocalBlobs, TaskOutput, load_array
from sampling.tasks import run_task

S = 19
DOMAINS = ["d0", "d1", "d2", "d3"]
TRAIN, TEST = 60, 12


class Bench:
    """Rows of random text in two sources; some train rows hold test text."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.blobs = folder, LocalBlobs()
        rng = np.random.default_rng(0)
        self.train, self.test = (rng.integers(1, 60_000, size=(n, S + 1)).astype("<u2") for n in (TRAIN, TEST))
        self.train[7] = self.test[2]
        self.train[11, : S - 4] = self.test[3, 5:]  # 15 tokens of 20: 8 of 13 shingles of 8
        self.train[12, :11] = self.test[3, :11]  # 4 of 13
        self.test[5, 10:] = 0  # padding, with 9 targets
        self.train[20, 10:] = 0  # ends of documents, as in the padding: no text
        self.train[21] = 0
        targets = np.full(TEST, S)
        targets[5] = 9
        train_meta = np.stack([np.arange(TRAIN) % 2, np.full(TRAIN, -1), np.full(TRAIN, S)], axis=1).astype("<i4")
        test_meta = np.stack([np.zeros(TEST), np.arange(TEST) // 2, targets], axis=1).astype("<i4")
        self.test_meta = test_meta
        self.tokens = self.tokens_manifest(self.train, train_meta, self.test, test_meta, tokenizer="t" * 64)
        self.partition = self.add_json({"domains": DOMAINS})
        self.array = (np.arange(TRAIN) % 3).astype(np.uint32)
        self.array[:5] = EXCLUDED
        inputs = {"labels-00000": self.add(self.array), "tokens": self.tokens, "partition": self.partition}
        self.labels = self.run("fit", {"what": "labels"}, inputs)["labels"]

    def tokens_manifest(
        self, train: np.ndarray, train_meta: np.ndarray, test: np.ndarray, test_meta: np.ndarray, *, tokenizer: str
    ) -> Digest:
        splits = {
            name: {
                "rows": len(rows),
                "parts": [{"rows": self.add(rows), "meta": self.add(meta), "count": len(rows), "pack_offset": 0}],
            }
            for name, rows, meta in (("train", train, train_meta), ("test", test, test_meta))
        }
        return self.add_json(
            {"sequence_length": S, "tokenizer": tokenizer, "sources": ["a", "b"], "splits": splits, "blobs": {}}
        )

    def add(self, array: np.ndarray) -> Digest:
        path = self.folder / f"{len(list(self.folder.iterdir()))}.npy"
        np.save(path, array)
        return self.blobs.add(path)

    def add_json(self, value: Any) -> Digest:
        path = self.folder / f"{len(list(self.folder.iterdir()))}.json"
        path.write_text(canonical_json(value))
        return self.blobs.add(path)

    def output(self, kind: str, params: Mapping[str, Json], inputs: Mapping[str, Digest]) -> TaskOutput:
        out = self.folder / f"out-{len(list(self.folder.iterdir()))}"
        out.mkdir()
        seen: list[float] = []
        done = run_task(kind, params, inputs, self.blobs, out, seen.append)
        assert seen == sorted(seen)
        assert len(canonical_json(done.figures)) < 64 * 1024
        return done

    def run(self, kind: str, params: Mapping[str, Json], inputs: Mapping[str, Digest]) -> dict[str, Digest]:
        return {name: self.blobs.add(path) for name, path in self.output(kind, params, inputs).files.items()}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


def test_the_histogram_task_writes_what_the_function_says(bench: Bench) -> None:
    rng = np.random.default_rng(3)
    first, second = rng.integers(0, 4, size=40).astype(np.uint32), rng.integers(0, 2, size=15).astype(np.uint32)
    first[:3] = EXCLUDED
    near, distances = rng.random(TRAIN).astype(np.float32), [rng.random(40) * 1.3, rng.random(15)]
    params: dict[str, Json] = {
        "what": "histogram",
        "target_weights": [1, 2],
        "smoothing": 0.5,
        "planned_tokens": 9000,
    }
    inputs = {
        "labels": bench.labels,
        "target-000": bench.add(first),
        "target-001": bench.add(second),
        "distance-000": bench.add(distances[0]),
        "distance-001": bench.add(distances[1]),
        "corpus_distances-00000": bench.add(near[:20]),
        "corpus_distances-00001": bench.add(near[20:]),
    }
    done = bench.output("fit", params, inputs)
    threshold = distance_threshold(near)
    targets = [
        Target(counts=np.bincount(placed[known], minlength=4), unplaced=int((distance[known] > threshold).sum()))
        for placed, distance in zip((first, second), distances, strict=True)
        for known in [placed != EXCLUDED]
    ]
    labels = load_labels(bench.labels, bench.blobs)
    mixture, figures = histogram(targets, [1.0, 2.0], labels, smoothing=0.5, planned_tokens=9000)
    assert done.files["mixture"].read_text() == mixture.to_json()
    assert done.figures == {**figures, "warnings": warnings(figures)}
    assert figures["lost_mass"] == pytest.approx(mixture_lost(targets, labels.sizes), abs=1e-12)
    again = bench.output("fit", params, inputs)
    assert digest_file(again.files["mixture"]) == digest_file(done.files["mixture"])


def test_labels_with_distances_tell_the_reach_by_which_a_targets_text_is_placed(bench: Bench) -> None:
    rng = np.random.default_rng(4)
    near = rng.random(TRAIN).astype(np.float32)
    parts = {"distances-00000": bench.add(near[:20]), "distances-00001": bench.add(near[20:])}
    plain = {"labels-00000": bench.add(bench.array), "tokens": bench.tokens, "partition": bench.partition}
    told = bench.run("fit", {"what": "labels"}, {**plain, **parts})["labels"]
    assert load_labels(told, bench.blobs).reach == distance_threshold(near)
    assert load_labels(bench.labels, bench.blobs).reach is None
    placed, distances = np.zeros(TRAIN, dtype=np.uint32), (rng.random(TRAIN) * 1.3).astype(np.float32)
    params: dict[str, Json] = {"what": "target_histogram", "planned_tokens": 0, "smoothing": 0.0, "weights": {}}
    target = {
        "tokens_manifest": bench.tokens,
        "target-00000": bench.add(placed),
        "distances-00000": bench.add(distances),
    }
    corpus = {"corpus_distances-00000": bench.add(near)}
    by_reach = bench.output("fit", params, {"labels": told, **target})
    by_corpus = bench.output("fit", params, {"labels": bench.labels, **target, **corpus})
    assert by_reach.figures == by_corpus.figures
    assert by_reach.figures["unplaced"] == float((distances > distance_threshold(near)).mean())
    assert bench.output("fit", params, {"labels": bench.labels, **target}).figures["unplaced"] is None


def mixture_lost(targets: list[Target], sizes: Mapping[str, int]) -> float:
    empty = np.array(list(sizes.values())) == 0
    each = [np.where(empty, t.counts, t.counts + 0.5) for t in targets]
    return float(sum(w * c[empty].sum() / c.sum() for w, c in zip((1 / 3, 2 / 3), each, strict=True)))


def test_from_vectors_to_a_mixture_that_tells_what_the_corpus_does_not_hold(bench: Bench) -> None:
    rng = np.random.default_rng(5)
    centres = np.repeat(10 * np.eye(4), TRAIN // 4, axis=0)
    vectors = (centres + rng.normal(0, 0.1, size=centres.shape)).astype(np.float32)
    params: dict[str, Json] = {"branch": 2, "depth": 2, "sample": TRAIN, "iterations": 10, "seed": 0}
    tree = bench.run("fit_clusters", params, {"vectors": bench.add(vectors)})["tree"]
    assign: dict[str, Json] = {"rule": "partition", "distances": True}
    parts = [bench.run("assign", assign, {"tree": tree, "vectors": bench.add(v)}) for v in (vectors[:20], vectors[20:])]
    inputs = {f"labels-{i:05d}": part["labels"] for i, part in enumerate(parts)}
    inputs |= {"tokens": bench.tokens, "partition": bench.partition}
    labels = bench.run("fit", {"what": "labels"}, inputs)["labels"]
    assert list(load_labels(labels, bench.blobs).sizes.values()) == [TRAIN // 4] * 4
    target = np.concatenate([vectors[:7] + 0.01, vectors[-1:], np.full((2, 4), 40, dtype=np.float32)])
    placed = bench.run("assign", assign, {"tree": tree, "vectors": bench.add(target)})
    inputs = {f"corpus_distances-{i:05d}": part["distances"] for i, part in enumerate(parts)}
    inputs |= {"labels": labels, "target-000": placed["labels"], "distance-000": placed["distances"]}
    done = bench.output("fit", {"what": "histogram", "planned_tokens": 5000}, inputs)
    assert done.figures["unplaced"] == pytest.approx(0.2)
    assert max(Mixture.from_json(done.files["mixture"].read_text()).weights.values()) >= 0.7


def test_a_target_without_placed_windows_and_labels_of_another_partition_are_refused(bench: Bench) -> None:
    params: dict[str, Json] = {"what": "histogram", "planned_tokens": 100}
    for array in (np.empty(0), np.full(4, EXCLUDED), np.full(4, 3)):  # d3 has no row
        with pytest.raises(SpecError, match=r"spec\.bad-mixture"):
            bench.output("fit", params, {"labels": bench.labels, "target-000": bench.add(array.astype(np.uint32))})
    with pytest.raises(DataError, match=r"label 4 with 4 domains"):
        bench.output("fit", params, {"labels": bench.labels, "target-000": bench.add(np.full(4, 4, dtype=np.uint32))})


def test_rows_that_hold_test_text_are_marked_and_no_others(bench: Bench) -> None:
    inputs = {"tokens_manifest": bench.tokens, "target_manifest": bench.tokens}
    params: dict[str, Json] = {"what": "near_duplicates", "shingle": 8}
    done = bench.output("fit", params, inputs)
    excluded = load_array(done.files["excluded"])
    assert (excluded.dtype, excluded.shape) == (np.uint8, (TRAIN,))
    assert np.flatnonzero(excluded).tolist() == [7, 11]
    assert (done.figures["excluded"], done.figures["share"]) == (2, 2 / TRAIN)
    by_source: Any = done.figures["by_source"]
    assert by_source == {
        "a": {"rows": 30, "excluded": 0, "share": 0.0},
        "b": {"rows": 30, "excluded": 2, "share": 2 / 30},
    }
    assert done.figures["target_shingles"] == 11 * 13 + 3
    less = load_array(bench.output("fit", {**params, "containment": 4 / 13}, inputs).files["excluded"])
    assert np.flatnonzero(less).tolist() == [7, 11, 12]
    longer = bench.output("fit", {"what": "near_duplicates"}, inputs)  # 13 tokens: 3 of the 8 shingles of row 11
    assert np.flatnonzero(load_array(longer.files["excluded"])).tolist() == [7]


def test_blocks_change_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = {"tokens_manifest": bench.tokens, "target_manifest": bench.tokens}
    params: dict[str, Json] = {"what": "near_duplicates", "shingle": 8}
    whole = bench.output("fit", params, inputs)
    monkeypatch.setattr("sampling.near_duplicates.BLOCK_TOKENS", 3 * S)
    cut = bench.output("fit", params, inputs)
    assert digest_file(cut.files["excluded"]) == digest_file(whole.files["excluded"])
    assert cut.figures == whole.figures


def test_duplicates_leave_the_labels(bench: Bench) -> None:
    inputs = {"tokens_manifest": bench.tokens, "target_manifest": bench.tokens}
    excluded = bench.run("fit", {"what": "near_duplicates", "shingle": 8}, inputs)["excluded"]
    inputs = {"labels-00000": bench.add(bench.array), "tokens": bench.tokens, "partition": bench.partition}
    done = bench.output("fit", {"what": "labels"}, {**inputs, "excluded": excluded})
    labels = load_array(done.files["array"])
    assert np.flatnonzero(labels != bench.array).tolist() == [7, 11]
    assert done.figures["excluded"] == 7
    assert done.figures["empty_domains"] == 1


@pytest.mark.parametrize(("name", "value"), [("shingle", 0), ("shingle", S + 2), ("containment", 0.0)])
def test_parameters_that_mark_nothing_or_everything_are_refused(bench: Bench, name: str, value: Json) -> None:
    inputs = {"tokens_manifest": bench.tokens, "target_manifest": bench.tokens}
    with pytest.raises(SpecError, match=name):
        bench.output("fit", {"what": "near_duplicates", name: value}, inputs)


def test_text_of_another_tokenizer_is_refused(bench: Bench) -> None:
    none = np.zeros((0, S + 1), dtype="<u2"), np.zeros((0, 3), dtype="<i4")
    other = bench.tokens_manifest(*none, bench.test, bench.test_meta, tokenizer="u" * 64)
    with pytest.raises(DataError) as caught:
        bench.output("fit", {"what": "near_duplicates"}, {"tokens_manifest": bench.tokens, "target_manifest": other})
    assert caught.value.error_id == "data.bad-tokens"


GATE: dict[str, Json] = {"what": "gate", "split": "test", "bootstrap_samples": 200, "confidence": 0.9, "seed": 4}


def test_the_gate_task_judges_as_the_function_does(bench: Bench) -> None:
    rng = np.random.default_rng(2)
    targets, packs = bench.test_meta[:, 2].astype(np.float64), bench.test_meta[:, 1]
    natural = rng.random((TEST, 2)) * targets[:, None]
    proposal = natural - 0.01 * rng.random((TEST, 2)) * targets[:, None]
    inputs = {"tokens_manifest": bench.tokens, "proposal": bench.add(proposal), "natural": bench.add(natural)}
    rows: Any = {"proposal": proposal.sum(1), "natural": natural.sum(1), "targets": targets, "packs": packs}
    expected = gate(**rows, samples=200, confidence=0.9, seed=4)
    done = bench.output("eval", GATE, inputs)
    assert done.figures == expected == json.loads(done.files["gate"].read_text())
    assert expected["verdict"] == "adopted"

    held_out = rng.integers(0, 4, size=TEST).astype(np.uint32)
    mixture = normalised(bench.partition, {"d0": 1, "d1": 2, "d2": 0, "d3": 5}, DOMAINS)
    weighted = {
        **inputs,
        "mixture": bench.add_json(json.loads(mixture.to_json())),
        "labels": bench.labels,
        "held_out": bench.add(held_out),
    }
    weights = mixture_row_weights(mixture.weights, DOMAINS, held_out, targets)
    done = bench.output("eval", GATE, weighted)
    assert done.figures == gate(**rows, row_weights=weights, samples=200, confidence=0.9, seed=4)


def test_arrays_of_other_rows_or_partitions_are_refused_by_the_gate(bench: Bench) -> None:
    nll = bench.add(np.ones((TEST, 2)))
    inputs = {"tokens_manifest": bench.tokens, "proposal": nll, "natural": bench.add(np.ones((TEST, 3)))}
    with pytest.raises(DataError, match=r"natural has shape \(12, 3\)"):
        bench.output("eval", GATE, inputs)
    foreign = Mixture(partition=Digest("f" * 64), weights=dict.fromkeys(DOMAINS, 0.25))
    inputs |= {"natural": nll, "labels": bench.labels, "mixture": bench.add_json(json.loads(foreign.to_json()))}
    with pytest.raises(DataError) as caught:
        bench.output("eval", GATE, {**inputs, "held_out": bench.add(np.zeros(TEST, dtype=np.uint32))})
    assert caught.value.error_id == "data.bad-labels"
