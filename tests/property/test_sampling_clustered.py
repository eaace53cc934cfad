"""The draws of a mixture: frequencies, passes over a domain, and that nothing depends on how they are cut."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from potluck.errors import DataError, SpecError
from potluck.ids import Digest, canonical_json
from potluck.recipe import Clustered, Segment, Stream
from sampling import clustered
from sampling.batches import SegmentReader
from sampling.clustered import draw_domains, draw_rows, rows_at_places
from sampling.labels import EXCLUDED
from sampling.mixture import Mixture, natural, normalised
from sampling.permute import permute, permute_each, uniform
from sampling.rows import stream_rows
from sampling.taskio import LocalBlobs
from sampling.tasks import run_task

PARTITION = Digest("a" * 64)
S = 3
SIZES = {"ash": 7, "birch": 1, "cedar": 40, "elm": 0, "fir": 12}
EXCLUDED_ROWS = 5
TOTAL = sum(SIZES.values()) + EXCLUDED_ROWS


def shuffled_labels(sizes: Mapping[str, int], excluded: int, seed: int = 0) -> np.ndarray:
    labels = np.repeat(np.arange(len(sizes)), list(sizes.values())).astype(np.uint32)
    labels = np.r_[labels, np.full(excluded, EXCLUDED, dtype=np.uint32)]
    return np.random.default_rng(seed).permutation(labels)


class Corpus:
    """Rows in two shards; row i starts with token i."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.blobs = folder, LocalBlobs()
        rows = (np.arange(TOTAL)[:, None] + 100 * np.arange(S + 1)).astype("<u2")
        cuts = [rows[:30], rows[30:]]
        meta = [np.zeros((len(cut), 3), dtype="<i4") for cut in cuts]
        parts = [
            {"rows": self.add(cut), "meta": self.add(each), "count": len(cut), "pack_offset": 0}
            for cut, each in zip(cuts, meta, strict=True)
        ]
        splits = {"train": {"parts": parts, "rows": TOTAL}}
        self.tokens = self.add_json({"sequence_length": S, "splits": splits, "blobs": {}})
        self.array = shuffled_labels(SIZES, EXCLUDED_ROWS)
        self.domain_list = {"domains": list(SIZES)}
        self.partition = self.add_json(self.domain_list)
        self.labels = self.collect(self.array)

    def collect(self, array: np.ndarray, **more: Digest) -> Digest:
        inputs = {"labels-00000": self.add(array[:30]), "labels-00001": self.add(array[30:]), **more}
        inputs |= {"tokens": self.tokens, "partition": self.partition}
        out = self.folder / f"out{len(list(self.folder.iterdir()))}"
        out.mkdir()
        done = run_task("fit", {"what": "labels"}, inputs, self.blobs, out, lambda _: None)
        self.blobs.add(done.files["array"])
        return self.blobs.add(done.files["labels"])

    def add(self, array: np.ndarray) -> Digest:
        path = self.folder / f"{len(list(self.folder.iterdir()))}.npy"
        np.save(path, array)
        return self.blobs.add(path)

    def add_json(self, value: Any) -> Digest:
        path = self.folder / f"{len(list(self.folder.iterdir()))}.json"
        path.write_text(canonical_json(value))
        return self.blobs.add(path)

    def mixture(self, weights: Mapping[str, float]) -> Digest:
        return self.add_json(json.loads(normalised(self.partition, weights, list(SIZES)).to_json()))

    def data(
        self, mixture: Digest, *, key: int = 3, start: int = 0, mode: Literal["cluster", "importance"] = "cluster"
    ) -> Clustered:
        return Clustered(tokens=self.tokens, labels=self.labels, mixture=mixture, key=key, start=start, mode=mode)

    def reader(self, data: Clustered | Stream, *, steps: tuple[int, int], batch: int) -> SegmentReader:
        segment = Segment(index=0, start_step=steps[0], end_step=steps[1], data=data)
        assert Segment.from_json(segment.to_json()) == segment
        return SegmentReader(segment, batch, S + 1, self.blobs)

    def read(self, data: Clustered | Stream, *, steps: tuple[int, int], batch: int) -> list[int]:
        reader = self.reader(data, steps=steps, batch=batch)
        return [row for step in range(*steps) for row in reader.batch(step)[:, 0].tolist()]


