"""Opens files of text as they are kept: plain, as `.gz` or as `.zst`; the only place that knows zstandard.

Compressed files are read in small steps, so that a few bytes that stand for gigabytes never lie in memory.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, BinaryIO

from potluck.errors import CorpusError, ResourceError
from sampling.records_errors import damaged, missing_package

if TYPE_CHECKING:
    from zstandard import ZstdDecompressionObj

COMPRESSED_SUFFIXES = {".gz", ".zst"}
PROBE_BYTES = 8192
"""A file with a NUL this early is not text."""
ZSTD_STEP_BYTES = 512
"""Compressed bytes a step: no frame makes more than 32,768 times as much of them, 16 MiB."""
BUFFER_BYTES = 256 * 1024
PARQUET_MAGIC = b"PAR1"
_MAGIC = {
    b"\x1f\x8b": ".gz",
    b"\x28\xb5\x2f\xfd": ".zst",
    b"ARROW1\0\0": ".arrow",
    **{bytes([low]) + b"\x2a\x4d\x18": ".zst" for low in range(0x50, 0x60)},  # a frame to skip
}


def plain_name(name: str) -> str:
    """A path or name without the ending of its compression."""
    suffix = PurePath(name).suffix
    return name.removesuffix(suffix) if suffix.lower() in COMPRESSED_SUFFIXES else name


def open_text(path: Path) -> BinaryIO:
    """The bytes of a text file, decompressed as its ending says.

    Reading raises `CorpusError` ``corpus.damaged`` with the place where sound bytes end.

    Raises:
        ResourceError: ``resource.missing-package`` for `.zst`.
    """
    suffix = path.suffix.lower()
    if suffix == ".gz":
        unzipped = gzip.GzipFile(path, "rb")
        return io.BufferedReader(_Decompressed(path, unzipped.read1, unzipped.close), BUFFER_BYTES)
    if suffix == ".zst":
        frames = _ZstdFrames(path)
        return io.BufferedReader(_Decompressed(path, frames.read, frames.close), BUFFER_BYTES)
    return path.open("rb")


def is_binary(path: Path) -> bool:
    """Whether a file, once decompressed, holds a NUL near its start. One that cannot be opened may be text."""
    try:
        with open_text(path) as file:
            return b"\0" in file.read(PROBE_BYTES)
    except (CorpusError, ResourceError):
        return False


def true_suffix(path: Path) -> str:
    """`.gz`, `.zst`, `.parquet` or `.arrow` where a file begins like one, else nothing."""
    begin = _first_bytes(path)
    if begins_like_parquet(path):
        with path.open("rb") as file:  # text may begin so; what also ends so is Parquet
            file.seek(-len(PARQUET_MAGIC), io.SEEK_END)
            return ".parquet" if file.read() == PARQUET_MAGIC else ""
    return next((suffix for magic, suffix in _MAGIC.items() if begin.startswith(magic)), "")


def begins_like_parquet(path: Path) -> bool:
    return _first_bytes(path).startswith(PARQUET_MAGIC)


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(8)


class _Decompressed(io.RawIOBase):
    """Plain bytes for a buffered reader; what is wrong with the compressed ones is said with its place."""

    def __init__(self, path: Path, read: Callable[[int], bytes | memoryview], close: Callable[[], None]) -> None:
        self._path = path
        self._read = read
        self._close = close
        self._given = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        try:
            data = self._read(len(buffer))
        except EOFError:
            raise damaged(self._path, self._place(), "it is cut off, the rest is missing") from None
        except (zlib.error, gzip.BadGzipFile, ValueError) as error:
            raise damaged(self._path, self._place(), str(error)) from None
        buffer[: len(data)] = data
        self._given += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._close()
        super().close()

    def _place(self) -> str:
        return f"after {self._given:,} bytes of its text"


class _ZstdFrames:
    """Frame after frame of a `.zst` file.

    The library's own reader ends without a word where a frame is cut off; a frame of its own knows its end.
    """

    def __init__(self, path: Path) -> None:
        try:
            import zstandard
        except ImportError as error:
            raise missing_package(path, "zstd", error) from error
        self._new_frame = zstandard.ZstdDecompressor().decompressobj
        self._error = zstandard.ZstdError
        self._file = path.open("rb")
        self._frame: ZstdDecompressionObj | None = None
        self._rest = b""
        self._ready = memoryview(b"")

    def read(self, size: int) -> memoryview:
        """Up to `size` bytes; none at the end.

        Raises:
            EOFError: the last frame is cut off.
            ValueError: a frame is broken, or needs a window of more than 128 MiB.
        """
        while not self._ready:
            chunk = self._rest or self._file.read(ZSTD_STEP_BYTES)
            if not chunk:
                if self._frame is not None:
                    raise EOFError
                break
            self._frame = self._frame or self._new_frame()
            try:
                self._ready = memoryview(self._frame.decompress(chunk))
            except self._error as error:
                raise ValueError(str(error)) from error
            self._rest = b""
            if self._frame.eof:
                self._rest = self._frame.unused_data
                self._frame = None
        data, self._ready = self._ready[:size], self._ready[size:]
        return data

    def close(self) -> None:
        self._file.close()
