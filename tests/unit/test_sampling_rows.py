"""Rows over shards, and batches as a pure function of the step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from potluck.errors import DataError, InvariantViolation
from potluck.ids import Digest, canonical_json
from potluck.recipe import Assigned, RandomShare, Segment, SegmentData, Stream
from sampling.batches import SegmentReader
from sampling.rows import TokenRows, stream_rows
from sampling.taskio import LocalBlobs

S = 6
COUNTS = (5, 0, 11, 1, 30)
TOTAL = sum(COUNTS)


class Corpus:
    """Rows 0..TOTAL-1 over several shards; row i starts with token i."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.blobs = LocalBlobs()
        parts: list[dict[str, Any]] = []
        begin = 0
        for number, count in enumerate(COUNTS):
            first = np.arange(begin, begin + count)
            rows = (first[:, None] + 100 * np.arange(S + 1)).astype("<u2")
            meta = np.stack([first % 3, first % 2, np.full(count, S)], axis=1).astype("<i4")
            parts.append(
                {
                    "rows": self.add(f"rows{number}", rows),
                    "meta": self.add(f"meta{number}", meta),
                    "count": count,
                    "pack_offset": 10 * number,
                }
            )
            begin += count
        self.manifest: dict[str, Any] = {
            "sequence_length": S,
            "splits": {name: {"parts": parts} for name in ("train", "valid")},
        }
        path = folder / "tokens.json"
        path.write_text(canonical_json(self.manifest))
        self.digest = self.blobs.add(path)

    def add(self, name: str, array: np.ndarray) -> Digest:
        np.save(self.folder / f"{name}.npy", array)
        return self.blobs.add(self.folder / f"{name}.npy")

    def reader(self, data: SegmentData, *, steps: tuple[int, int], batch: int, columns: int = S + 1) -> SegmentReader:
        segment = Segment(index=1, start_step=steps[0], end_step=steps[1], data=data)
        return SegmentReader(segment, batch, columns, self.blobs)


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return Corpus(tmp_path)


def test_rows_come_in_the_order_asked_for_whatever_shard_they_are_in(corpus: Corpus) -> None:
    rows = TokenRows(corpus.manifest, corpus.blobs, "train")
    assert len(rows) == TOTAL
    indices = np.array([46, 0, 5, 4, 16, 5, 15])
    assert rows.take(indices)[:, 0].tolist() == indices.tolist()
    assert rows.take(indices)[:, S].tolist() == (indices + 600).tolist()
    assert rows.meta(indices)[:, 0].tolist() == (indices % 3).tolist()
    assert rows.take(np.empty(0, dtype=np.int64)).shape == (0, S + 1)


def test_pack_ids_are_made_global_by_the_shards_offset(corpus: Corpus) -> None:
    rows = TokenRows(corpus.manifest, corpus.blobs, "valid")
    assert rows.meta(np.array([1, 5, 46]))[:, 1].tolist() == [1, 21, 40]


@pytest.mark.parametrize("index", [-1, TOTAL])
def test_a_row_that_is_not_there_is_refused(corpus: Corpus, index: int) -> None:
    with pytest.raises(IndexError):
        TokenRows(corpus.manifest, corpus.blobs, "train").take(np.array([index]))


def test_a_stream_segment_reads_its_positions_in_order_and_over_the_end(corpus: Corpus) -> None:
    reader = corpus.reader(Stream(tokens=corpus.digest, key=9, start=40), steps=(10, 14), batch=4, columns=3)
    read = np.concatenate([reader.batch(step) for step in range(10, 14)])
    assert reader.num_rows == 16
    assert read.shape == (16, 3)
    assert read.dtype == np.uint16
    assert read[:, 0].tolist() == stream_rows(TOTAL, 9, 40, 16).tolist()


def test_a_batch_does_not_depend_on_what_was_read_before(corpus: Corpus) -> None:
    data = Stream(tokens=corpus.digest, key=9, start=0)
    forward = [corpus.reader(data, steps=(0, 200), batch=3).batch(step) for step in range(200)]
    assert np.concatenate(forward)[:, 0].tolist() == stream_rows(TOTAL, 9, 0, 600).tolist()
    reader = corpus.reader(data, steps=(0, 200), batch=3)
    for step in (4, 199, 0, 63, 64, 1, 128):
        assert np.array_equal(reader.batch(step), forward[step])


def test_random_shares_are_disjoint_equal_cover_the_range_and_keep_the_order(corpus: Corpus) -> None:
    positions = stream_rows(TOTAL, 2, 20, 24).tolist()
    read = []
    for share in range(3):
        data = RandomShare(tokens=corpus.digest, key=2, start=20, count=24, shares=3, share=share, seed=11)
        reader = corpus.reader(data, steps=(0, 2), batch=4)
        mine = np.concatenate([reader.batch(0), reader.batch(1)])[:, 0].tolist()
        assert reader.num_rows == 8
        places = [positions.index(row) for row in mine]
        assert places == sorted(places)
        read += mine
    assert sorted(read) == sorted(positions)


def test_an_assigned_segment_reads_its_experts_rows_in_stream_order(corpus: Corpus) -> None:
    assignment = np.array([1, 0, 2, 1, 1, 0, 2, 2, 0], dtype="<u2")
    blob = corpus.add("assignment", assignment)
    data = Assigned(tokens=corpus.digest, key=5, start=7, count=9, assignment=blob, share=1)
    reader = corpus.reader(data, steps=(3, 4), batch=3)
    assert reader.batch(3)[:, 0].tolist() == stream_rows(TOTAL, 5, 7, 9)[assignment == 1].tolist()


def test_steps_that_need_more_rows_than_there_are_break_an_invariant(corpus: Corpus) -> None:
    data = RandomShare(tokens=corpus.digest, key=2, start=0, count=8, shares=2, share=0, seed=1)
    with pytest.raises(InvariantViolation):
        corpus.reader(data, steps=(0, 2), batch=3)


def test_an_assignment_of_another_length_is_refused(corpus: Corpus) -> None:
    blob = corpus.add("assignment", np.zeros(8, dtype="<u2"))
    data = Assigned(tokens=corpus.digest, key=5, start=7, count=9, assignment=blob, share=0)
    with pytest.raises(DataError) as caught:
        corpus.reader(data, steps=(0, 1), batch=1)
    assert caught.value.error_id == "data.bad-assignment"
