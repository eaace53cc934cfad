"""A twin of `coordinator.snapshots`: whole files or none, in memory; a bad disk may tear the newest, or alter it."""

from __future__ import annotations

import random

from coordinator.core.state import DurableState
from coordinator.snapshot import Mark, decode, encode, read_header
from potluck.ids import Digest, digest_bytes

CODE = Digest("0" * 64)
"""Of the code that runs, which stays the same here."""
KEPT = 2


class MemorySnapshots:
    def __init__(self) -> None:
        self._files: list[bytes] = []

    def save(self, durable: DurableState, mark: Mark) -> None:
        self._files = [*self._files, b"".join(encode(durable, mark, CODE))][-KEPT:]

    def damage(self, chance: random.Random) -> None:
        newest = self._files[-1]
        at = chance.randrange(len(newest))
        rest = b"" if chance.random() < 0.5 else bytes([newest[at] ^ 1]) + newest[at + 1 :]
        self._files[-1] = newest[:at] + rest

    def newest(self, rows: list[str]) -> tuple[Mark, DurableState] | None:
        """The newest that is whole and of these rows of the journal."""
        for data in reversed(self._files):
            try:
                mark = read_header(data).mark
                is_of_rows = digest_bytes(rows[mark.rows - 1].encode()) == mark.last_row
                if is_of_rows:
                    return mark, decode(data)
            except ValueError:
                continue
        return None
