"""Random mixtures of a soup's steps: functions of key and number, uniform on their support; rows without repeats."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from potluck.errors import DataError, SpecError
from potluck.ids import Digest, canonical_json
from potluck.recipe import Mixtures, Segment
from sampling.batches import SegmentReader
from sampling.labels import EXCLUDED
from sampling.mixtures import MixtureDraws
from sampling.taskio import LocalBlobs
from sampling.tasks import run_task

S = 3
SIZES = {"ash": 40, "birch": 11, "cedar": 90, "elm": 0, "fir": 60, "gorse": 25, "hazel": 33}
EMPTY = list(SIZES).index("elm")
TOTAL = sum(SIZES.values()) + 6
BATCH, PER_STEP = 12, 3
EACH = BATCH // PER_STEP


class Corpus:
    """Row i starts with token i; the labels are in an order of chance."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.blobs = folder, LocalBlobs()
        rows = (np.arange(TOTAL)[:, None] + 300 * np.arange(S + 1)).astype("<u2")
        meta = np.zeros((TOTAL, 3), dtype="<i4")
        part = {"rows": self.add(rows), "meta": self.add(meta), "count": TOTAL, "pack_offset": 0}
        splits = {"train": {"parts": [part], "rows": TOTAL}}
        self.tokens = self.add_json({"sequence_length": S, "splits": splits, "blobs": {}})
        labels = np.r_[np.repeat(np.arange(len(SIZES)), list(SIZES.values())), np.full(6, EXCLUDED)].astype(np.uint32)
        self.array = np.random.default_rng(0).permutation(labels)
        inputs = {
            "labels-00000": self.add(self.array),
            "tokens": self.tokens,
            "partition": self.add_json({"domains": list(SIZES)}),
        }
        (folder / "out").mkdir()
        done = run_task("fit", {"what": "labels"}, inputs, self.blobs, folder / "out", lambda _: None)
        self.blobs.add(done.files["array"])
        self.labels = self.blobs.add(done.files["labels"])

    def add(self, array: np.ndarray) -> Digest:
        path = self.folder / f"{len(list(self.folder.iterdir()))}.npy"
        np.save(path, array)
        return self.blobs.add(path)

    def add_json(self, value: object) -> Digest:
        path = self.folder / f"{len(list(self.folder.iterdir()))}.json"
        path.write_text(canonical_json(value))  # type: ignore[arg-type]
        return self.blobs.add(path)

    def data(self, *, key: int = 5, start: int = 0, support: int = 3, natural_share: float = 0.0) -> Mixtures:
        return Mixtures(
            tokens=self.tokens,
            labels=self.labels,
            key=key,
            start=start,
            batch_size=BATCH,
            per_step=PER_STEP,
            support=support,
            natural_share=natural_share,
        )

    def draws(self, data: Mixtures) -> MixtureDraws:
        return MixtureDraws.of(data, self.blobs)

    def reader(self, data: Mixtures, steps: range) -> SegmentReader:
        segment = Segment(index=0, start_step=steps.start, end_step=steps.stop, data=data)
        assert Segment.from_json(segment.to_json()) == segment
        return SegmentReader(segment, BATCH, S + 1, self.blobs)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus(tmp_path_factory.mktemp("corpus"))


def test_a_mixture_is_a_function_of_key_and_number_alone(corpus: Corpus) -> None:
    draws = corpus.draws(corpus.data(natural_share=0.2))
    whole = draws.weights(0, 500)
    for first, count in ((0, 1), (17, 1), (17, 64), (499, 1)):
        np.testing.assert_array_equal(draws.weights(first, count), whole[first : first + count])
    assert not np.array_equal(corpus.draws(corpus.data(key=6)).weights(0, 500), whole)
    # Some hundred are the corpus' own; no two others are alike.
    assert len({row.tobytes() for row in whole}) > 390


@given(support=st.integers(1, 9), key=st.integers(0, 2**64 - 1), first=st.integers(0, 2**30))
def test_supports_are_distinct_domains_that_have_rows_and_weights_sum_to_one(
    corpus: Corpus, support: int, key: int, first: int
) -> None:
    weights = corpus.draws(corpus.data(key=key, support=support)).weights(first, 20)
    held = len(SIZES) - 1
    assert ((weights > 0).sum(1) == min(support, held)).all()
    assert not weights[:, EMPTY].any()
    np.testing.assert_allclose(weights.sum(1), 1.0, rtol=1e-12)


