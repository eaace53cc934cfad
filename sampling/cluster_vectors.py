"""Vectors in parts on disk, as if they were one array."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from potluck.errors import DataError
from sampling.taskio import TaskCall, load_array


class Vectors:
    """float32 or float16 [n, dim] over `.npy` parts; slices and lists of rows come as float32 copies.

    A part is mapped for one read alone: pages of a standing map would count as this process's memory.
    """

    def __init__(self, parts: Sequence[Path]) -> None:
        """Raises:
        DataError: ``data.bad-vectors``, no parts, or parts of different dimensions.
        """
        shapes = [load_array(part).shape for part in parts]
        dims = {shape[1:] for shape in shapes}
        if len(dims) != 1 or len(next(iter(dims))) != 1:
            what = f"{len(parts)} parts of vectors with dimensions {sorted(map(str, dims))}"
            raise DataError("data.bad-vectors", what, "embed all parts with one encoder")
        self._parts = list(parts)
        self._ends = np.cumsum([shape[0] for shape in shapes])
        self.shape = (int(self._ends[-1]), int(shapes[0][1]))

    @staticmethod
    def of(call: TaskCall) -> Vectors:
        """A task's input `vectors`, or `vectors-00000` and on."""
        names = ["vectors"] if "vectors" in call.inputs else call.numbered("vectors")
        return Vectors([call.path(name) for name in names])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """float32 [k, dim]; an array of rows may be in any order."""
        indices = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else rows
        out = np.empty((len(indices), self.shape[1]), dtype=np.float32)
        part = np.searchsorted(self._ends, indices, side="right")
        for number in np.unique(part).tolist():
            where = np.flatnonzero(part == number)
            start = int(self._ends[number - 1]) if number else 0
            out[where] = load_array(self._parts[number])[indices[where] - start]
        return out
