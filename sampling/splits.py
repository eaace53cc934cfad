"""Which group of text goes to train, valid or test.

Groups are drawn in the order of a keyed hash, source by source, so every source has valid and test
text, about a twentieth of its bytes each, and pieces of one document stay together. A source of fewer
than three groups cannot be split so: then its documents are drawn, or, with fewer than three
documents, its sections.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
HELD_OUT_FRACTION = 0.05
MIN_UNITS = 3
PIECE_PERIOD = 20
"""Of 20 successive sections of a source with one or two documents, one is valid and one is test."""


def draw(seed: int, *names: str) -> int:
    """A 64-bit hash that decides like chance: equal seed and names, equal draw."""
    text = "\0".join((str(seed), *names)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def split_units(names: Sequence[str], sizes: Sequence[int], *, seed: int, source: str) -> list[Split]:
    """Splits at least three units of one source: each split gets at least one.

    Units are taken in hash order until the split has its share; a unit of more than twice the share
    is passed over, unless no other is left: then the smallest is taken.
    """
    assert len(names) == len(sizes) >= MIN_UNITS, (source, len(names))
    order = sorted(range(len(names)), key=lambda i: (draw(seed, "split", source, names[i]), i))
    share = sum(sizes) * HELD_OUT_FRACTION
    result: list[Split] = ["train"] * len(names)
    free = order
    for split in ("test", "valid"):
        taken: list[int] = []
        total = 0
        for unit in free:
            if total >= share or len(free) - len(taken) <= 2:
                break
            if sizes[unit] <= 2 * share:
                taken.append(unit)
                total += sizes[unit]
        if not taken:
            taken = [min(free, key=lambda i: sizes[i])]
        for unit in taken:
            result[unit] = "test" if split == "test" else "valid"
        chosen = set(taken)
        free = [unit for unit in free if unit not in chosen]
    return result


def split_of_piece(ordinal: int, *, seed: int, source: str) -> Split:
    """The split of the source's section number `ordinal`, for a source of one or two documents."""
    place = (ordinal + draw(seed, "pieces", source)) % PIECE_PERIOD
    if place == 0:
        return "test"
    return "valid" if place == PIECE_PERIOD // 2 else "train"
