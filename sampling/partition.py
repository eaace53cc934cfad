"""The partition artifact: text divided into named domains, and the way to place a new document among them.

docs/partition.md describes the JSON. A partition by source has names only; one by clusters names the
encoder and the tree that place a window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from potluck.errors import DataError, Refused, SpecError, UsageError
from potluck.ids import Digest, Json, canonical_json, is_digest, short
from potluck.jsontext import read_json
from sampling.bpe import EOD_ID, encode, load_tokenizer
from sampling.cluster_tree import Tree, assign_blocks
from sampling.embed import DEFAULT_BATCH, Encoder, decode, load_encoder
from sampling.embed_sentence import SentenceEncoder, read_encoder_manifest, unpack_encoder_folder
from sampling.rows import META_SOURCE, TokenRows
from sampling.taskio import BlobReader, TaskCall, TaskOutput

VERSION = 1
MAX_BYTES = 64 << 20
"""Of the JSON; names and leaves of 65,536 domains are a tenth of it."""
BLOCK = 1 << 16
"""Rows whose source is read at a time."""


@dataclass(frozen=True, kw_only=True)
class Centroids:
    """What places a window: an encoder and a tree."""

    encoder: Digest
    """A fitted encoder, or the manifest of a packed folder."""
    encoder_files: tuple[Digest, ...]
    """The folder's files; none for a fitted encoder."""
    tree: Digest
    leaves: tuple[int, ...]
    """The code of each domain's leaf: its path from the root as a number in base `branch`."""


@dataclass(frozen=True, kw_only=True)
class Partition:
    tokenizer: Digest
    sequence_length: int
    domains: tuple[str, ...]
    sizes: tuple[int, ...]
    """Rows of each domain in the split that it was made from."""
    centroids: Centroids | None
    """None: domains are the sources of the text."""

    def __post_init__(self) -> None:
        if len(set(self.domains)) != len(self.domains) or len(self.sizes) != len(self.domains) or not self.domains:
            what = f"{len(self.domains)} domains, {len(set(self.domains))} names, {len(self.sizes)} sizes"
            raise SpecError("spec.bad-partition", what, "give each domain one name of its own and one size")

    def to_json(self) -> str:
        blobs: dict[str, Json] = {"tokenizer": self.tokenizer}
        value: dict[str, Json] = {
            "version": VERSION,
            "kind": "clusters" if self.centroids else "source",
            "tokenizer": self.tokenizer,
            "sequence_length": self.sequence_length,
            "domains": self.domains,
            "sizes": self.sizes,
            "blobs": blobs,
        }
        if self.centroids is not None:
            value |= {
                "encoder": {
                    "kind": "sentence" if self.centroids.encoder_files else "lsi",
                    "digest": self.centroids.encoder,
                },
                "tree": self.centroids.tree,
                "leaves": self.centroids.leaves,
            }
            blobs |= {"encoder": self.centroids.encoder, "tree": self.centroids.tree}
            blobs |= {f"encoder-{i:03d}": digest for i, digest in enumerate(self.centroids.encoder_files)}
        return canonical_json(value)

    def check_tokenizer(self, tokenizer: Digest) -> None:
        """Raises:
        Refused: ``refused.other-tokenizer``: windows of other tokens are other windows.
        """
        if tokenizer != self.tokenizer:
            what = f"tokenizer {short(tokenizer)}, but the partition cuts text with {short(self.tokenizer)}"
            raise Refused("refused.other-tokenizer", what, "tokenise with the partition's tokenizer, or give text")


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where the windows of one document lie."""

    domains: np.ndarray
    """int64 [windows]."""
    distances: np.ndarray
    """float32 [windows]: squared, from the window's vector to its domain's centroid."""
    tokens: np.ndarray
    """int64 [windows]: targets in each; the last window may be short."""

    def histogram(self, num_domains: int) -> np.ndarray:
        """float64 [num_domains]: share of the document's tokens in each domain."""
        counts = np.bincount(self.domains, weights=self.tokens, minlength=num_domains)
        shares: np.ndarray = counts / self.tokens.sum()
        return shares

    @property
    def domain(self) -> int:
        """The domain of most tokens; the lower one of equals."""
        return int(np.bincount(self.domains, weights=self.tokens).argmax())


class Placer:
    """A partition by clusters with its tokenizer, encoder and tree in memory."""

    def __init__(self, partition: Partition, tokenizer: Path, encoder: Encoder, tree: Tree) -> None:
        self.partition = partition
        self._tokenizer = load_tokenizer(tokenizer)
        self._encoder = encoder
        self._tree = tree

    def place(self, texts: Sequence[str]) -> list[Placement]:
        """Places documents given as text.

        Raises:
            UsageError: ``usage.empty-text``.
        """
        for number, text in enumerate(texts):
            if not text.strip():
                raise UsageError("usage.empty-text", f"document {number} has no text", "give text to place")
        ids = [np.append(each, np.uint16(EOD_ID)) for each in encode(self._tokenizer, texts)]
        return self.place_tokens(ids, self.partition.tokenizer)

    def place_tokens(self, documents: Sequence[np.ndarray], tokenizer: Digest) -> list[Placement]:
        """Places documents given as ids of `tokenizer`, each of at least two.

        Raises:
            Refused: ``refused.other-tokenizer``.
        """
        self.partition.check_tokenizer(tokenizer)
        cut = [windows(ids, self.partition.sequence_length) for ids in documents]
        every = [window for each in cut for window in each]
        vectors = np.empty((len(every), self._encoder.dim), dtype=np.float32)
        for begin in range(0, len(every), DEFAULT_BATCH):
            texts = decode(self._tokenizer, every[begin : begin + DEFAULT_BATCH])
            vectors[begin : begin + len(texts)] = self._encoder.encode(texts)
        domains = np.empty(len(every), dtype=np.int64)
        distances = np.empty(len(every), dtype=np.float32)
        for begin, some, squared in assign_blocks(self._tree, vectors):
            domains[begin : begin + len(some)], distances[begin : begin + len(some)] = some, squared
        tokens = np.array([len(window) - 1 for window in every], dtype=np.int64)
        ends = np.cumsum([len(each) for each in cut])
        spans = [slice(int(end) - len(each), int(end)) for end, each in zip(ends, cut, strict=True)]
        return [Placement(domains=domains[s], distances=distances[s], tokens=tokens[s]) for s in spans]


