"""What every journal promises: rows come back in order, a failed append is the last."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import sqlite3
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from coordinator.journal import Journal, MemoryJournal, SqliteJournal, copy_closed, problems_of, read_closed
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
async def test_rows_are_read_from_any_place_on(open_journal: OpenJournal) -> None:
    journal = open_journal()
    await journal.append(["one", "two", "three"])
    assert [list(journal.read_all(after=number)) for number in (0, 2, 3, 9)] == [
        ["one", "two", "three"],
        ["three"],
        [],
        [],
    ]
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


@in_loop
async def test_a_page_that_is_damaged_is_told_when_its_rows_are_read(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    journal = SqliteJournal(path)
    await journal.append([f"row {index} {'x' * 500}" for index in range(400)])
    journal.close()
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2 // 4096 * 4096)
        file.write(b"\xff" * 4096)
    journal = SqliteJournal(path)
    with pytest.raises(DataError) as caught:
        list(journal.read_all())
    journal.close()
    assert caught.value.error_id == "data.journal-format"
    assert str(path) in caught.value.message


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


@in_loop
async def test_a_copy_made_amid_appends_holds_every_row_answered_before_it_and_is_one_file(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "journal.db")
    before = [f"before {number}" for number in range(20)]
    await journal.append(before)
    await asyncio.gather(
        *(journal.append([f"amid {number}"]) for number in range(20)),
        journal.copy_to(tmp_path / "copy.db"),
        *(journal.append([f"amid {number}"]) for number in range(20, 40)),
    )
    copied, whole = list(read_closed(tmp_path / "copy.db")), list(journal.read_all())
    assert copied[:20] == before
    assert copied == whole[: len(copied)]
    assert len(whole) == 60
    assert problems_of(tmp_path / "copy.db") == []
    assert not (tmp_path / "copy.db-wal").exists()
    with pytest.raises(ResourceError) as refused:
        list(read_closed(tmp_path / "journal.db"))
    assert refused.value.error_id == "resource.locked"
    journal.close()


@in_loop
async def test_a_copy_that_cannot_be_written_leaves_the_journal_as_it_was(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "journal.db")
    (tmp_path / "taken").write_text("somebody's")
    with pytest.raises(ResourceError) as refused:
        await journal.copy_to(tmp_path / "taken")
    assert refused.value.error_id == "resource.journal"
    assert (tmp_path / "taken").read_text() == "somebody's"
    await journal.append(["on"])
    assert list(journal.read_all()) == ["on"]
    journal.close()


@in_loop
async def test_the_check_of_a_closed_journal_reads_what_a_killed_coordinator_left_in_its_log(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "journal.db")
    await journal.append(["one", "two"])
    for name in ("journal.db", "journal.db-wal"):
        (tmp_path / f"killed-{name}").write_bytes((tmp_path / name).read_bytes())
    journal.close()
    copy_closed(tmp_path / "killed-journal.db", tmp_path / "copy.db")
    assert list(read_closed(tmp_path / "copy.db")) == ["one", "two"]
    damaged = bytearray((tmp_path / "copy.db").read_bytes())
    damaged[4096:6000] = b"\xff" * len(damaged[4096:6000])
    (tmp_path / "copy.db").write_bytes(damaged)
    with contextlib.suppress(DataError):
        assert problems_of(tmp_path / "copy.db") != []
