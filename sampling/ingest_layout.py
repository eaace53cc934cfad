"""Decides what of a text goes where: which records are kept, and the split and shard of each group.

What is known of a record takes some 70 bytes, however long its names: groups are told apart by 16-byte digests.
"""

from __future__ import annotations

import heapq
from array import array
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

import numpy as np

from potluck.errors import CorpusError
from sampling.records import Record
from sampling.sections import SECTION_BYTES
from sampling.splits import MIN_UNITS, SPLITS, Sharing, Split, draw, split_drawn

SHARD_TARGET_BYTES = 15 * 1024 * 1024
"""Shards are filled evenly to about this; the rest is slack for the estimate."""
DIGEST_BYTES = 16
OTHER_SPLITS = {"test", "validation", "valid", "dev"}
"""Beside `train`, names of sources that are splits of a data set."""
_UNDECIDED = -1


@dataclass(kw_only=True)
class Index:
    """What the first pass learns; one entry a record in the arrays."""

    seed: int
    texts: bytearray = field(default_factory=bytearray)
    """Digests of the texts."""
    groups: bytearray = field(default_factory=bytearray)
    """Digests of source and group."""
    split_draws: array[int] = field(default_factory=lambda: array("Q"))
    shard_draws: array[int] = field(default_factory=lambda: array("Q"))
    """Of the record's group."""
    source_of: array[int] = field(default_factory=lambda: array("l"))
    text_bytes: array[int] = field(default_factory=lambda: array("q"))
    line_bytes: array[int] = field(default_factory=lambda: array("q"))
    sources: dict[str, int] = field(default_factory=dict)
    licences: dict[str, set[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.text_bytes)

    def add(self, record: Record) -> None:
        data = record.text.encode()
        self.texts += blake2b(data, digest_size=DIGEST_BYTES).digest()
        group = group_digest(record)
        if group == self.groups[-DIGEST_BYTES:]:
            self.split_draws.append(self.split_draws[-1])
            self.shard_draws.append(self.shard_draws[-1])
        else:
            self.split_draws.append(draw(self.seed, "split", record.source, record.group))
            self.shard_draws.append(draw(self.seed, "shard", record.source, record.group))
        self.groups += group
        self.source_of.append(self.sources.setdefault(record.source, len(self.sources)))
        self.text_bytes.append(len(data))
        escapes = data.count(b"\n") + data.count(b'"') + data.count(b"\\")
        names = len(record.id) + len(record.group) + len(record.source) + len(record.licence)
        sections = 1 + len(data) // (SECTION_BYTES // 2)
        self.line_bytes.append(len(data) + escapes + sections * (100 + 2 * names))
        self.licences.setdefault(record.source, set()).add(record.licence)

    def holds(self, number: int, record: Record) -> bool:
        """Whether record `number` had this source and group when it was added."""
        at = number * DIGEST_BYTES
        return number < len(self) and self.groups[at : at + DIGEST_BYTES] == group_digest(record)


@dataclass(kw_only=True)
class Layout:
    """What the second pass follows. Splits are numbers in `SPLITS`."""

    keep: np.ndarray  # bool [records]: not a duplicate
    group_of: np.ndarray  # int [records]
    group_source: np.ndarray  # int [groups]
    group_split: np.ndarray  # int8 [groups]
    group_shard: np.ndarray  # int [groups]
    document_split: np.ndarray  # int8 [records]: of sources with fewer than three groups, else undecided
    piece_bytes: dict[str, int]
    """Sources of one or two documents: the size of their sections, each split on its own."""
    num_shards: int
    notes: list[str]

    def split_of(self, record: int) -> Split:
        split = int(self.document_split[record])
        return SPLITS[int(self.group_split[self.group_of[record]]) if split == _UNDECIDED else split]

    def shard_of(self, record: int) -> int:
        return int(self.group_shard[self.group_of[record]])

    def num_groups(self) -> np.ndarray:
        """int [sources]: groups of which anything is kept."""
        met = np.unique(self.group_of[self.keep])
        return np.bincount(self.group_source[met], minlength=int(self.group_source.max()) + 1)


def group_digest(record: Record) -> bytes:
    named = f"{len(record.source)}:{record.source}{record.group}"
    return blake2b(named.encode(), digest_size=DIGEST_BYTES).digest()


def lay_out(index: Index, data: Path, sharing: Sharing) -> Layout:
    """Raises:
    CorpusError: ``corpus.empty``, ``corpus.too-small``.
    """
    count = len(index)
    if not count:
        raise CorpusError("corpus.empty", f"no text in {data}", "every record is blank: give it text")
    keep = first_occurrences(index.texts)
    sizes = np.frombuffer(index.text_bytes, dtype=np.int64) * keep
    total = int(sizes.sum())
    if total < sharing.least_bytes:
        what = f"{data} holds {total:,} bytes of distinct text"
        more = "five examples or more" if sharing.by_example else "some MB to learn from"
        raise CorpusError("corpus.too-small", what, f"give at least {sharing.least_bytes:,} bytes; {more}")
    group_of, first = numbered(index.groups)
    layout = Layout(
        keep=keep,
        group_of=group_of,
        group_source=np.frombuffer(index.source_of, dtype=index.source_of.typecode)[first],
        group_split=np.zeros(len(first), dtype=np.int8),
        group_shard=np.zeros(len(first), dtype=np.int32),
        document_split=np.full(count, _UNDECIDED, dtype=np.int8),
        piece_bytes={},
        num_shards=0,
        notes=[],
    )
    if int(keep.sum()) < count:
        layout.notes.append(f"dropped {count - int(keep.sum()):,} exact duplicates")
    if "train" in index.sources and index.sources.keys() & OTHER_SPLITS:
        layout.notes.append("splits of a data set are read together and drawn anew: leave out what must stay unseen")
    draws = np.frombuffer(index.split_draws, dtype=np.uint64)[first]
    for source in sorted(index.sources):
        _split_source(layout, index, source, sizes, draws, sharing)
    lines = np.bincount(group_of, weights=np.frombuffer(index.line_bytes, dtype=np.int64) * keep, minlength=len(first))
    _spread(layout, np.frombuffer(index.shard_draws, dtype=np.uint64)[first], lines)
    return layout


def first_occurrences(digests: bytes | bytearray) -> np.ndarray:
    """bool [n]: whether a 16-byte digest is the first of its kind."""
    _, first = numbered(digests)
    keep = np.zeros(len(digests) // DIGEST_BYTES, dtype=bool)
    keep[first] = True
    return keep


def numbered(digests: bytes | bytearray) -> tuple[np.ndarray, np.ndarray]:
    """int64 [n], the number of each 16-byte digest in the order of their first occurrence, and int64 [k], those places.

    Sorts, so it needs no hash table.
    """
    words = np.frombuffer(digests, dtype="<u8").reshape(-1, 2)
    order = np.lexsort((words[:, 1], words[:, 0]))  # stable: of equal digests the earliest comes first
    in_order = words[order]
    begins = np.ones(len(words), dtype=bool)
    begins[1:] = (in_order[1:] != in_order[:-1]).any(axis=1)
    first = order[begins]
    by_place = np.argsort(first)
    rank = np.empty(len(first), dtype=np.int64)
    rank[by_place] = np.arange(len(first))
    number = np.empty(len(words), dtype=np.int64)
    number[order] = rank[np.cumsum(begins) - 1]
    return number, first[by_place]


def _split_source(
    layout: Layout, index: Index, source: str, sizes: np.ndarray, draws: np.ndarray, sharing: Sharing
) -> None:
    """Splits the groups of a source, or with fewer than three its documents, or with fewer than three its sections."""
    of_source = layout.group_source == index.sources[source]
    group_bytes = np.bincount(layout.group_of, weights=sizes, minlength=len(of_source)).astype(np.int64)
    groups = np.flatnonzero(of_source & (group_bytes > 0))
    total = int(group_bytes[groups].sum())
    if not total:
        return
    if total < sharing.least_source_bytes:
        what = f"source {source!r} holds {total:,} bytes of distinct text"
        least = f"{sharing.least_source_bytes:,} bytes (valid and test come out of it)"
        fix = f"give each source at least {least}, or leave it out"
        raise CorpusError("corpus.too-small", what, fix)
    if len(groups) >= MIN_UNITS:
        layout.group_split[groups] = split_drawn(draws[groups], group_bytes[groups], held_out=sharing.held_out)
        return
    mine = np.flatnonzero(of_source[layout.group_of] & (sizes > 0))
    if len(mine) >= MIN_UNITS:
        layout.notes.append(f"source {source!r} has {len(groups)} group(s): its documents are split, not its groups")
        drawn = (draw(index.seed, "split", source, str(place)) for place in range(len(mine)))
        by_document = np.fromiter(drawn, dtype=np.uint64, count=len(mine))
        layout.document_split[mine] = split_drawn(by_document, sizes[mine], held_out=sharing.held_out)
        return
    layout.notes.append(f"source {source!r} has {len(mine)} document(s): its sections are split, not its documents")
    layout.piece_bytes[source] = min(SECTION_BYTES, max(1, total // sharing.pieces))


def _spread(layout: Layout, draws: np.ndarray, line_bytes: np.ndarray) -> None:
    """Gives each group, in hash order, to the emptiest shard."""
    layout.num_shards = max(1, -(-int(line_bytes.sum()) // SHARD_TARGET_BYTES))
    fill = [(0, shard) for shard in range(layout.num_shards)]
    for number in np.argsort(draws, kind="stable"):
        used, shard = fill[0]
        layout.group_shard[number] = shard
        heapq.heapreplace(fill, (used + int(line_bytes[number]), shard))
