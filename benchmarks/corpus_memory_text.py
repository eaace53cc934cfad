"""Text of made-up words that is spread as words are: for measurements that ask how much, not what."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

NUM_WORDS = 30_000
ZIPF_EXPONENT = 1.05
SOURCES = ("alder", "birch", "cedar", "elder")
DOCUMENTS_A_CALL = 2_000
SYLLABLES = [c + v for c in ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z") for v in "aeiou"]


def write_corpus(path: Path, *, documents: int, mean_bytes: int = 420, seed: int = 0) -> int:
    """JSON lines of text, source and id, each document a group of its own; returns the bytes of text."""
    rng = np.random.default_rng(seed)
    words = np.array(sorted({"".join(rng.choice(SYLLABLES, rng.integers(1, 5))) for _ in range(2 * NUM_WORDS)}))
    words = rng.permutation(words)[:NUM_WORDS]
    rankings = [rng.permutation(words) for _ in SOURCES]
    chance = np.arange(1, len(words) + 1, dtype=np.float64) ** -ZIPF_EXPONENT
    ends = np.cumsum(chance / chance.sum())
    mean_word = float(np.mean([len(word) for word in words])) + 1
    total = 0
    with path.open("w", encoding="utf-8") as file:
        for begin in range(0, documents, DOCUMENTS_A_CALL):
            count = min(DOCUMENTS_A_CALL, documents - begin)
            lengths = np.maximum(5, rng.lognormal(np.log(mean_bytes / mean_word) - 0.5, 1.0, count)).astype(np.int64)
            ranks = np.minimum(np.searchsorted(ends, rng.random(int(lengths.sum()))), len(words) - 1)
            for number, drawn in enumerate(np.split(ranks, np.cumsum(lengths)[:-1]), begin):
                source = number % len(SOURCES)
                text = " ".join(rankings[source][drawn].tolist())
                total += len(text)
                file.write(json.dumps({"id": f"doc-{number:07d}", "text": text, "source": SOURCES[source]}) + "\n")
    return total
