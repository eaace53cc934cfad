"""The journal: rows of text that are on disk before anything that follows from them leaves.

`SqliteJournal` is one SQLite file in WAL mode with synchronous=FULL, written by one thread that
commits all rows that wait as one group. `MemoryJournal` is its twin for tests. A failed append is
final: the journal takes nothing more, and the process is expected to end.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import queue
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from potluck.durable import sync_file
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

    def read_all(self, *, after: int = 0) -> Iterator[str]:
        """All durable rows but the first `after`, oldest first."""

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

    def read_all(self, *, after: int = 0) -> Iterator[str]:
        yield from tuple(self.rows[after:])

    def close(self) -> None:
        self._broken = self._broken or _closed("memory")


@dataclass(frozen=True, kw_only=True)
class _Append:
    rows: tuple[str, ...]
    done: asyncio.Future[None]
    loop: asyncio.AbstractEventLoop


@dataclass(frozen=True, kw_only=True)
class _Copy:
    target: Path
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
        self._waiting: queue.SimpleQueue[_Append | _Copy | None] = queue.SimpleQueue()
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

    async def copy_to(self, target: Path) -> None:
        """Writes a copy, one file and closed, of the rows durable when its turn comes; appends wait meanwhile.

        Only this process can: the file is locked for all others.

        Raises:
            ResourceError: ``resource.disk-full`` or ``resource.journal``, of the target; the journal goes on.
        """
        if self._closed:
            raise _closed(str(self._path))
        loop = asyncio.get_running_loop()
        request = _Copy(target=target, done=loop.create_future(), loop=loop)
        self._waiting.put(request)
        await request.done

    def read_all(self, *, after: int = 0) -> Iterator[str]:
        # Rows are only ever appended, so their numbers have no gaps.
        try:
            rows = self._connection.execute("SELECT event FROM journal WHERE seq > ? ORDER BY seq", (after,))
            yield from (row for (row,) in rows)
        except sqlite3.DatabaseError as error:
            raise _unusable(self._path, error) from error

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._waiting.put(None)
        self._writer.join()
        self._connection.close()

    def _write_groups(self) -> None:
        next_one = self._waiting.get()
        while next_one is not None:
            if isinstance(next_one, _Copy):
                error = _copy(self._connection, next_one.target)
                next_one.loop.call_soon_threadsafe(_settle, next_one.done, error)
                next_one = self._waiting.get()
                continue
            group, behind = self._gather(next_one)
            self._broken = self._broken or self._commit(group)
            for request in group:
                request.loop.call_soon_threadsafe(_settle, request.done, self._broken)
            next_one = behind[0] if behind else self._waiting.get()

    def _gather(self, first: _Append) -> tuple[list[_Append], list[_Copy | None]]:
        """All that waits now, as one commit; and the copy or the `close` that was behind it, if any."""
        group, num_rows = [first], len(first.rows)
        while num_rows < GROUP_ROWS:
            try:
                request = self._waiting.get_nowait()
            except queue.Empty:
                break
            if not isinstance(request, _Append):
                return group, [request]
            group.append(request)
            num_rows += len(request.rows)
        return group, []

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


def copy_closed(source: Path, target: Path) -> None:
    """As `SqliteJournal.copy_to`, of a journal that no process has open.

    Raises:
        ResourceError: ``resource.locked``: a coordinator has it open; or as `copy_to`.
        DataError: ``data.journal-format``.
    """
    connection = _open(source)
    try:
        error = _copy(connection, target)
    finally:
        connection.close()
    if error is not None:
        raise error


def read_closed(path: Path) -> Iterator[str]:
    """The rows of a journal that nobody has open, oldest first.

    Raises:
        ResourceError: ``resource.locked``.
        DataError: ``data.journal-format``: damaged, or no journal.
    """
    try:
        with contextlib.closing(_open_to_read(path)) as connection:
            for (row,) in connection.execute("SELECT event FROM journal ORDER BY seq"):
                yield row
    except sqlite3.Error as error:
        raise _unusable(path, error) from None


def problems_of(path: Path) -> list[str]:
    """What SQLite's own check finds wrong with a journal that nobody has open. Raises as `read_closed` does."""
    try:
        with contextlib.closing(_open_to_read(path)) as connection:
            found = [str(line) for (line,) in connection.execute("PRAGMA quick_check")]
    except sqlite3.Error as error:
        raise _unusable(path, error) from None
    return [] if found == ["ok"] else found


def _open_to_read(path: Path) -> sqlite3.Connection:
    # Not `ro`: a file in WAL mode cannot be read without its -wal, which a killed coordinator leaves with rows in it.
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=0, isolation_level=None)
    connection.execute("PRAGMA locking_mode=EXCLUSIVE")
    return connection


def _copy(connection: sqlite3.Connection, target: Path) -> ResourceError | None:
    """In one step, so that no group is between its pages; on disk when it returns."""
    try:
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        with contextlib.closing(sqlite3.connect(target, isolation_level=None)) as copy:
            connection.backup(copy)
            copy.execute("PRAGMA journal_mode=DELETE")
        sync_file(target)
    except (sqlite3.Error, OSError) as error:
        if getattr(error, "sqlite_errorname", "") == "SQLITE_FULL" or getattr(error, "errno", 0) == errno.ENOSPC:
            return _disk_full(str(target))
        return ResourceError("resource.journal", f"{target}: {error}", "see that a new file can be written there")
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
