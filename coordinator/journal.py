"""The journal: rows of text that are on disk before anything that follows from them leaves.

`SqliteJournal` is one SQLite file in WAL mode with synchronous=FULL, written by one thread that
commits all rows that wait as one group. `MemoryJournal` is its twin for tests. A failed append is
final: the journal takes nothing more, and the process is expected to end.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from potluck.errors import DataError, ResourceError

FORMAT = 1
"""Of the file's tables, in `PRAGMA user_version`; the rows say their own type."""
GROUP_ROWS = 4096
"""Most rows of one commit, so that the first of them waits for no more than a few dozen milliseconds."""
CACHE_KIB = 4096


class Journal(Protocol):
    async def append(self, rows: Sequence[str]) -> None:
        """Returns once all rows are durable, in order, after those of earlier calls.

        Raises:
            ResourceError: ``resource.disk-full`` or ``resource.journal``: nothing of this call is on disk,
                and nothing will be of any later one, for a later row must not outlive an earlier.
        """

    def read_all(self) -> Iterator[str]:
        """All durable rows, oldest first."""

    def close(self) -> None:
        """Waits for the appends under way, then lets go of the file."""


class MemoryJournal:
    """The twin: durable for as long as the object lives. `capacity_rows` plays the full disk."""

    def __init__(self, rows: Sequence[str] = (), *, capacity_rows: int | None = None) -> None:
        self.rows = list(rows)
        self._capacity_rows = capacity_rows
        self._broken: ResourceError | None = None

    async def append(self, rows: Sequence[str]) -> None:
        if self._broken is not None:
            raise self._broken
        if self._capacity_rows is not None and len(self.rows) + len(rows) > self._capacity_rows:
            self._broken = _disk_full("memory")
            raise self._broken
        self.rows.extend(rows)
        await asyncio.sleep(0)

    def read_all(self) -> Iterator[str]:
        yield from tuple(self.rows)

    def close(self) -> None:
        self._broken = self._broken or _closed("memory")


@dataclass(frozen=True, kw_only=True)
class _Append:
    rows: tuple[str, ...]
    done: asyncio.Future[None]
    loop: asyncio.AbstractEventLoop


class SqliteJournal:
    """Opens or makes the journal at `path`, for this process alone.

    Raises:
        ResourceError: ``resource.locked``: another coordinator has it open.
        DataError: ``data.journal-format``: not a journal, damaged, or one of a newer release.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection = _open(path)
        self._waiting: queue.SimpleQueue[_Append | None] = queue.SimpleQueue()
        self._closed = False
        self._broken: ResourceError | None = None
        """Set by the writer's thread, once and before it answers."""
        self._writer = threading.Thread(target=self._write_groups, name="journal", daemon=True)
        self._writer.start()

    async def append(self, rows: Sequence[str]) -> None:
        if self._closed:
            raise _closed(str(self._path))
        loop = asyncio.get_running_loop()
        request = _Append(rows=tuple(rows), done=loop.create_future(), loop=loop)
        self._waiting.put(request)
        await request.done

    def read_all(self) -> Iterator[str]:
        for (row,) in self._connection.execute("SELECT event FROM journal ORDER BY seq"):
            yield row

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._waiting.put(None)
        self._writer.join()
        self._connection.close()

    def _write_groups(self) -> None:
        last = False
        while not last and (first := self._waiting.get()) is not None:
            group, last = self._gather(first)
            self._broken = self._broken or self._commit(group)
            for request in group:
                request.loop.call_soon_threadsafe(_settle, request.done, self._broken)

    def _gather(self, first: _Append) -> tuple[list[_Append], bool]:
        """All that waits now, as one commit; and whether `close` was behind it."""
        group, num_rows = [first], len(first.rows)
        while num_rows < GROUP_ROWS:
            try:
                request = self._waiting.get_nowait()
            except queue.Empty:
                break
            if request is None:
                return group, True
            group.append(request)
            num_rows += len(request.rows)
        return group, False

    def _commit(self, group: list[_Append]) -> ResourceError | None:
        rows = [(row,) for request in group for row in request.rows]
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany("INSERT INTO journal (event) VALUES (?)", rows)
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            if error.sqlite_errorname == "SQLITE_FULL":
                return _disk_full(str(self._path))
            return ResourceError(
                "resource.journal",
                f"{self._path}: {error}",
                "look at the disk below it; nothing that was promised is missing, so start again when it writes",
            )
        return None


def _settle(done: asyncio.Future[None], error: ResourceError | None) -> None:
    if done.done():
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)


def _open(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        # EXCLUSIVE must come before WAL: then there is no -shm file, and a second coordinator is refused.
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
        found = connection.execute("PRAGMA user_version").fetchone()[0]
        if found not in (0, FORMAT):
            raise DataError(
                "data.journal-format",
                f"{path} has format {found}, this release knows {FORMAT}",
                "run the release that wrote it, or a newer one",
            )
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("CREATE TABLE IF NOT EXISTS journal (seq INTEGER PRIMARY KEY, event TEXT NOT NULL)")
        connection.execute(f"PRAGMA user_version={FORMAT}")
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        connection.close()
        raise _unusable(path, error) from None
    except DataError:
        connection.close()
        raise
    return connection


def _unusable(path: Path, error: sqlite3.Error) -> DataError | ResourceError:
    if error.sqlite_errorname == "SQLITE_BUSY":
        return ResourceError(
            "resource.locked",
            f"another coordinator is running on {path.parent}",
            "stop it with `potluck down`, or give this one its own --home",
        )
    if error.sqlite_errorname == "SQLITE_FULL":
        return _disk_full(str(path))
    if error.sqlite_errorname in ("SQLITE_NOTADB", "SQLITE_CORRUPT"):
        return DataError(
            "data.journal-format", f"{path}: {error}", "restore it from a copy, or begin with a new --home"
        )
    return ResourceError("resource.journal", f"{path}: {error}", "see that the folder exists and can be written")


def _disk_full(where: str) -> ResourceError:
    return ResourceError(
        "resource.disk-full",
        f"no room to write the journal at {where}",
        "free some space and start again; all that was promised is on disk",
    )


def _closed(where: str) -> ResourceError:
    return ResourceError("resource.journal", f"the journal at {where} is closed", "start the coordinator again")
