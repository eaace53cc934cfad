"""Document shards: JSON lines of at most 16 MiB, one section a line, sections of a document in a run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from potluck.ids import canonical_json
from sampling.records import Record
from sampling.splits import Split

SHARD_BYTES = 16 * 1024 * 1024
WRITE_BYTES = 256 * 1024
"""Buffered per shard before its file is opened to append: no file stays open, whatever their number."""


class ShardWriter:
    """Appends documents to shards; a full shard gets a successor.

    Shard files of an earlier use of the folder are deleted.
    """

    def __init__(self, out: Path, num_shards: int) -> None:
        out.mkdir(parents=True, exist_ok=True)
        for old in out.glob("documents-*.jsonl"):
            old.unlink()
        self._out = out
        self._buffers: list[bytearray] = []
        self._bytes: list[int] = []
        self._documents: list[int] = []
        self._last_id: list[str] = []
        for _ in range(num_shards):
            self._open()
        self._current = list(range(num_shards))

    def add(self, shard: int, record: Record, identifier: str, split: Split, sections: Iterable[str]) -> int:
        """Writes one document; returns its bytes of text."""
        target = self._current[shard]
        if identifier == self._last_id[target]:
            identifier = f"{identifier}~{self._documents[target]}"  # else two documents would read as one
        text_bytes = 0
        opened = -1
        for text in sections:
            line = canonical_json(
                {
                    "id": identifier,
                    "text": text,
                    "source": record.source,
                    "group": record.group,
                    "licence": record.licence,
                    "split": split,
                }
            ).encode()
            if self._bytes[target] + len(line) + 1 > SHARD_BYTES:
                target = self._current[shard] = self._open()
            if target != opened:
                self._documents[target] += 1
                opened = target
            self._last_id[target] = identifier
            self._buffers[target] += line + b"\n"
            self._bytes[target] += len(line) + 1
            text_bytes += len(text.encode())
            if len(self._buffers[target]) > WRITE_BYTES:
                self._flush(target)
        return text_bytes

    def finish(self) -> list[tuple[Path, int]]:
        """(file, documents) of each shard that holds any, in order."""
        for shard in range(len(self._buffers)):
            self._flush(shard)
        return [(self._path(shard), count) for shard, count in enumerate(self._documents) if count]

    def _open(self) -> int:
        self._buffers.append(bytearray())
        self._bytes.append(0)
        self._documents.append(0)
        self._last_id.append("")
        return len(self._buffers) - 1

    def _flush(self, shard: int) -> None:
        if self._buffers[shard]:
            with self._path(shard).open("ab") as file:
                file.write(self._buffers[shard])
            self._buffers[shard].clear()

    def _path(self, shard: int) -> Path:
        return self._out / f"documents-{shard:05d}.jsonl"
