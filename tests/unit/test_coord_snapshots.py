"""Snapshots beside a journal: taken every so many rows and at the end, believed only where they fit."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from coordinator.core.events import InviteIssued, PlanAdvanced
from coordinator.core.machine import Machine
from coordinator.core.settings import CoreSettings
from coordinator.core.state import durable_json
from coordinator.journal import Journal, MemoryJournal, SqliteJournal
from coordinator.runtime import Runtime
from coordinator.snapshot import code_digest
from coordinator.snapshots import SnapshotFolder, SnapshotTaker
from coordinator.wire_events import decode_event
from potluck.clock import ManualClock
from potluck.errors import NotReachable, PotluckError
from potluck.ids import Digest, RunId

CODE = code_digest(CoreSettings())
EVERY = 4


def no_plan(machine: Machine, run: RunId, now_ms: int) -> PlanAdvanced:
    raise AssertionError("no run is under way")


class Life:
    """One process of a coordinator: what it replayed, and the machine it has."""

    def __init__(self, journal: Journal, folder: Path, code: Digest = CODE) -> None:
        self.machine, clock = Machine(), ManualClock()
        self.runtime = Runtime(
            machine=self.machine,
            journal=journal,
            clock=clock,
            evaluate=no_plan,
            deliver=lambda push: None,
            snapshots=SnapshotTaker(SnapshotFolder(folder, code), clock.monotonic_ms, EVERY),
        )
        self.num_replayed = self.runtime.replay()

    @property
    def state(self) -> str:
        return durable_json(self.machine.durable)


@contextlib.asynccontextmanager
async def living(journal: Journal, folder: Path) -> AsyncIterator[Life]:
    life = Life(journal, folder)
    running = asyncio.create_task(life.runtime.run("boot"))
    try:
        yield life
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError, PotluckError):
            await running
        await life.runtime.finish_snapshots()


async def invite(life: Life, *names: str) -> None:
    for name in names:
        event = InviteIssued(now_ms=0, token_digest=Digest(name), role="node", expires_unix_ms=1)
        await life.runtime.submit(event)


def ended(journal: Journal, folder: Path, *names: str) -> str:
    """A whole life that ends in good order; the state it ends with."""

    async def scenario() -> str:
        async with living(journal, folder) as life:
            await invite(life, *names)
        return life.state

    return asyncio.run(scenario())


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def state_of(rows: list[str]) -> str:
    machine = Machine()
    for row in rows:
        machine.handle(decode_event(row))
    return durable_json(machine.durable)


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_after_an_end_in_good_order_a_start_replays_nothing(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal: Journal = MemoryJournal() if kind == "memory" else SqliteJournal(tmp_path / "journal.db")
    state = ended(journal, tmp_path / "s", "a", "b")
    capsys.readouterr()
    again = Life(journal, tmp_path / "s")
    assert (again.num_replayed, again.state) == (0, state)
    assert "replayed rows=0 snapshot=000000000003.jsonl" in capsys.readouterr().err
    journal.close()


def test_a_snapshot_is_taken_every_so_many_rows_and_a_start_replays_the_rows_after_it(tmp_path: Path) -> None:
    async def scenario() -> list[str]:
        journal = MemoryJournal()
        async with living(journal, tmp_path) as life:
            await invite(life, "a", "b", "c")
            await life.runtime.finish_snapshots()
            await invite(life, "d", "e")
            return list(journal.rows)

    rows = asyncio.run(scenario())
    assert names_in(tmp_path) == ["000000000004.jsonl", "000000000006.jsonl"]
    (tmp_path / "000000000006.jsonl").unlink()
    again = Life(MemoryJournal(rows), tmp_path)
    assert (again.num_replayed, again.state) == (2, state_of(rows))


def test_two_are_kept_and_what_was_cut_short_is_swept_away(tmp_path: Path) -> None:
    journal = MemoryJournal()
    ended(journal, tmp_path, "a")
    ended(journal, tmp_path, "b")
    (tmp_path / "000000000005.tmp").write_bytes(b'{"type":"Head')
    (tmp_path / "000000000099.jsonl").write_bytes(b"of another journal")
    ended(journal, tmp_path, "c")
    assert names_in(tmp_path) == ["000000000004.jsonl", "000000000006.jsonl"]


def test_a_damaged_or_torn_one_is_passed_over_and_the_one_before_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = MemoryJournal()
    ended(journal, tmp_path, "a")
    state = ended(journal, tmp_path, "b")
    newest = tmp_path / "000000000004.jsonl"
    whole = newest.read_bytes()
    flipped = [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(0, len(whole), 7)]
    for bad in (*flipped, *(whole[:end] for end in range(0, len(whole), 7)), whole + b"\n"):
        newest.write_bytes(bad)
        again = Life(journal, tmp_path)
        assert (again.num_replayed, again.state) == (2, state)
    told = capsys.readouterr().err
    assert told.count("snapshot-passed-over") == told.count("torn or damaged") > 20
    newest.unlink()
    (tmp_path / "000000000002.jsonl").write_bytes(b"")
    again = Life(journal, tmp_path)
    assert (again.num_replayed, again.state) == (4, state)
    assert "replayed rows=4 snapshot=none" in capsys.readouterr().err


def test_those_of_other_code_or_of_more_rows_or_of_another_journal_are_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = MemoryJournal()
    ended(journal, tmp_path, "a", "b")
    other_code = Life(journal, tmp_path, Digest("f" * 64))
    shorter = Life(MemoryJournal(journal.rows[:2]), tmp_path)
    branched = MemoryJournal(journal.rows[:2])
    ended(branched, tmp_path / "elsewhere", "c")
    another = Life(branched, tmp_path)
    assert [one.num_replayed for one in (other_code, shorter, another)] == [3, 2, 4]
    assert [one.state for one in (shorter, another)] == [state_of(journal.rows[:2]), state_of(branched.rows)]
    told = capsys.readouterr().err
    assert [word for word in ("have changed since", "has fewer", "is not the one") if word not in told] == []


def test_no_snapshot_holds_what_the_journal_could_not_take(tmp_path: Path) -> None:
    journal = MemoryJournal(capacity_rows=EVERY + 1)

    async def scenario() -> None:
        async with living(journal, tmp_path) as life:
            await invite(life, "a", "b", "c", "d")
            with pytest.raises(NotReachable):
                await invite(life, "never written")

    asyncio.run(scenario())
    assert names_in(tmp_path) == [f"{EVERY:012d}.jsonl"]
    assert Life(MemoryJournal(journal.rows), tmp_path).state == state_of(journal.rows)


def test_a_place_that_takes_no_snapshots_stops_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "taken").write_text("a file where the folder should be")
    journal = MemoryJournal()
    state = ended(journal, tmp_path / "taken", "a", "b", "c", "d", "e")
    assert "snapshot-failed" in capsys.readouterr().err
    assert state == state_of(journal.rows)
    assert Life(journal, tmp_path / "taken").state == state


def test_settings_are_part_of_the_code_that_a_snapshot_is_of() -> None:
    assert code_digest(CoreSettings(max_failures=4)) != CODE
    assert code_digest(CoreSettings()) == CODE
