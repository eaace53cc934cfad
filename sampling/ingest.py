"""Text in, document shards and a corpus manifest out: the first step of every run.

Two passes over the input. The first counts, hashes and groups, holding some 70 bytes a record; then splits
and shards are decided (`ingest_layout`); the second writes. The same input under the same seed gives the same
manifest digest, wherever it lies.

A shard holds a hash-drawn sample of all groups, so every shard looks like the corpus. The sections of
one document are successive lines with the same id.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from potluck.errors import CorpusError, UsageError
from potluck.ids import Digest, Json, canonical_json, digest_file
from sampling.ingest_layout import Index, Layout, lay_out
from sampling.records import Record, read_records
from sampling.records_folders import list_files
from sampling.sections import cut, cut_examples
from sampling.shards import ShardWriter
from sampling.splits import OF_A_CORPUS, SPLITS, Sharing, split_of_piece
from sampling.taskio import Progress


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
    index = Index(seed=seed)
    total = sum(path.stat().st_size for path in files) or 1
    seen = blank = 0

    def count_blank() -> None:
        nonlocal blank
        blank += 1

    for record in read_records(data, files, on_blank=count_blank):
        index.add(record)
        seen += index.text_bytes[-1]
        if len(index) % 1000 == 0:
            progress(min(0.5, 0.5 * seen / total))
    layout = lay_out(index, data, sharing)
    if passed_over:
        layout.notes.append(f"passed over {len(passed_over)} files that are not text, {passed_over[0].name} first")
    if blank:
        layout.notes.append(f"left out {blank:,} records with no text in them")
    writer = _Writer(out, layout, seed, sharing)
    number = 0
    for number, record in enumerate(read_records(data, files), 1):
        if not index.holds(number - 1, record):
            raise _changed(data)
        if layout.keep[number - 1]:
            writer.add(number - 1, record)
        if number % 1000 == 0:
            progress(0.5 + 0.5 * number / len(index))
    if number != len(index):
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


class _Writer:
    """Second pass: sends each document to its shard and split, and counts."""

    def __init__(self, out: Path, layout: Layout, seed: int, sharing: Sharing) -> None:
        self._out = out
        self._layout = layout
        self._seed = seed
        self._sharing = sharing
        self._shards = ShardWriter(out, layout.num_shards)
        self._pieces: dict[str, int] = {}
        self._documents: dict[str, int] = {}
        self._bytes: dict[str, dict[str, int]] = {}

    def add(self, number: int, record: Record) -> None:
        layout, source = self._layout, record.source
        self._documents[source] = self._documents.get(source, 0) + 1
        counted = self._bytes.setdefault(source, dict.fromkeys(SPLITS, 0))
        shard = layout.shard_of(number)
        piece_bytes = layout.piece_bytes.get(source)
        if piece_bytes is None:
            split = layout.split_of(number)
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

    def finish(self, index: Index) -> Ingested:
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

    def _sources(self, index: Index) -> dict[str, Json]:
        groups = self._layout.num_groups()
        return {
            source: {
                "documents": self._documents[source],
                "bytes": sum(by_split.values()),
                "groups": int(groups[index.sources[source]]),
                "splits": {split: by_split[split] for split in SPLITS},
                "licences": sorted(index.licences[source]),
            }
            for source, by_split in sorted(self._bytes.items())
        }
