"""Bytes of the targets that are scored: what bits per byte divide by.

Bits per byte = NLL in nats / (ln 2 x bytes of text), over the same targets. `<eod>` is scored and stands for no byte,
as is the first token of a pack for no target; so the figure is a little above that of the bare text. Tokens of
another tokenizer cover other stretches of text, bytes do not: of the three units only this one compares across them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from potluck.ids import Digest
from sampling.bpe import EOD_ID, load_tokenizer
from sampling.rows import META_TARGETS, TokenRows
from sampling.taskio import BlobReader

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ROWS_AT_ONCE = 4096
"""Bounds memory, however much text there is."""


def token_bytes(tokenizer: Tokenizer) -> np.ndarray:
    """int64 [vocabulary]: bytes of text that each token of a byte-level BPE stands for; `<eod>` stands for none.

    The byte-level alphabet writes each byte as one character.
    """
    sizes = np.zeros(tokenizer.get_vocab_size(), dtype=np.int64)
    for piece, token in tokenizer.get_vocab().items():
        sizes[token] = len(piece)
    sizes[EOD_ID] = 0
    return sizes


def target_bytes(manifest: Mapping[str, Any], blobs: BlobReader, rows: TokenRows, prefix: int) -> np.ndarray:
    """int64 [rows, 2]: bytes of each row's real targets 2..M, and of those after.

    Args:
        manifest: of the tokens; names their tokenizer.
        prefix: M.
    """
    sizes = token_bytes(load_tokenizer(blobs.path(Digest(manifest["tokenizer"]))))
    out = np.empty((len(rows), 2), dtype=np.int64)
    for begin in range(0, len(rows), ROWS_AT_ONCE):
        indices = np.arange(begin, min(begin + ROWS_AT_ONCE, len(rows)), dtype=np.int64)
        each = sizes[rows.take(indices)[:, 1:]]
        each[np.arange(each.shape[1]) >= rows.meta(indices)[:, META_TARGETS, None]] = 0
        out[indices, 0] = each[:, : prefix - 1].sum(axis=1)
        out[indices, 1] = each[:, prefix - 1 :].sum(axis=1)
    return out


def bits_per_byte(nll: float, num_bytes: int) -> float | None:
    """Of a sum of NLL in nats over targets of so many bytes; None where there is no byte or the sum is not finite."""
    value = nll / (math.log(2) * num_bytes) if num_bytes else math.nan
    return value if math.isfinite(value) else None
