"""Batches as a pure function of (segment, batch size, step): a second lease repeats the first."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, assert_never

import numpy as np

from potluck.errors import DataError, InvariantViolation
from potluck.recipe import Assigned, Clustered, Mixtures, RandomShare, Segment, Stream
from sampling.clustered import Draws, draw_rows
from sampling.mixtures import MixtureDraws
from sampling.permute import permute
from sampling.rows import TokenRows, rows_at, stream_rows
from sampling.taskio import BlobReader, load_array

BLOCK_STEPS = 64
"""Steps whose row indices are computed at once: one by one they would cost as much as a tiny model's step."""


class SegmentReader:
    """The train rows of one segment, batch by batch.

    Args:
        segment: steps [start_step, end_step) and where their rows come from.
        batch_size: rows a step.
        columns: leading tokens of a row to read: M for a router, S+1 for an expert.
        blobs: holds the tokens manifest, its arrays, and the assignment, or labels and mixture.
        manifest: the parsed tokens manifest, if the caller has it already.

    Raises:
        InvariantViolation: ``bug.segment-too-long``, the steps need more rows than the data has.
        DataError: ``data.bad-assignment`` or ``data.bad-labels``: they do not fit the segment or the rows.
    """

    def __init__(
        self,
        segment: Segment,
        batch_size: int,
        columns: int,
        blobs: BlobReader,
        manifest: Mapping[str, Any] | None = None,
    ) -> None:
        if manifest is None:
            manifest = json.loads(blobs.path(segment.data.tokens).read_text(encoding="utf-8"))
        assert manifest is not None
        self._rows = TokenRows(manifest, blobs, "train")
        self._segment = segment
        self._batch_size = batch_size
        self._columns = columns
        needed = (segment.end_step - segment.start_step) * batch_size
        self._block = -1
        self._block_rows = np.empty(0, dtype=np.int64)
        self._draws: Draws | None = None
        self._chosen: np.ndarray | None = None
        self._mixtures: MixtureDraws | None = None
        if isinstance(segment.data, Clustered):
            self._draws = draw_rows(segment.data, needed, blobs)
        elif isinstance(segment.data, Mixtures):
            assert segment.data.batch_size == batch_size, "a segment of another recipe"
            self._mixtures = MixtureDraws.of(segment.data, blobs)
            rows = self._mixtures.rows(needed, blobs)
            self._draws = Draws(rows=rows, weights=None, lost_mass=0.0)
        else:
            self._chosen = chosen_positions(segment.data, blobs)
        self.num_rows = needed if self._chosen is None else len(self._chosen)
        if self.num_rows < needed:
            what = f"segment {segment.index}: {needed} rows wanted by its steps, {self.num_rows} in its data"
            raise InvariantViolation("bug.segment-too-long", what)

    def batch(self, step: int) -> np.ndarray:
        """uint16 [batch_size, columns] of the step (counted over the lineage, not the segment)."""
        block, place = divmod(self._offset(step), BLOCK_STEPS)
        if block != self._block:
            self._block, self._block_rows = block, self._rows_of_block(block)
        rows = self._block_rows[place * self._batch_size : (place + 1) * self._batch_size]
        return self._rows.take(rows)[:, : self._columns]

    def weights(self, step: int) -> np.ndarray | None:
        """float32 [batch_size], what each row's mean NLL counts for in the step's mean; None is one for all."""
        first = self._offset(step) * self._batch_size
        if self._draws is None or self._draws.weights is None:
            return None
        return self._draws.weights[first : first + self._batch_size]

    def mixtures(self, step: int) -> np.ndarray | None:
        """float32 [per_step, domains], the mixtures that the step's rows are of, in equal shares; None without any."""
        if self._mixtures is None:
            return None
        data = self._mixtures.data
        first = (data.start // data.batch_size + self._offset(step)) * data.per_step
        return self._mixtures.weights(first, data.per_step).astype(np.float32)

    def _offset(self, step: int) -> int:
        segment = self._segment
        assert segment.start_step <= step < segment.end_step, (step, segment.start_step, segment.end_step)
        return step - segment.start_step

    def _rows_of_block(self, block: int) -> np.ndarray:
        """Row indices of the steps of a block, in order."""
        data = self._segment.data
        first = block * BLOCK_STEPS * self._batch_size
        count = min(BLOCK_STEPS * self._batch_size, self.num_rows - first)
        if self._draws is not None:
            return self._draws.rows[first : first + count]
        if self._chosen is None:
            return stream_rows(len(self._rows), data.key, data.start + first, count)
        return rows_at(len(self._rows), data.key, data.start + self._chosen[first : first + count])


def chosen_positions(data: Stream | RandomShare | Assigned, blobs: BlobReader) -> np.ndarray | None:
    """Offsets into [0, count) of the stream that the segment reads, ascending; None is all of them.

    A random share holds the offsets j with permute(j, count, seed) mod shares = share, so the shares
    are disjoint, cover the range, and are equal when `shares` divides `count`.
    """
    if isinstance(data, Stream):
        return None
    if isinstance(data, RandomShare):
        dealt = permute(np.arange(data.count, dtype=np.int64), data.count, data.seed)
        return np.flatnonzero(dealt % data.shares == data.share)
    if isinstance(data, Assigned):
        assignment = load_array(blobs.path(data.assignment))
        if assignment.shape != (data.count,):
            what = f"assignment {data.assignment[:12]} has shape {assignment.shape}, not ({data.count},)"
            raise DataError("data.bad-assignment", what, "compute the assignment again")
        return np.flatnonzero(assignment == data.share)
    assert_never(data)
