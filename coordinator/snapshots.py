"""Snapshots beside the journal: written by one rename while the coordinator works on, found again at a start.

A snapshot that is torn, damaged, of other code or of another journal is passed over with a logged reason; with none
that is good the whole journal is replayed. Failing to write one costs time at the next start, and nothing else.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from coordinator.core.state import DurableState
from coordinator.journal import Journal
from coordinator.plain_json import copied
from coordinator.snapshot import FORMAT, Mark, decode, encode, read_header
from potluck.crashpoints import crash_here
from potluck.durable import sync_folder
from potluck.ids import Digest, digest_bytes
from potluck.telemetry import logger

MID_SNAPSHOT = "coordinator.mid-snapshot"
SNAPSHOT_ROWS = 10_000
"""Rows from one snapshot to the next: about so many are replayed in a second or two, and writing one costs less."""
KEPT = 2
"""The newest may be the one that a bad disk damaged."""

log = logger("coordinator.snapshots")


@dataclass(frozen=True, kw_only=True)
class Restored:
    durable: DurableState
    mark: Mark
    name: str


class SnapshotFolder:
    """The files, each named by the number of rows it covers; `code` is the digest of the code that runs."""

    def __init__(self, folder: Path, code: Digest) -> None:
        self._folder = folder
        self._code = code

    def save(self, durable: DurableState, mark: Mark) -> int:
        """Writes a snapshot, drops all but it and the one before; returns its bytes.

        Raises:
            OSError, ValueError: it was not written; the others are as before.
        """
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self._folder / f"{mark.rows:012d}.jsonl"
        temporary = path.with_suffix(".tmp")
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            lines = encode(durable, mark, self._code)
            file.writelines(itertools.islice(lines, 2))
            file.flush()
            crash_here(MID_SNAPSHOT)
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(self._folder)
        self._drop_all_but(path)
        return path.stat().st_size

    def newest(self, journal: Journal) -> Restored | None:
        """The newest good one that a prefix of the journal leads to, by today's code."""
        for path in reversed(self._snapshots()):
            try:
                return self._read(path, journal)
            except (OSError, ValueError, TypeError) as error:
                log.fact("snapshot-passed-over", file=path, reason=error)
        return None

    def _read(self, path: Path, journal: Journal) -> Restored:
        data = path.read_bytes()
        header = read_header(data)
        mark = header.mark
        if header.format != FORMAT:
            raise ValueError(f"it has format {header.format}, this release writes {FORMAT}")
        if header.code != self._code:
            raise ValueError("the coordinator's code or its settings have changed since")
        row = next(iter(journal.read_all(after=mark.rows - 1)), None)
        if row is None:
            raise ValueError(f"it is of {mark.rows} rows, and the journal has fewer")
        if digest_bytes(row.encode()) != mark.last_row:
            raise ValueError(f"row {mark.rows} of the journal is not the one that it was made at")
        return Restored(durable=decode(data), mark=mark, name=path.name)

    def _snapshots(self) -> list[Path]:
        return sorted(self._folder.glob("*.jsonl"))

    def _drop_all_but(self, newest: Path) -> None:
        """What is numbered higher is of another journal; what is a `.tmp` was cut short."""
        older = [path for path in self._snapshots() if path.name < newest.name]
        keep = {newest, *older[len(older) - KEPT + 1 :]}
        for path in (*self._snapshots(), *self._folder.glob("*.tmp")):
            if path not in keep:
                path.unlink(missing_ok=True)


class SnapshotTaker:
    """Takes snapshots of a state that others change: copied at once, written by a thread.

    The copy shares all that is frozen with the state, so it takes milliseconds; encoding, which takes twenty
    times as long, reads nothing that the owner of the state may change meanwhile.
    """

    def __init__(self, folder: SnapshotFolder, now_ms: Callable[[], int], every_rows: int = SNAPSHOT_ROWS) -> None:
        self._folder = folder
        self._now_ms = now_ms
        self._every_rows = every_rows
        self._saved_rows = 0
        self._saving: asyncio.Task[None] | None = None

    def restore(self, journal: Journal) -> Restored | None:
        found = self._folder.newest(journal)
        if found is not None:
            self._saved_rows = found.mark.rows
        return found

    def is_due(self, rows: int) -> bool:
        return rows - self._saved_rows >= self._every_rows and (self._saving is None or self._saving.done())

    def take(self, durable: DurableState, mark: Mark) -> None:
        """Copies the state, and leaves the rest to a thread."""
        began_ms = self._now_ms()
        copy = copied(durable)
        self._saved_rows = mark.rows
        self._saving = asyncio.create_task(self._save(copy, mark, began_ms, self._now_ms() - began_ms))

    async def finish(self, durable: DurableState, mark: Mark | None) -> None:
        """Waits for the snapshot under way; then takes a last one of `mark`, if anything has happened since."""
        if self._saving is not None:
            await self._saving
        if mark is not None and mark.rows > self._saved_rows:
            self.take(durable, mark)
            assert self._saving is not None
            await self._saving

    async def _save(self, copy: DurableState, mark: Mark, began_ms: int, copy_ms: int) -> None:
        try:
            num_bytes = await asyncio.to_thread(self._folder.save, copy, mark)
        except Exception as error:  # It would have been a shortcut: nobody's work ends for want of one.
            log.failure("snapshot-failed", error, rows=mark.rows)
        else:
            ms = self._now_ms() - began_ms
            log.fact("snapshot-taken", rows=mark.rows, bytes=num_bytes, loop_held_ms=copy_ms, ms=ms)