def test_every_set_of_domains_is_as_likely_as_any_other(corpus: Corpus) -> None:
    """Chi-squared of 15 pairs of the 6 domains with rows: 14 degrees of freedom, 0.1% lie above 36.1."""
    count = 6000
    weights = corpus.draws(corpus.data(support=2)).weights(0, count)
    pairs = [tuple(np.flatnonzero(row)) for row in weights]
    counts = np.array([pairs.count(pair) for pair in sorted(set(pairs))])
    assert len(counts) == 15
    assert ((counts - count / 15) ** 2 / (count / 15)).sum() < 36.1


def test_weights_are_uniform_numbers_made_to_sum_to_one(corpus: Corpus) -> None:
    """Of two, w = u / (u + v): it lies below 1/4 with chance 1/6, below 1/2 with 1/2, below 3/4 with 5/6."""
    count = 6000
    weights = corpus.draws(corpus.data(support=2)).weights(0, count)
    first = np.array([row[np.flatnonzero(row)[0]] for row in weights])
    for bound, chance in ((0.25, 1 / 6), (0.5, 1 / 2), (0.75, 5 / 6)):
        spread = (chance * (1 - chance) / count) ** 0.5
        assert abs((first < bound).mean() - chance) < 3.3 * spread


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_share_of_the_mixtures_is_the_corpus_own_and_the_others_stay_as_they_were(
    corpus: Corpus, share: float
) -> None:
    count = 4000
    weights = corpus.draws(corpus.data(natural_share=share)).weights(0, count)
    plain = corpus.draws(corpus.data()).weights(0, count)
    sizes = np.array(list(SIZES.values())) / sum(SIZES.values())
    is_natural = (weights == sizes).all(1)
    assert abs(is_natural.mean() - share) <= 3.3 * (share * (1 - share) / count) ** 0.5
    np.testing.assert_array_equal(weights[~is_natural], plain[~is_natural])


def test_a_reader_that_starts_in_the_middle_reads_what_one_from_the_front_does(corpus: Corpus) -> None:
    data = corpus.data(natural_share=0.3)
    front = corpus.reader(data, range(40))
    for start, end in ((1, 2), (7, 40), (39, 40)):
        middle = corpus.reader(replace(data, start=start * BATCH), range(start, end))
        for step in range(start, end):
            np.testing.assert_array_equal(middle.batch(step), front.batch(step))
            np.testing.assert_array_equal(middle.mixtures(step), front.mixtures(step))


def test_the_rows_of_a_step_lie_in_the_domains_of_its_mixtures_in_order(corpus: Corpus) -> None:
    reader = corpus.reader(corpus.data(), range(30))
    drawn = np.zeros(len(SIZES))
    expected = np.zeros(len(SIZES))
    for step in range(30):
        labels = corpus.array[reader.batch(step)[:, 0]]
        mixtures = reader.mixtures(step)
        assert mixtures is not None
        assert mixtures.shape == (PER_STEP, len(SIZES))
        assert mixtures.dtype == np.float32
        for mixture, own in zip(mixtures, labels.reshape(PER_STEP, EACH), strict=True):
            assert (mixture[own] > 0).all()
            drawn += np.bincount(own, minlength=len(SIZES))
            expected += EACH * mixture
    assert np.abs(drawn - expected).max() < 4 * np.sqrt(expected.max())
    assert reader.weights(0) is None


def test_no_row_of_a_domain_comes_twice_before_all_have_come_once(corpus: Corpus) -> None:
    reader = corpus.reader(corpus.data(natural_share=0.5), range(60))
    rows = np.concatenate([reader.batch(step)[:, 0] for step in range(60)])
    labels = corpus.array[rows]
    assert EXCLUDED not in labels
    for domain, size in enumerate(SIZES.values()):
        own = rows[labels == domain]
        if size == 0:
            assert not len(own)
            continue
        for begin in range(0, len(own), size):
            one_pass = own[begin : begin + size]
            assert len(set(one_pass)) == len(one_pass)


def test_labels_of_other_tokens_are_refused(corpus: Corpus) -> None:
    data = replace(corpus.data(), tokens=Digest("0" * 64))
    with pytest.raises(DataError, match="not of these tokens") as refused:
        corpus.draws(data)
    assert refused.value.error_id == "data.bad-labels"


@pytest.mark.parametrize(
    "values",
    [{"per_step": 5}, {"per_step": 0}, {"start": 5}, {"start": -12}, {"support": 0}, {"natural_share": 1.5}],
)
def test_a_segment_without_sense_is_refused(corpus: Corpus, values: dict[str, float]) -> None:
    with pytest.raises(SpecError) as refused:
        replace(corpus.data(), **values)  # type: ignore[arg-type]
    assert refused.value.error_id == "spec.bad-value"