WEIGHTS = {"ash": 1.0, "birch": 2.0, "cedar": 3.0, "elm": 0.0, "fir": 0.0}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus(tmp_path_factory.mktemp("corpus"))


def is_likely(counts: np.ndarray, weights: np.ndarray) -> bool:
    """Chi-squared at five standard deviations."""
    expected = counts.sum() * weights[weights > 0]
    statistic = float(((counts[weights > 0] - expected) ** 2 / expected).sum())
    freedom = len(expected) - 1
    return counts[weights == 0].sum() == 0 and statistic <= freedom + 5 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("domains", [2, 5, 300])
def test_domains_are_drawn_as_often_as_the_mixture_says(seed: int, domains: int) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.full(domains, 0.5 if domains < 10 else 20.0))
    weights[rng.random(domains) < 0.2] = 0
    weights /= weights.sum()
    count = 200_000
    counts = np.bincount(draw_domains(weights, 1000 + seed, 17, count), minlength=domains)
    assert is_likely(counts, weights)
    uneven = np.roll(weights, 1)
    assert domains < 3 or not is_likely(counts, uneven)


def test_successive_draws_and_draws_under_neighbouring_keys_are_unrelated() -> None:
    numbers = uniform(5, np.arange(100_000))
    assert 0 <= numbers.min() <= numbers.max() < 1
    for others in (np.roll(numbers, 1), uniform(6, np.arange(100_000)), uniform(-5, np.arange(100_000))):
        assert abs(float(np.corrcoef(numbers, others)[0, 1])) < 5 / math.sqrt(100_000)


