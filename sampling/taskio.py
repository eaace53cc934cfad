"""What every task is given and gives back: parameters, named blobs, a folder to write into."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tokenize import TokenError
from typing import Any, Protocol

import numpy as np

from potluck.errors import DataError
from potluck.ids import Digest, Json, canonical_json, digest_file
from potluck.jsontext import read_json

PLAIN_KINDS = "biuf"
"""Of an array's numbers: truth values, whole numbers and floats."""
HEADER_ERRORS = (
    ValueError, EOFError, OverflowError, TypeError, SyntaxError, TokenError, RecursionError, MemoryError, KeyError,
)  # fmt: skip
"""numpy reads an array's header with Python's own tokenizer and parser, and lets through what they raise."""
Progress = Callable[[float], None]
"""Called with the fraction done, 0 to 1; never goes back."""


class BlobReader(Protocol):
    def path(self, digest: Digest) -> Path:
        """The file that holds a blob. All that a task names is there before it starts."""


class LocalBlobs:
    """Blobs as files anywhere on this machine: runs tasks with no daemon at all."""

    def __init__(self) -> None:
        self._files: dict[Digest, Path] = {}

    def add(self, path: Path) -> Digest:
        digest = digest_file(path)
        self._files[digest] = path
        return digest

    def path(self, digest: Digest) -> Path:
        if digest not in self._files:
            raise DataError("data.missing", f"blob {digest} is not here", "add the file that holds it first")
        return self._files[digest]


@dataclass(frozen=True, kw_only=True)
class TaskOutput:
    files: Mapping[str, Path] = field(default_factory=dict)
    """Result blobs by name; files inside the task's `out`."""
    figures: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TaskCall:
    """One task about to run."""

    params: Mapping[str, Any]
    inputs: Mapping[str, Digest]
    blobs: BlobReader
    out: Path
    progress: Progress

    def path(self, name: str) -> Path:
        return self.blobs.path(self.inputs[name])

    def json(self, name: str) -> dict[str, Any]:
        """The JSON object of an input.

        Raises:
            DataError: ``data.bad-manifest``.
        """
        try:
            value = read_json(self.path(name).read_bytes())
        except ValueError as error:
            raise DataError("data.bad-manifest", f"input {name} is not JSON: {error}", "make it again") from None
        if not isinstance(value, dict):
            raise DataError("data.bad-manifest", f"input {name} is no JSON object", "make it again")
        return value

    def array(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """The array of an input, memory-mapped.

        Raises:
            DataError: ``data.bad-shape``.
        """
        array = load_array(self.path(name))
        if array.shape != shape:
            raise DataError("data.bad-shape", f"{name} has shape {array.shape}, not {shape}", "compute it again")
        return array

    def numbered(self, prefix: str) -> list[str]:
        """Names of the inputs `prefix-000`, `prefix-001`, ... in order."""
        return sorted(name for name in self.inputs if name.startswith(f"{prefix}-"))

    def write_json(self, name: str, value: Json) -> Path:
        path = self.out / f"{name}.json"
        path.write_text(canonical_json(value), encoding="utf-8")
        return path

    def write_array(self, name: str, array: np.ndarray) -> Path:
        """Little-endian `.npy`, so that equal arrays are equal blobs on every machine."""
        path = self.out / f"{name}.npy"
        np.save(path, np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False), allow_pickle=False)
        return path


def load_array(path: Path) -> np.ndarray:
    """Memory-maps an array blob, read-only.

    Raises:
        DataError: ``data.bad-array``: it is no `.npy` file of plain numbers, or is cut off.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except HEADER_ERRORS as error:
        raise DataError("data.bad-array", f"{path.name} is no array: {error}", "make it again") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in PLAIN_KINDS:
        raise DataError("data.bad-array", f"{path.name} is no array of plain numbers", "make it again")
    return array


def let_go(array: np.ndarray) -> None:
    """Gives the pages of a mapped array back to the system, which reads them again when they are asked for."""
    if isinstance(array.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):  # Windows has no such thing
        array.base.madvise(mmap.MADV_DONTNEED)
