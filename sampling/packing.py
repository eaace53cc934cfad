"""Documents into rows `[n, S+1]`: stride S, so that every token after the first is a target once.

Packing `document` keeps a row within one source: consecutive text of one document or of neighbours.
Packing `shuffled` is the control: documents of all sources in an order drawn by the seed; a row's
source is then that of its first token.

Train rows are full; what does not fill a last row is left out. Held-out text goes into packs: whole
documents, closed at a document's end once S+1 tokens are in, the last row padded with `<eod>` and its
real targets counted. Packs are independent, rows of a pack are not: the pack is the bootstrap unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sampling.bpe import EOD_ID
from sampling.permute import permute


@dataclass(frozen=True, kw_only=True)
class Document:
    source: int
    tokens: np.ndarray
    """uint16, `<eod>` last."""


@dataclass(frozen=True, kw_only=True)
class Packed:
    rows: np.ndarray
    """uint16 [n, S+1]."""
    meta: np.ndarray
    """int32 [n, 3]: source, pack id (-1 in train), real targets."""
    num_packs: int

    @property
    def num_targets(self) -> int:
        return int(self.meta[:, 2].sum())


def order_documents(documents: Sequence[Document], *, packing: str, seed: int) -> list[list[Document]]:
    """Documents in the order they are packed; text of different lists never shares a row."""
    if packing == "shuffled":
        count = len(documents)
        order = permute(np.arange(count), count, seed) if count else np.empty(0, dtype=np.int64)
        return [[documents[i] for i in order.tolist()]]
    assert packing == "document", packing
    by_source: dict[int, list[Document]] = {}
    for document in documents:
        by_source.setdefault(document.source, []).append(document)
    return [by_source[source] for source in sorted(by_source)]


def pack_train(lists: Sequence[Sequence[Document]], sequence_length: int) -> Packed:
    """Full rows, document after document."""
    rows, meta = [], []
    for documents in lists:
        tokens, ends = _joined(documents)
        count = max(0, (len(tokens) - 1) // sequence_length)
        if count:
            rows.append(_strided(tokens[: count * sequence_length + 1], sequence_length))
            first = np.arange(count) * sequence_length
            meta.append(_meta(_sources_at(documents, ends, first), -1, np.full(count, sequence_length)))
    return _packed(rows, meta, 0, sequence_length)


def pack_held_out(lists: Sequence[Sequence[Document]], sequence_length: int) -> Packed:
    """Packs of whole documents, every target counted once."""
    rows, meta = [], []
    num_packs = 0
    for documents in lists:
        for pack in _packs(documents, sequence_length):
            tokens, ends = _joined(pack)
            targets = len(tokens) - 1
            count = -(-targets // sequence_length)
            padded = np.full(count * sequence_length + 1, EOD_ID, dtype=np.uint16)
            padded[: len(tokens)] = tokens
            first = np.arange(count) * sequence_length
            rows.append(_strided(padded, sequence_length))
            sources = _sources_at(pack, ends, first)
            meta.append(_meta(sources, num_packs, np.minimum(targets - first, sequence_length)))
            num_packs += 1
    return _packed(rows, meta, num_packs, sequence_length)


def _packs(documents: Sequence[Document], sequence_length: int) -> list[list[Document]]:
    packs: list[list[Document]] = []
    pack: list[Document] = []
    size = 0
    for document in documents:
        pack.append(document)
        size += len(document.tokens)
        if size >= sequence_length + 1:
            packs.append(pack)
            pack, size = [], 0
    if size >= 2:
        packs.append(pack)
    return packs


def _joined(documents: Sequence[Document]) -> tuple[np.ndarray, np.ndarray]:
    """All tokens, and where each document ends among them."""
    if not documents:
        return np.empty(0, dtype=np.uint16), np.empty(0, dtype=np.int64)
    ends = np.cumsum([len(document.tokens) for document in documents])
    return np.concatenate([document.tokens for document in documents]), ends


def _sources_at(documents: Sequence[Document], ends: np.ndarray, places: np.ndarray) -> np.ndarray:
    """int32 [places]: the sources of the documents that hold the tokens at these places."""
    sources = np.array([document.source for document in documents], dtype=np.int32)
    return sources[np.searchsorted(ends, places, side="right")]


def _strided(tokens: np.ndarray, sequence_length: int) -> np.ndarray:
    """[n S + 1] -> [n, S+1]; the last token of a row is the first of the next."""
    windows = np.lib.stride_tricks.sliding_window_view(tokens, sequence_length + 1)
    return np.array(windows[::sequence_length])


def _meta(source: np.ndarray, pack: int, targets: np.ndarray) -> np.ndarray:
    return np.stack([source, np.full(len(source), pack), targets], axis=1).astype(np.int32)


def _packed(rows: list[np.ndarray], meta: list[np.ndarray], num_packs: int, sequence_length: int) -> Packed:
    return Packed(
        rows=np.concatenate([np.empty((0, sequence_length + 1), dtype=np.uint16), *rows]),
        meta=np.concatenate([np.empty((0, 3), dtype=np.int32), *meta]),
        num_packs=num_packs,
    )