def windows(ids: np.ndarray, sequence_length: int) -> list[np.ndarray]:
    """A document cut as rows are: S + 1 tokens with stride S, the last perhaps shorter."""
    return [ids[begin : begin + sequence_length + 1] for begin in range(0, max(1, len(ids) - 1), sequence_length)]


def read_partition(path: Path) -> Partition:
    """Raises:
    DataError: ``data.bad-partition``.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes")
        raw = read_json(path.read_bytes())
        if raw["version"] != VERSION:
            raise ValueError(f"version {str(raw['version'])[:80]!r}, not {VERSION}")
        return _parsed(raw)
    except (ValueError, KeyError, TypeError) as error:
        what = f"{path.name} is no partition: {error}"
        raise DataError("data.bad-partition", what, "name the blob `partition` of a task") from error


def load_placer(path: Path, blobs: BlobReader, scratch: Path) -> Placer:
    """A partition ready to place documents.

    Args:
        path: the partition's JSON.
        blobs: holds what its `blobs` lists.
        scratch: an existing folder; an encoder of many files is rebuilt in it.

    Raises:
        UsageError: ``usage.cannot-place``, a partition by source has nothing to place with.
        DataError: ``data.bad-partition``.
    """
    partition = read_partition(path)
    if partition.centroids is None:
        what = "a partition by source knows names, not text"
        raise UsageError("usage.cannot-place", what, "name the document's source, or cluster the corpus")
    encoder_path = blobs.path(partition.centroids.encoder)
    if partition.centroids.encoder_files:
        encoder: Encoder = SentenceEncoder(
            unpack_encoder_folder(read_encoder_manifest(encoder_path), blobs, scratch / "encoder")
        )
    else:
        encoder = load_encoder(encoder_path)
    tree = Tree.load(blobs.path(partition.centroids.tree))
    if tree.leaves.tolist() != list(partition.centroids.leaves):
        raise DataError("data.bad-partition", "the tree has other leaves than the partition", "make the cards again")
    return Placer(partition, blobs.path(partition.tokenizer), encoder, tree)


def assign_sources(call: TaskCall) -> TaskOutput:
    """Task `assign`, rule `sources`: each row of a split to the domain of its source, and that partition."""
    manifest = call.json("tokens_manifest")
    rows = TokenRows(manifest, call.blobs, str(call.params["split"]))
    labels = np.empty(len(rows), dtype=np.uint32)
    for begin in range(0, len(rows), BLOCK):
        chosen = np.arange(begin, min(begin + BLOCK, len(rows)), dtype=np.int64)
        labels[chosen] = rows.meta(chosen)[:, META_SOURCE]
        call.progress((begin + len(chosen)) / len(rows))
    sizes = np.bincount(labels, minlength=len(manifest["sources"])).tolist()
    partition = Partition(
        tokenizer=Digest(manifest["tokenizer"]),
        sequence_length=rows.sequence_length,
        domains=tuple(manifest["sources"]),
        sizes=tuple(sizes),
        centroids=None,
    )
    path = call.out / "partition.json"
    path.write_text(partition.to_json(), encoding="utf-8")
    return TaskOutput(
        files={"labels": call.write_array("labels", labels), "partition": path},
        figures={"domains": len(sizes), "counts": sizes},
    )


def _parsed(raw: Mapping[str, Any]) -> Partition:
    centroids = None
    if raw["kind"] == "clusters":
        blobs = raw["blobs"]
        files = sorted(name for name in blobs if str(name).startswith("encoder-"))
        centroids = Centroids(
            encoder=_digest(raw["encoder"]["digest"]),
            encoder_files=tuple(_digest(blobs[name]) for name in files),
            tree=_digest(raw["tree"]),
            leaves=_counts(raw["leaves"]),
        )
    elif raw["kind"] != "source":
        raise ValueError(f"kind {str(raw['kind'])[:80]!r}")
    if not all(isinstance(name, str) for name in raw["domains"]):
        raise ValueError("a domain's name is no text")
    (sequence_length,) = _counts([raw["sequence_length"]])
    if not sequence_length:
        raise ValueError("sequence_length is 0")
    return Partition(
        tokenizer=_digest(raw["tokenizer"]),
        sequence_length=sequence_length,
        domains=tuple(raw["domains"]),
        sizes=_counts(raw["sizes"]),
        centroids=centroids,
    )


def _digest(found: object) -> Digest:
    if not isinstance(found, str) or not is_digest(found):
        raise ValueError(f"{str(found)[:80]!r} is no digest")
    return Digest(found)


def _counts(found: Sequence[object]) -> tuple[int, ...]:
    counts = tuple(each for each in found if type(each) is int and each >= 0)
    if len(counts) != len(found):
        raise ValueError("a count is no whole number of 0 or more")
    return counts
