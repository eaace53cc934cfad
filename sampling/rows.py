"""Rows of tokens in memory-mapped shards, and the order in which they are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from potluck.ids import Digest
from sampling.permute import permute
from sampling.taskio import BlobReader, let_go, load_array

META_SOURCE, META_PACK, META_TARGETS = 0, 1, 2
"""Columns of a row's meta: source (index in the manifest's `sources`), pack id (-1 in train), real targets."""


class TokenRows:
    """The rows of one split, over all shards, as if they were one array.

    Shards stay mapped, but what was read of them is let go at once: else it would count as this process's memory,
    and of newer kernels each row brings 2 MiB around it.
    """

    def __init__(self, manifest: Mapping[str, Any], blobs: BlobReader, split: str) -> None:
        self.sequence_length = int(manifest["sequence_length"])
        parts = [p for p in manifest["splits"][split]["parts"] if p["count"]]
        self._rows = [load_array(blobs.path(Digest(p["rows"]))) for p in parts]
        self._meta = [load_array(blobs.path(Digest(p["meta"]))) for p in parts]
        self._pack_offsets = [int(p["pack_offset"]) for p in parts]
        self._ends = np.cumsum([p["count"] for p in parts], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def take(self, indices: np.ndarray) -> np.ndarray:
        """uint16 [k, S+1], in the order asked for.

        Raises:
            IndexError: an index outside [0, len).
        """
        out = np.empty((len(indices), self.sequence_length + 1), dtype=np.uint16)
        for part, where, local in self._located(indices):
            out[where] = self._rows[part][local]
            let_go(self._rows[part])
        return out

    def meta(self, indices: np.ndarray) -> np.ndarray:
        """int32 [k, 3]: source, pack id over the whole split (-1 in train), real targets."""
        out = np.empty((len(indices), 3), dtype=np.int32)
        for part, where, local in self._located(indices):
            out[where] = self._meta[part][local]
            let_go(self._meta[part])
            held_out = where[out[where, META_PACK] >= 0]
            out[held_out, META_PACK] += self._pack_offsets[part]
        return out

    def _located(self, indices: np.ndarray) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """(shard, places in the answer, rows inside the shard) for each shard that is touched."""
        indices = np.asarray(indices, dtype=np.int64)
        if indices.size and (int(indices.min()) < 0 or int(indices.max()) >= len(self)):
            raise IndexError(f"row outside [0, {len(self)})")
        shard = np.searchsorted(self._ends, indices, side="right")
        found = []
        for part in np.unique(shard).tolist():
            where = np.flatnonzero(shard == part)
            start = int(self._ends[part - 1]) if part else 0
            found.append((part, where, indices[where] - start))
        return found


def stream_rows(size: int, key: int, start: int, count: int) -> np.ndarray:
    """Row indices at positions [start, start + count) of the endless stream `key` over `size` rows.

    Position p reads row perm(p mod size) of the permutation `key + p // size`: every pass over the
    rows has an order of its own.

    Returns:
        int64 [count].
    """
    return rows_at(size, key, np.arange(start, start + count, dtype=np.int64))


def rows_at(size: int, key: int, positions: np.ndarray) -> np.ndarray:
    """Row indices at any positions of the stream `key`; int64, in the order asked for."""
    epoch = positions // size
    out = np.empty(len(positions), dtype=np.int64)
    for each in np.unique(epoch).tolist():
        where = epoch == each
        out[where] = permute(positions[where] % size, size, key + each)
    return out
