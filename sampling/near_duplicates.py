"""Train rows that hold a target's test text: they would turn a test of learning into one of memory.

A shingle is a run of 13 tokens within one document. A row is marked when at least half of its shingles
occur in the target's test split: containment (Broder, 1997) by exact hashes, so no pair of texts is
compared. Memory is some 24 bytes a test token; the corpus is read once, block by block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from potluck.errors import DataError, SpecError
from potluck.ids import Json
from sampling.bpe import EOD_ID
from sampling.permute import mix
from sampling.rows import META_SOURCE, META_TARGETS, TokenRows
from sampling.taskio import TaskCall, TaskOutput

SHINGLE_TOKENS = 13
"""As GPT-3's overlap analysis (2005.14165, appendix C); 8 suits short text."""
CONTAINMENT = 0.5
BLOCK_TOKENS = 1 << 19
"""Tokens whose shingles are held at once: some 20 bytes each."""
_BASE = 0x9E3779B97F4A7C15


@dataclass(frozen=True, kw_only=True)
class Shingles:
    """A set of shingles."""

    hashes: np.ndarray
    """uint64, sorted, distinct."""
    heads: np.ndarray
    """bool [2^k]: whether any hash begins with these k bits. Most shingles of a corpus are refused by it alone."""

    @staticmethod
    def of(hashes: np.ndarray) -> Shingles:
        distinct = np.unique(hashes)
        heads = np.zeros(1 << (8 * len(distinct) + 1).bit_length(), dtype=bool)
        heads[_heads(distinct, len(heads))] = True
        return Shingles(hashes=distinct, heads=heads)

    def has(self, hashes: np.ndarray) -> np.ndarray:
        """bool, of the shape of `hashes`."""
        found: np.ndarray = self.heads[_heads(hashes, len(self.heads))]
        likely = hashes[found]
        if likely.size:
            at = np.minimum(np.searchsorted(self.hashes, likely), len(self.hashes) - 1)
            found[found] = self.hashes[at] == likely
        return found


def fit_near_duplicates(call: TaskCall) -> TaskOutput:
    """Task `fit`, what `near_duplicates`: uint8 [train rows], 1 where a row holds the target's test text.

    Inputs: `tokens_manifest` of the corpus and `target_manifest`, which may be the same; parameters
    `shingle` and `containment`.

    Raises:
        DataError: ``data.bad-tokens``, the two were made by different tokenizers.
        SpecError: ``spec.bad-value``.
    """
    shingle = int(call.params.get("shingle", SHINGLE_TOKENS))
    containment = float(call.params.get("containment", CONTAINMENT))
    corpus, target = call.json("tokens_manifest"), call.json("target_manifest")
    if corpus["tokenizer"] != target["tokenizer"]:
        fix = "tokenise the target with the corpus' tokenizer"
        raise DataError("data.bad-tokens", "corpus and target were made by different tokenizers", fix)
    longest = int(min(corpus["sequence_length"], target["sequence_length"])) + 1
    if not 1 <= shingle <= longest:
        raise SpecError("spec.bad-value", f"shingle = {shingle}", f"allowed: 1 to {longest}, the tokens of a row")
    if not 0 < containment <= 1:
        raise SpecError("spec.bad-value", f"containment = {containment}", "allowed: above 0, at most 1")
    known = target_shingles(TokenRows(target, call.blobs, "test"), shingle)
    call.progress(0.1)
    rows = TokenRows(corpus, call.blobs, "train")
    excluded = np.zeros(len(rows), dtype=np.uint8)
    sources = np.zeros((2, len(corpus["sources"])), dtype=np.int64)
    for chosen in _blocks(rows):
        excluded[chosen] = contained(rows.take(chosen), known, shingle) >= containment
        source = rows.meta(chosen)[:, META_SOURCE]
        sources[0] += np.bincount(source, minlength=sources.shape[1])
        sources[1] += np.bincount(source, weights=excluded[chosen], minlength=sources.shape[1]).astype(np.int64)
        call.progress(0.1 + 0.9 * (int(chosen[-1]) + 1) / len(rows))
    by_source: dict[str, Json] = {
        name: {"rows": int(total), "excluded": int(marked), "share": marked / total if total else 0.0}
        for name, total, marked in zip(corpus["sources"], sources[0].tolist(), sources[1].tolist(), strict=True)
    }
    count = int(excluded.sum())
    return TaskOutput(
        files={"excluded": call.write_array("excluded", excluded)},
        figures={
            "rows": len(rows),
            "excluded": count,
            "share": count / len(rows),
            "by_source": by_source,
            "shingle": shingle,
            "containment": containment,
            "target_shingles": len(known.hashes),
        },
    )


def target_shingles(rows: TokenRows, shingle: int) -> Shingles:
    """The shingles of all rows; padding is no text."""
    parts = []
    for chosen in _blocks(rows):
        hashes, whole = shingle_hashes(rows.take(chosen), shingle)
        ends = np.arange(shingle - 1, rows.sequence_length + 1)
        real = ends[None, :] <= rows.meta(chosen)[:, META_TARGETS, None]
        parts.append(np.unique(hashes[whole & real]))
    return Shingles.of(np.concatenate([np.empty(0, dtype=np.uint64), *parts]))


def contained(rows: np.ndarray, known: Shingles, shingle: int) -> np.ndarray:
    """float64 [n]: the share of the shingles of rows uint16 [n, S+1] that are known; 0 for a row without any."""
    hashes, whole = shingle_hashes(rows, shingle)
    share: np.ndarray = (known.has(hashes) & whole).sum(axis=1) / np.maximum(1, whole.sum(axis=1))
    return share


def shingle_hashes(rows: np.ndarray, shingle: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of all runs of `shingle` tokens, and whether each lies within one document.

    A polynomial in wrapped 64-bit arithmetic, then mixed: two different runs agree with chance 2^-64 or so.

    Returns:
        uint64 [n, S + 2 - shingle] and bool of the same shape.
    """
    count = rows.shape[1] + 1 - shingle
    hashes = np.zeros((len(rows), count), dtype=np.uint64)
    whole = np.ones((len(rows), count), dtype=bool)
    for offset in range(shingle):
        token = rows[:, offset : offset + count]
        hashes = hashes * np.uint64(_BASE) + token.astype(np.uint64) + np.uint64(1)
        whole &= token != EOD_ID
    return mix(hashes), whole


def _heads(hashes: np.ndarray, count: int) -> np.ndarray:
    return hashes >> np.uint64(65 - count.bit_length())


def _blocks(rows: TokenRows) -> Iterator[np.ndarray]:
    size = max(1, BLOCK_TOKENS // (rows.sequence_length + 1))
    return (np.arange(begin, min(begin + size, len(rows))) for begin in range(0, len(rows), size))
