"""Which group of text goes to train, valid or test.

Groups are drawn in the order of a keyed hash, source by source, so every source has valid and test
text, about a twentieth of its bytes each, and pieces of one document stay together. A source of fewer
than three groups cannot be split so: then its documents are drawn, or, with fewer than three
documents, its sections.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
HELD_OUT_FRACTION = 0.05
MIN_UNITS = 3


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """How much of a text is held out, and how little text there may be."""

    held_out: float
    """Share of each source's bytes that is test, and as much is valid."""
    piece_period: int
    """Of so many successive sections of a source with one or two documents, one is valid and one is test."""
    pieces: int
    """Into about so many sections such a source is cut."""
    by_example: bool
    """They end where a paragraph or a line does, and one that is long stays whole."""
    least_bytes: int
    least_source_bytes: int


OF_A_CORPUS = Sharing(
    held_out=HELD_OUT_FRACTION,
    piece_period=20,
    pieces=32,
    by_example=False,
    least_bytes=32 * 1024,
    least_source_bytes=1024,
)
OF_A_TARGET = Sharing(held_out=0.15, piece_period=5, pieces=50, by_example=True, least_bytes=512, least_source_bytes=1)
"""A few examples of what a specialist is for: more of them is test, or no difference could be told."""


def draw(seed: int, *names: str) -> int:
    """A 64-bit hash that decides like chance: equal seed and names, equal draw."""
    text = "\0".join((str(seed), *names)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def split_drawn(draws: np.ndarray, sizes: np.ndarray, *, held_out: float = HELD_OUT_FRACTION) -> np.ndarray:
    """Splits at least three units of one source: each split gets at least one.

    Units are taken in the order of their draws until the split has its share; a unit of more than twice the share
    is passed over, unless no other is left: then the smallest is taken.

    Returns:
        int8 [n], places in `SPLITS`.
    """
    assert len(draws) == len(sizes) >= MIN_UNITS, len(draws)
    share = int(sizes.sum()) * held_out
    result = np.full(len(draws), SPLITS.index("train"), dtype=np.int8)
    free = np.argsort(draws, kind="stable")
    for split in ("test", "valid"):
        taken: list[int] = []
        total = 0
        for unit in free:
            if total >= share or len(free) - len(taken) <= 2:
                break
            if sizes[unit] <= 2 * share:
                taken.append(int(unit))
                total += int(sizes[unit])
        if not taken:
            taken = [int(free[np.argmin(sizes[free])])]
        result[taken] = SPLITS.index(split)
        free = free[~np.isin(free, taken)]
    return result


def split_of_piece(ordinal: int, *, seed: int, source: str, period: int = OF_A_CORPUS.piece_period) -> Split:
    """The split of the source's section number `ordinal`, for a source of one or two documents."""
    place = (ordinal + draw(seed, "pieces", source)) % period
    if place == 0:
        return "test"
    return "valid" if place == period // 2 else "train"
