"""Text in, document shards and a corpus manifest out: the first step of every run.

Two passes over the input. The first counts, hashes and groups, holding some 40 bytes a record and one
entry a group; then splits and shards are decided; the second writes. The same input under the same
seed gives the same manifest digest, wherever it lies.

A shard holds a hash-drawn sample of all groups, so every shard looks like the corpus. The sections of
one document are successive lines with the same id.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

import numpy as np

from potluck.errors import CorpusError, UsageError
from potluck.ids import Digest, Json, canonical_json, digest_file
from sampling.records import Record, read_records
from sampling.records_folders import list_files
from sampling.sections import SECTION_BYTES, cut, cut_examples
from sampling.shards import ShardWriter
from sampling.splits import (
    MIN_UNITS,
    OF_A_CORPUS,
    SPLITS,
    Sharing,
    Split,
    draw,
    split_of_piece,
    split_units,
)
from sampling.taskio import Progress

SHARD_TARGET_BYTES = 15 * 1024 * 1024
"""Shards are filled evenly to about this; the rest is slack for the estimate."""
OTHER_SPLITS = {"test", "validation", "valid", "dev"}
"""Beside `train`, names of sources that are splits of a data set."""


@dataclass(frozen=True, kw_only=True)
class Ingested:
    digest: Digest
    """Of the corpus manifest."""
    path: Path
    files: Mapping[Digest, Path]
    """Every blob, the manifest included."""
    manifest: Mapping[str, Json]
    notes: tuple[str, ...]
    """What a person should know: files passed over, sources split inside documents, duplicates."""


@dataclass(kw_only=True)
class _Index:
    """What the first pass learns; one entry a record in the arrays."""

    digests: bytearray = field(default_factory=bytearray)
    group_of: array[int] = field(default_factory=lambda: array("q"))
    text_bytes: array[int] = field(default_factory=lambda: array("q"))
    line_bytes: array[int] = field(default_factory=lambda: array("q"))
    groups: dict[tuple[str, str], int] = field(default_factory=dict)
    licences: dict[str, set[str]] = field(default_factory=dict)

    def add(self, record: Record) -> None:
        data = record.text.encode()
        self.digests += blake2b(data, digest_size=16).digest()
        self.group_of.append(self.groups.setdefault((record.source, record.group), len(self.groups)))
        self.text_bytes.append(len(data))
        escapes = data.count(b"\n") + data.count(b'"') + data.count(b"\\")
        names = len(record.id) + len(record.group) + len(record.source) + len(record.licence)
        sections = 1 + len(data) // (SECTION_BYTES // 2)
        self.line_bytes.append(len(data) + escapes + sections * (100 + 2 * names))
        self.licences.setdefault(record.source, set()).add(record.licence)


@dataclass(kw_only=True)
class _Layout:
    """What the second pass follows."""

    keep: np.ndarray  # bool [records]: not a duplicate
    group_split: list[Split]
    document_split: dict[int, Split]
    """Records of sources with fewer than three groups."""
    piece_bytes: dict[str, int]
    """Sources of one or two documents: the size of their sections, each split on its own."""
    group_shard: list[int]
    num_shards: int
    notes: list[str]


def ingest(
    data: Path,
    out: Path,
    *,
    seed: int = 0,
    sharing: Sharing = OF_A_CORPUS,
    progress: Progress = lambda _: None,
) -> Ingested:
    """Reads a folder or file of text and writes shards and manifest into `out`.

    Args:
        data: a file of plain text, JSON lines or a table, or a folder of such (see `sampling.records`).
        out: created if need be; shards of an earlier call there are replaced.
        seed: of the splits and of the spread over shards.
        sharing: how much is held out; `OF_A_TARGET` for a few examples.
        progress: fraction done.

    Raises:
        CorpusError: ``corpus.missing``, ``corpus.empty``, ``corpus.not-utf8``, ``corpus.not-json``,
            ``corpus.no-text-field``, ``corpus.damaged``, ``corpus.wrong-ending``, ``corpus.too-long``,
            ``corpus.too-small``, ``corpus.too-few-examples``, ``corpus.changed``.
        ResourceError: ``resource.missing-package``.
        UsageError: ``usage.out-inside-data``.
    """
    files, passed_over = list_files(data)
    _refuse_inside(out, data)
    index = _Index()
    total = sum(path.stat().st_size for path in files) or 1
    seen = blank = 0

    def count_blank() -> None:
        nonlocal blank
        blank += 1

    for record in read_records(data, files, on_blank=count_blank):
        index.add(record)
        seen += index.text_bytes[-1]
        if len(index.text_bytes) % 1000 == 0:
            progress(min(0.5, 0.5 * seen / total))
    layout = _lay_out(index, data, seed, sharing)
    if passed_over:
        layout.notes.append(f"passed over {len(passed_over)} files that are not text, {passed_over[0].name} first")
    if blank:
        layout.notes.append(f"left out {blank:,} records with no text in them")
    writer = _Writer(out, layout, seed, sharing)
    number = 0
    for number, record in enumerate(read_records(data, files), 1):
        if number > len(layout.keep) or (record.source, record.group) not in index.groups:
            raise _changed(data)
        if layout.keep[number - 1]:
            writer.add(number - 1, record, index.groups[record.source, record.group])
        if number % 1000 == 0:
            progress(0.5 + 0.5 * number / len(layout.keep))
    if number != len(layout.keep):
        raise _changed(data)
    writer.require_splits(data)
    progress(1.0)
    return writer.finish(index)


def _refuse_inside(out: Path, data: Path) -> None:
    """Shards among the texts would be read as text the next time; hidden folders are never read."""
    inside = out.resolve().is_relative_to(data.resolve())
    if inside and not any(part.startswith(".") for part in out.resolve().relative_to(data.resolve()).parts):
        raise UsageError("usage.out-inside-data", f"{out} lies inside {data}", "write the shards somewhere else")


def _changed(data: Path) -> CorpusError:
    return CorpusError("corpus.changed", f"{data} changed while it was read", "read it again when it is at rest")


def _lay_out(index: _Index, data: Path, seed: int, sharing: Sharing) -> _Layout:
    count = len(index.text_bytes)
    if not count:
        raise CorpusError("corpus.empty", f"no text in {data}", "every record is blank: give it text")
    keep = first_occurrences(index.digests)
    sizes = np.frombuffer(index.text_bytes, dtype=np.int64) * keep
    group_of = np.frombuffer(index.group_of, dtype=np.int64)
    total = int(sizes.sum())
    if total < sharing.least_bytes:
        what = f"{data} holds {total:,} bytes of distinct text"
        more = "five examples or more" if sharing.by_example else "some MB to learn from"
        raise CorpusError("corpus.too-small", what, f"give at least {sharing.least_bytes:,} bytes; {more}")
    group_bytes = np.bincount(group_of, weights=sizes, minlength=len(index.groups)).astype(np.int64)
    layout = _Layout(
        keep=keep,
        group_split=["train"] * len(index.groups),
        document_split={},
        piece_bytes={},
        group_shard=[],
        num_shards=0,
        notes=[],
    )
    if int(keep.sum()) < count:
        layout.notes.append(f"dropped {count - int(keep.sum()):,} exact duplicates")
    by_source: dict[str, list[tuple[str, int]]] = {}
    for (source, group), number in index.groups.items():
        if group_bytes[number]:
            by_source.setdefault(source, []).append((group, number))
    if "train" in by_source and by_source.keys() & OTHER_SPLITS:
        layout.notes.append("splits of a data set are read together and drawn anew: leave out what must stay unseen")
    for source, groups in sorted(by_source.items()):
        _split_source(layout, source, groups, group_bytes, (group_of, sizes), seed, sharing)
    lines = np.frombuffer(index.line_bytes, dtype=np.int64) * keep
    _spread(layout, list(index.groups), np.bincount(group_of, weights=lines, minlength=len(index.groups)), seed)
    return layout


def first_occurrences(digests: bytes | bytearray) -> np.ndarray:
    """bool [n]: whether a 16-byte digest is the first of its kind. Sorts, so it needs no hash table."""
    words = np.frombuffer(digests, dtype="<u8").reshape(-1, 2)
    order = np.lexsort((words[:, 1], words[:, 0]))  # stable: of equal digests the earliest comes first
    in_order = words[order]
    keep = np.ones(len(words), dtype=bool)
    keep[order[1:]] = (in_order[1:] != in_order[:-1]).any(axis=1)
    return keep


def _split_source(
    layout: _Layout,
    source: str,
    groups: list[tuple[str, int]],
    group_bytes: np.ndarray,
    documents: tuple[np.ndarray, np.ndarray],
    seed: int,
    sharing: Sharing,
) -> None:
    total = int(sum(group_bytes[number] for _, number in groups))
    if total < sharing.least_source_bytes:
        what = f"source {source!r} holds {total:,} bytes of distinct text"
        least = f"{sharing.least_source_bytes:,} bytes (valid and test come out of it)"
        fix = f"give each source at least {least}, or leave it out"
        raise CorpusError("corpus.too-small", what, fix)
    if len(groups) >= MIN_UNITS:
        names = [name for name, _ in groups]
        sizes_of = [int(group_bytes[n]) for _, n in groups]
        splits = split_units(names, sizes_of, seed=seed, source=source, held_out=sharing.held_out)
        for (_, number), split in zip(groups, splits, strict=True):
            layout.group_split[number] = split
        return
    group_of, sizes = documents
    mine = np.flatnonzero(np.isin(group_of, [number for _, number in groups]) & (sizes > 0))
    if len(mine) >= MIN_UNITS:
        layout.notes.append(f"source {source!r} has {len(groups)} group(s): its documents are split, not its groups")
        names = [str(i) for i in range(len(mine))]
        splits = split_units(names, sizes[mine].tolist(), seed=seed, source=source, held_out=sharing.held_out)
        layout.document_split.update(zip(mine.tolist(), splits, strict=True))
        return
    layout.notes.append(f"source {source!r} has {len(mine)} document(s): its sections are split, not its documents")
    layout.piece_bytes[source] = min(SECTION_BYTES, max(1, total // sharing.pieces))


def _spread(layout: _Layout, names: list[tuple[str, str]], line_bytes: np.ndarray, seed: int) -> None:
    """Gives each group, in hash order, to the emptiest shard."""
    layout.num_shards = max(1, -(-int(line_bytes.sum()) // SHARD_TARGET_BYTES))
    layout.group_shard = [0] * len(names)
    fill = [(0, shard) for shard in range(layout.num_shards)]
    for number in sorted(range(len(names)), key=lambda n: (draw(seed, "shard", *names[n]), n)):
        used, shard = fill[0]
        layout.group_shard[number] = shard
        heapq.heapreplace(fill, (used + int(line_bytes[number]), shard))


class _Writer:
    """Second pass: sends each document to its shard and split, and counts."""

    def __init__(self, out: Path, layout: _Layout, seed: int, sharing: Sharing) -> None:
        self._out = out
        self._layout = layout
        self._seed = seed
        self._sharing = sharing
        self._shards = ShardWriter(out, layout.num_shards)
        self._pieces: dict[str, int] = {}
        self._documents: dict[str, int] = {}
        self._bytes: dict[str, dict[str, int]] = {}

    def add(self, number: int, record: Record, group: int) -> None:
        layout, source = self._layout, record.source
        self._documents[source] = self._documents.get(source, 0) + 1
        counted = self._bytes.setdefault(source, dict.fromkeys(SPLITS, 0))
        shard = layout.group_shard[group]
        piece_bytes = layout.piece_bytes.get(source)
        if piece_bytes is None:
            split = layout.document_split.get(number) or layout.group_split[group]
            counted[split] += self._shards.add(shard, record, record.id, split, cut(record.text))
            return
        pieces = cut_examples if self._sharing.by_example else cut
        for piece in pieces(record.text, piece_bytes):
            ordinal = self._pieces.get(source, 0)
            self._pieces[source] = ordinal + 1
            split = split_of_piece(ordinal, seed=self._seed, source=source, period=self._sharing.piece_period)
            counted[split] += self._shards.add(shard, record, f"{record.id}~{ordinal}", split, [piece])

    def require_splits(self, data: Path) -> None:
        """Raises:
        CorpusError: ``corpus.too-few-examples``, a split has no text at all.
        """
        totals = {split: sum(counted[split] for counted in self._bytes.values()) for split in SPLITS}
        if not all(totals.values()):
            units = sum(self._pieces.get(source, count) for source, count in self._documents.items())
            got = ", ".join(f"{split} {size:,}" for split, size in totals.items())
            what = f"{data} holds {units} examples, too few to divide; bytes of text by split: {got}"
            fix = "give at least five examples, each a file, a line or a paragraph"
            raise CorpusError("corpus.too-few-examples", what, fix)

    def finish(self, index: _Index) -> Ingested:
        files: dict[Digest, Path] = {}
        shards: list[Json] = []
        blobs: dict[str, Json] = {}
        for path, documents in self._shards.finish():
            digest = digest_file(path)
            files[digest] = path
            blobs[f"documents-{len(shards):05d}"] = digest
            shards.append({"digest": digest, "bytes": path.stat().st_size, "documents": documents})
        sources = self._sources(index)
        manifest: dict[str, Json] = {
            "kind": "corpus",
            "version": 1,
            "blobs": blobs,
            "shards": shards,
            "sources": sources,
            "documents": sum(self._documents.values()),
            "bytes": sum(sum(by_split.values()) for by_split in self._bytes.values()),
            "duplicates_dropped": len(self._layout.keep) - int(self._layout.keep.sum()),
        }
        path = self._out / "corpus.json"
        path.write_text(canonical_json(manifest), encoding="utf-8")
        digest = digest_file(path)
        files[digest] = path
        return Ingested(digest=digest, path=path, files=files, manifest=manifest, notes=tuple(self._layout.notes))

    def _sources(self, index: _Index) -> dict[str, Json]:
        kept = set(np.frombuffer(index.group_of, dtype=np.int64)[self._layout.keep].tolist())
        groups: dict[str, int] = {}
        for (source, _), number in index.groups.items():
            groups[source] = groups.get(source, 0) + (number in kept)
        return {
            source: {
                "documents": self._documents[source],
                "bytes": sum(by_split.values()),
                "groups": groups[source],
                "splits": {split: by_split[split] for split in SPLITS},
                "licences": sorted(index.licences[source]),
            }
            for source, by_split in sorted(self._bytes.items())
        }