@given(
    sizes=st.lists(st.integers(1, 2000) | st.integers(1, 2**50), min_size=1, max_size=30),
    seed=st.integers(0, 2**32),
)
def test_permutations_of_many_sizes_at_once_are_those_of_each_alone(sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    index = np.array([int(rng.integers(size)) for size in sizes])
    keys = rng.integers(0, 2**64, size=len(sizes), dtype=np.uint64)
    together = permute_each(index, np.array(sizes), keys)
    for i, size in enumerate(sizes):
        assert together[i] == permute(index[i : i + 1], size, int(keys[i]))[0]


@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(lambda s: sum(s) > 0),
    excluded=st.integers(0, 9),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_a_row_is_found_by_its_place_without_an_index(
    sizes: list[int], excluded: int, seed: int, data: st.DataObject
) -> None:
    labels = shuffled_labels({str(i): n for i, n in enumerate(sizes)}, excluded, seed)
    places = np.array(data.draw(st.lists(st.integers(0, sum(sizes) - 1), min_size=1, max_size=20)))
    by_domain = np.argsort(labels, kind="stable")
    by_number = np.flatnonzero(labels != EXCLUDED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clustered, "BLOCK", 7)
        found = rows_at_places(labels, np.array(sizes), places)
        evenly = rows_at_places(labels, np.array(sizes), places, grouped=False)
    assert found.tolist() == by_domain[places].tolist()
    assert evenly.tolist() == by_number[places].tolist()


@pytest.mark.parametrize("key", [0, 3, 2**63 + 1])
def test_each_row_of_a_domain_is_read_once_before_any_is_read_twice(corpus: Corpus, key: int) -> None:
    rows = np.array(corpus.read(corpus.data(corpus.mixture(WEIGHTS), key=key), steps=(0, 100), batch=4))
    for label, (name, size) in enumerate(SIZES.items()):
        mine = rows[corpus.array[rows] == label]
        assert (len(mine) > 0) == (WEIGHTS[name] > 0)
        passes = [mine[i : i + size].tolist() for i in range(0, len(mine) - size + 1, size)] if size else []
        for each in passes:
            assert sorted(each) == np.flatnonzero(corpus.array == label).tolist()
        assert size < 7 or len({tuple(each) for each in passes}) == len(passes)


@pytest.mark.parametrize("mode", ["cluster", "importance"])
def test_draws_do_not_depend_on_segments_batches_or_blocks(
    corpus: Corpus, mode: Literal["cluster", "importance"], monkeypatch: pytest.MonkeyPatch
) -> None:
    mixture = corpus.mixture(WEIGHTS)
    whole = corpus.read(corpus.data(mixture, mode=mode), steps=(0, 20), batch=10)
    halves = [
        corpus.read(corpus.data(mixture, mode=mode), steps=(0, 10), batch=10),
        corpus.read(corpus.data(mixture, mode=mode, start=100), steps=(10, 20), batch=10),
    ]
    assert halves[0] + halves[1] == whole
    assert corpus.read(corpus.data(mixture, mode=mode), steps=(5, 205), batch=1) == whole
    reader = corpus.reader(corpus.data(mixture, mode=mode), steps=(0, 20), batch=10)
    assert reader.batch(19)[:, 0].tolist() == whole[190:]
    assert reader.batch(2)[:, 0].tolist() == whole[20:30]
    monkeypatch.setattr(clustered, "BLOCK", 13)
    assert corpus.read(corpus.data(mixture, mode=mode, start=150), steps=(0, 5), batch=10) == whole[150:]


@pytest.mark.parametrize("key", [0, 9, 10, 2**40])
@pytest.mark.parametrize("weights", [WEIGHTS, {"ash": 5.0, "birch": 0.1, "cedar": 0.0, "elm": 0.0, "fir": 1.0}])
def test_rows_are_read_in_the_mixtures_proportions_by_both_ways(
    corpus: Corpus, key: int, weights: dict[str, float]
) -> None:
    mixture, wanted = corpus.mixture(weights), np.array(list(weights.values())) / sum(weights.values())
    drawn = draw_rows(corpus.data(mixture, key=key), 20_000, corpus.blobs)
    assert is_likely(np.bincount(corpus.array[drawn.rows], minlength=len(SIZES)), wanted)
    even = draw_rows(corpus.data(mixture, key=key, mode="importance"), 20_000, corpus.blobs)
    assert even.weights is not None
    weighted = np.bincount(corpus.array[even.rows], weights=even.weights, minlength=len(SIZES)) / 20_000
    assert np.allclose(weighted, wanted, atol=0.005)  # 20,000 rows are 333 passes and a third


def test_another_key_reads_other_rows(corpus: Corpus) -> None:
    mixture = corpus.mixture(WEIGHTS)
    one, other = (corpus.read(corpus.data(mixture, key=key), steps=(0, 20), batch=5) for key in (1, 2))
    assert one != other


def test_importance_reads_every_row_evenly_and_weighs_it_by_mixture_over_natural_share(corpus: Corpus) -> None:
    data = corpus.data(corpus.mixture(WEIGHTS), mode="importance")
    drawn = sum(SIZES.values())
    reader = corpus.reader(data, steps=(4, 4 + drawn), batch=1)
    rows = np.array([reader.batch(step)[0, 0] for step in range(4, 4 + drawn)])
    assert sorted(rows.tolist()) == np.flatnonzero(corpus.array != EXCLUDED).tolist()
    weights = []
    for step in range(4, 4 + drawn):
        weight = reader.weights(step)
        assert weight is not None
        assert (weight.dtype, weight.shape) == (np.float32, (1,))
        weights.append(float(weight[0]))
    share = {name: size / drawn for name, size in SIZES.items()}
    for row, weight in zip(rows, weights, strict=True):
        name = list(SIZES)[corpus.array[row]]
        assert weight == pytest.approx(WEIGHTS[name] / 6 / share[name])
    assert np.mean(weights) == pytest.approx(1, rel=1e-6)  # one pass: exactly the expectation


def test_the_other_ways_to_read_give_no_weights(corpus: Corpus) -> None:
    stream = Stream(tokens=corpus.tokens, key=3, start=0)
    for data in (stream, corpus.data(corpus.mixture(WEIGHTS))):
        assert corpus.reader(data, steps=(0, 4), batch=2).weights(3) is None


def test_under_the_natural_mixture_importance_is_the_plain_stream(corpus: Corpus) -> None:
    labels = corpus.collect(shuffled_labels({**SIZES, "elm": EXCLUDED_ROWS}, 0))
    sizes = {**SIZES, "elm": EXCLUDED_ROWS}
    mixture = corpus.add_json(json.loads(natural(corpus.partition, sizes).to_json()))
    data = Clustered(tokens=corpus.tokens, labels=labels, mixture=mixture, key=8, start=5, mode="importance")
    draws = draw_rows(data, 200, corpus.blobs)
    assert draws.rows.tolist() == stream_rows(TOTAL, 8, 5, 200).tolist()
    assert draws.weights is not None
    assert np.allclose(draws.weights, 1)


def test_under_the_natural_mixture_every_row_is_drawn_alike(corpus: Corpus) -> None:
    mixture = corpus.add_json(json.loads(natural(corpus.partition, SIZES).to_json()))
    rows = draw_rows(corpus.data(mixture), 60_000, corpus.blobs).rows
    counts = np.bincount(rows, minlength=TOTAL)
    assert counts[corpus.array == EXCLUDED].sum() == 0
    assert is_likely(counts, (corpus.array != EXCLUDED) / sum(SIZES.values()))


def test_mass_on_domains_without_rows_is_lost_and_said(corpus: Corpus) -> None:
    draws = draw_rows(corpus.data(corpus.mixture({**WEIGHTS, "elm": 2.0})), 300, corpus.blobs)
    assert draws.lost_mass == pytest.approx(0.25)
    assert draws.rows.tolist() == draw_rows(corpus.data(corpus.mixture(WEIGHTS)), 300, corpus.blobs).rows.tolist()


def test_a_mixture_over_another_partition_or_labels_of_other_tokens_are_refused(corpus: Corpus) -> None:
    foreign = Mixture(partition=PARTITION, weights=dict.fromkeys(SIZES, 0.2))
    with pytest.raises(DataError) as caught:
        draw_rows(corpus.data(corpus.add_json(json.loads(foreign.to_json()))), 4, corpus.blobs)
    assert caught.value.error_id == "data.bad-labels"
    other = Clustered(tokens=PARTITION, labels=corpus.labels, mixture=corpus.mixture(WEIGHTS), key=0, start=0)
    with pytest.raises(DataError):
        draw_rows(other, 4, corpus.blobs)
    unknown = corpus.add_json(json.loads(Mixture(partition=corpus.partition, weights={"oak": 1.0}).to_json()))
    with pytest.raises(SpecError, match="oak"):
        draw_rows(corpus.data(unknown), 4, corpus.blobs)


def test_rows_marked_as_excluded_are_never_drawn_and_not_counted(corpus: Corpus) -> None:
    mark = np.zeros(TOTAL, dtype=np.uint8)
    mark[::3] = 1
    labels = corpus.collect(corpus.array, excluded=corpus.add(mark))
    data = Clustered(tokens=corpus.tokens, labels=labels, mixture=corpus.mixture(WEIGHTS), key=0, start=0)
    rows = draw_rows(data, 500, corpus.blobs).rows
    assert not (rows % 3 == 0).any()
    manifest = json.loads(corpus.blobs.path(labels).read_text())
    assert sum(manifest["sizes"]) + manifest["excluded"] == manifest["rows"] == TOTAL


@pytest.mark.parametrize("array", [np.zeros(TOTAL - 1), np.full(TOTAL, len(SIZES))])
def test_labels_that_do_not_fit_rows_or_partition_are_refused(corpus: Corpus, array: np.ndarray) -> None:
    with pytest.raises(DataError) as caught:
        corpus.collect(array.astype(np.uint32))
    assert caught.value.error_id == "data.bad-labels"


def test_draws_never_change(corpus: Corpus) -> None:
    """Old runs rest on them."""
    assert draw_domains(np.array([0.2, 0.5, 0.3]), 7, 0, 12).tolist() == [2, 1, 1, 1, 1, 0, 2, 2, 2, 0, 2, 1]
    rows = draw_rows(corpus.data(corpus.mixture(WEIGHTS), start=90), 8, corpus.blobs).rows
    assert rows.tolist() == [3, 51, 51, 33, 18, 37, 51, 51]
