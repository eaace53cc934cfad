"""Journals of earlier releases, replayed by today's code. Add a file per format; never change one.

`coord_journal_v1.jsonl` is a short life of a coordinator with every durable event in it: two nodes, a task
that two nodes computed differently, a lineage moved between nodes over a lapse and a restart, a run that
finished, one that was cancelled, one that failed. `coord_journal_v2.jsonl` has a run whose mixture was set once
and proposed once. In `coord_journal_v3.jsonl` a run was paused, resumed and paused again, and two nodes were drained,
one of them for a while. In `coord_journal_v4.jsonl` a node was given a lineage that a slower one on another machine
held, and won.
"""

from __future__ import annotations

import asyncio
import json
import typing
from pathlib import Path

from coordinator.core import queries
from coordinator.core.events import DurableEvent, PlanAdvanced
from coordinator.core.machine import Machine
from coordinator.core.state import State, durable_digest
from coordinator.journal import SqliteJournal
from coordinator.runtime import Runtime
from coordinator.wire_events import decode_event
from potluck.clock import ManualClock
from potluck.ids import RunId

GOLDEN = Path(__file__).with_name("coord_journal_v1.jsonl")
STEERED = Path(__file__).with_name("coord_journal_v2.jsonl")
RESTED = Path(__file__).with_name("coord_journal_v3.jsonl")
UNEVEN = Path(__file__).with_name("coord_journal_v4.jsonl")
FIRST, SECOND, THIRD = (RunId(letter * 64) for letter in "rst")


def rows(file: Path = GOLDEN) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()


def replayed(file: Path = GOLDEN) -> State:
    machine = Machine()
    for row in rows(file):
        machine.handle(decode_event(row))
    return machine.state


def test_the_golden_journals_have_every_durable_event() -> None:
    kinds = {json.loads(row)["type"] for file in (GOLDEN, STEERED, RESTED, UNEVEN) for row in rows(file)}
    assert kinds == {kind.__name__ for kind in typing.get_args(DurableEvent)}


def test_runs_end_as_they_ended_then() -> None:
    state = replayed()
    infos = {info.run: info for info in queries.run_infos(state)}
    assert [infos[run].state for run in (FIRST, SECOND, THIRD)] == ["finished", "cancelled", "failed"]
    assert infos[FIRST].report == "0" * 64
    assert json.loads(infos[FIRST].results_json) == {"perplexity": 12.5, "by_source": {"code": [1, 2.5, None, True]}}
    assert infos[THIRD].error_id == "corpus.too-small"


def test_the_ledger_tiles_as_it_did_then() -> None:
    ledger = queries.ledger(replayed(), FIRST)
    assert ledger.ok
    ranges = [(link.start_step, link.end_step, link.child[0], link.node) for link in ledger.lineages[0].ranges]
    assert ranges == [(0, 10, "a", "n2-lab"), (10, 20, "b", "n3-attic"), (20, 40, "9", "n3-attic")]


def test_peers_and_fences_go_on_from_where_they_were() -> None:
    durable = replayed().durable
    assert [peer.node for peer in durable.peers.values() if not peer.revoked] == ["a1-admin", "n3-attic"]
    assert durable.is_revoked(next(node for node in durable.peers if node == "n2-lab"))
    assert durable.next_fence == 6


def test_changes_of_a_mixture_hold_from_where_they_held_then() -> None:
    (run,) = replayed(STEERED).durable.runs.values()
    told = [(entry.number, entry.kind, entry.step, entry.gate_steps, entry.origin) for entry in run.entries]
    assert told == [(1, "set", 20, 0, "person"), (2, "proposal", 30, 10, "traffic")]


def test_what_was_paused_or_drained_then_still_is() -> None:
    durable = replayed(RESTED).durable
    (run,) = durable.runs.values()
    (lineage,) = durable.lineages.values()
    assert [durable.is_drained(node) for node in durable.peers] == [False, True]
    assert (run.paused, lineage.head_step, [commit.fence for commit in lineage.commits]) == (True, 30, [1, 2, 3])
    assert not durable.leases


def test_a_second_lease_is_given_again_and_the_winner_keeps_it() -> None:
    durable = replayed(UNEVEN).durable
    assert [(lease.fence, lease.node) for lease in durable.leases.values()] == [(3, "n1-fast")]
    assert [[(c.node, c.fence) for c in one.commits] for one in durable.lineages.values()] == [
        [("n1-fast", 1)] * 4,
        [("n1-fast", 3)],
    ]
    assert {node: pace["expert"].step_ms for node, pace in durable.paces.items()} == {
        "n1-fast": 100.0,
        "n2-slow": 999.4,
    }


def test_the_file_on_disk_and_the_rows_alone_give_the_same_state(tmp_path: Path) -> None:
    async def scenario() -> Machine:
        journal = SqliteJournal(tmp_path / "journal.db")
        await journal.append(rows())
        journal.close()
        journal, machine = SqliteJournal(tmp_path / "journal.db"), Machine()
        runtime = Runtime(
            machine=machine, journal=journal, clock=ManualClock(), evaluate=_no_plan, deliver=lambda push: None
        )
        assert runtime.replay() == len(rows())
        journal.close()
        return machine

    assert durable_digest(asyncio.run(scenario()).durable) == durable_digest(replayed().durable)


def _no_plan(machine: Machine, run: RunId, now_ms: int) -> PlanAdvanced:
    raise AssertionError("a replay needs no plan")
