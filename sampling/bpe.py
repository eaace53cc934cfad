"""Byte-level BPE: `<eod>` is id 0, and no text can spell it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from potluck.errors import DataError
from sampling.splits import draw

if TYPE_CHECKING:
    from tokenizers import Tokenizer

EOD = "<eod>"
EOD_ID = 0
ENCODE_BATCH = 512
"""Texts a call: enough to spread the overhead, few enough to stay small in memory."""
FIGURE_BYTES = 2_000_000
"""Text on which bytes per token is measured."""


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Trains a GPT-2-style byte-level BPE. Equal texts in equal order give an equal tokenizer.

    A text too small for the vocabulary gives a smaller one.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    assert tokenizer.token_to_id(EOD) == EOD_ID
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """Reads a tokenizer blob. A literal `<eod>` in text is encoded as text, not as the end.

    Raises:
        DataError: ``data.bad-tokenizer``.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises bare Exception
        raise DataError("data.bad-tokenizer", f"{path.name} is no tokenizer: {error}", "fit it again") from error
    tokenizer.encode_special_tokens = True
    return tokenizer


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    """uint16 ids of each text, no `<eod>` among them. The vocabulary is at most 65,536."""
    out: list[np.ndarray] = []
    for begin in range(0, len(texts), ENCODE_BATCH):
        batch = tokenizer.encode_batch_fast(list(texts[begin : begin + ENCODE_BATCH]), add_special_tokens=False)
        out.extend(np.array(encoding.ids, dtype=np.uint16) for encoding in batch)
    return out


def bytes_per_token(tokenizer: Tokenizer, texts: Sequence[str]) -> float:
    """Mean over the first megabytes of the texts, each text's `<eod>` counted."""
    chosen: list[str] = []
    total = 0
    for text in texts:
        if total >= FIGURE_BYTES:
            break
        chosen.append(text)
        total += len(text.encode())
    tokens = sum(len(ids) + 1 for ids in encode(tokenizer, chosen))
    return total / max(1, tokens)


def sample_train_text(shards: Sequence[Path], sample_bytes: int, train_bytes: int, seed: int) -> Iterator[str]:
    """Sections of the train split, drawn by a hash of their place, about `sample_bytes` in all.

    Where the draw takes nothing, as it may from a few long sections, the first one stands in.
    """
    threshold = min(1.0, sample_bytes / max(1, train_bytes)) * 2.0**64
    first = ""
    drawn = False
    for number, path in enumerate(shards):
        with path.open(encoding="utf-8") as lines:
            for place, line in enumerate(lines):
                if first and draw(seed, "bpe", str(number), str(place)) >= threshold:
                    continue
                section = json.loads(line)
                if section["split"] != "train":
                    continue
                first = first or section["text"]
                if draw(seed, "bpe", str(number), str(place)) < threshold:
                    drawn = True
                    yield section["text"]
    if not drawn:
        yield first
