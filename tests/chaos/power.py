"""What a power cut leaves of a journal: the last group, whose caller had no answer yet, is torn off."""

from __future__ import annotations

import shutil
from pathlib import Path

from coordinator.journal import read_closed

HEADER, FRAME = 32, 24
"""Bytes of a write-ahead log's header, and of a frame's before its page (SQLite file format, section 4)."""


def tear_last_group(home: Path, scratch: Path) -> int:
    """Cuts the log in the middle of the last committed group; returns how many rows are gone with it.

    The home is a dead coordinator's. Rows are counted in copies, for whoever opens a journal writes to it.
    """
    log = home / "journal.db-wal"
    before = rows_of(home, scratch / "before")
    starts = _group_ends(log.read_bytes())
    with log.open("r+b") as file:
        file.truncate((starts[-2] + starts[-1]) // 2)
    after = rows_of(home, scratch / "after")
    assert after == before[: len(after)]
    return len(before) - len(after)


def rows_of(home: Path, scratch: Path) -> list[str]:
    scratch.mkdir(parents=True)
    for path in home.glob("journal.db*"):
        shutil.copy(path, scratch)
    return list(read_closed(scratch / "journal.db"))


def _group_ends(log: bytes) -> list[int]:
    """Where each committed group of the log ends, and where the first begins."""
    page = int.from_bytes(log[8:12], "big")
    salt = log[16:24]
    ends = [HEADER]
    for start in range(HEADER, len(log) - FRAME - page + 1, FRAME + page):
        if log[start + 8 : start + 16] != salt:
            break  # Frames of before the log was last begun anew.
        if int.from_bytes(log[start + 4 : start + 8], "big"):
            ends.append(start + FRAME + page)
    assert len(ends) > 1
    return ends
