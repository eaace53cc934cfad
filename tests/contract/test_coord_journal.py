"""What every journal promises: rows come back in order, a failed append is the last."""

from __future__ import annotations

import asyncio
import functools
import sqlite3
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from coordinator.journal import Journal, MemoryJournal, SqliteJournal
from potluck.errors import DataError, PotluckError, ResourceError

OpenJournal = Callable[[], Journal]


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


@pytest.fixture(params=["memory", "sqlite"])
def open_journal(request: pytest.FixtureRequest, tmp_path: Path) -> OpenJournal:
    """Opens a journal, and after a close the same one again."""
    if request.param == "sqlite":
        return lambda: SqliteJournal(tmp_path / "journal.db")
    rows: list[str] = []

    def open_memory() -> MemoryJournal:
        journal = MemoryJournal()
        journal.rows = rows
        return journal

    return open_memory


@in_loop
async def test_rows_come_back_in_the_order_of_their_appends(open_journal: OpenJournal) -> None:
    journal = open_journal()
    await journal.append(["one", "two"])
    await journal.append(["three"])
    assert list(journal.read_all()) == ["one", "two", "three"]
    journal.close()


@in_loop
async def test_appends_made_at_the_same_time_all_become_durable_in_call_order(open_journal: OpenJournal) -> None:
    journal = open_journal()
    await asyncio.gather(*(journal.append([f"{i}-a", f"{i}-b"]) for i in range(50)))
    assert list(journal.read_all()) == [f"{i}-{half}" for i in range(50) for half in "ab"]
    journal.close()


@in_loop
async def test_a_journal_opened_again_holds_what_was_appended(open_journal: OpenJournal) -> None:
    first = open_journal()
    await first.append(["kept", "übrig \N{SNOWMAN}"])
    first.close()
    second = open_journal()
    assert list(second.read_all()) == ["kept", "übrig \N{SNOWMAN}"]
    await second.append(["more"])
    assert list(second.read_all())[-1] == "more"
    second.close()


@in_loop
async def test_a_closed_journal_refuses_rows(open_journal: OpenJournal) -> None:
    journal = open_journal()
    journal.close()
    with pytest.raises(ResourceError) as caught:
        await journal.append(["late"])
    assert caught.value.error_id == "resource.journal"


@in_loop
async def test_closing_twice_is_harmless(open_journal: OpenJournal) -> None:
    journal = open_journal()
    journal.close()
    journal.close()


def _full(tmp_path: Path, kind: str) -> Journal:
    if kind == "memory":
        return MemoryJournal(capacity_rows=3)
    journal = SqliteJournal(tmp_path / "journal.db")
    pages = journal._connection.execute("PRAGMA page_count").fetchone()[0]
    journal._connection.execute(f"PRAGMA max_page_count={pages + 1}")
    return journal


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@in_loop
async def test_a_full_disk_refuses_the_append_and_every_later_one_and_keeps_the_earlier(
    kind: str, tmp_path: Path
) -> None:
    journal = _full(tmp_path, kind)
    await journal.append(["first"])
    with pytest.raises(ResourceError) as caught:
        await journal.append(["x" * 100_000] * 3)
    assert caught.value.error_id == "resource.disk-full"
    with pytest.raises(ResourceError):
        await journal.append(["small enough, but after a hole"])
    assert list(journal.read_all()) == ["first"]
    journal.close()


def test_a_second_coordinator_on_the_same_home_is_told_so(tmp_path: Path) -> None:
    first = SqliteJournal(tmp_path / "journal.db")
    with pytest.raises(ResourceError, match="another coordinator") as caught:
        SqliteJournal(tmp_path / "journal.db")
    assert caught.value.error_id == "resource.locked"
    first.close()
    SqliteJournal(tmp_path / "journal.db").close()


def test_a_journal_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "journal.db")
    connection.execute("PRAGMA user_version=7")
    connection.close()
    with pytest.raises(DataError) as caught:
        SqliteJournal(tmp_path / "journal.db")
    assert caught.value.error_id == "data.journal-format"


def test_a_file_that_is_no_database_is_refused_with_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "journal.db").write_bytes(b"not a database at all, but long enough" * 100)
    with pytest.raises(PotluckError) as caught:
        SqliteJournal(tmp_path / "journal.db")
    assert caught.value.error_id == "data.journal-format"


@in_loop
async def test_the_journal_syncs_fully_and_keeps_the_file_for_itself(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "journal.db")
    modes = [
        journal._connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("journal_mode", "synchronous", "locking_mode")
    ]
    assert modes == ["wal", 2, "exclusive"]
    assert not (tmp_path / "journal.db-shm").exists()
    journal.close()
