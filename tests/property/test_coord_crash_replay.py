"""Whatever happens and wherever the process dies, the journal rebuilds what was promised.

The machine is driven through the runtime by random calls; a twin of the journal dies after a random
number of rows, before or after they are durable. What was answered must be in the replay.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.core.effects import Answer, TaskAccepted, TaskGranted
from coordinator.core.events import (
    DurableEvent,
    Event,
    InviteIssued,
    LeaseRequested,
    PlanAdvanced,
    RunCancelled,
    RunSubmitted,
    TaskCompleted,
)
from coordinator.core.machine import Machine
from coordinator.core.state import durable_digest
from coordinator.core.values import Running, TaskWanted
from coordinator.journal import MemoryJournal
from coordinator.runtime import Runtime
from coordinator.wire_events import decode_event, encode_event
from potluck.clock import ManualClock
from potluck.errors import PotluckError, ResourceError
from potluck.ids import Digest, Fence, NodeId, RunId, task_id

RUN = RunId("run")
NODES = [NodeId("n1"), NodeId("n2")]
TASKS = tuple(
    TaskWanted(id=task_id("fit", {"i": i}, {}), kind="fit", params_json="{}", inputs=(), label=f"task {i}")
    for i in range(3)
)


class DyingJournal(MemoryJournal):
    """Fails at the append that would pass `lifetime_rows`, having written it or not: nobody can know."""

    def __init__(self, rows: Sequence[str], lifetime_rows: int, *, wrote_the_last: bool) -> None:
        super().__init__(rows)
        self._lifetime_rows = lifetime_rows
        self._wrote_the_last = wrote_the_last

    async def append(self, rows: Sequence[str]) -> None:
        await asyncio.sleep(0)
        self._lifetime_rows -= len(rows)
        if self._lifetime_rows >= 0 or self._wrote_the_last:
            self.rows.extend(rows)
        if self._lifetime_rows < 0:
            raise ResourceError("resource.journal", "the power is gone", "")


def plan(machine: Machine, run: RunId, now_ms: int) -> PlanAdvanced:
    """Wants a task after another."""
    results = machine.results_of(run)
    done = [task for task in TASKS if results.task(task.id) is not None]
    wanted = TASKS[: len(done) + 1]
    return PlanAdvanced(
        now_ms=now_ms, run=run, lineages=(), tasks=wanted, publish=(), stage=f"{len(done)}", outcome=Running()
    )


calls = st.sampled_from(["submit", "cancel", "lease-0", "lease-1", "complete", "invite"])


def event_of(call: str, number: int, fences: list[TaskGranted]) -> Event | None:
    match call:
        case "submit":
            return RunSubmitted(
                now_ms=number,
                unix_ms=0,
                request_id=f"q{number}",
                run=RUN,
                spec_json="{}",
                corpus_json="{}",
                name="",
                priority=0,
            )
        case "cancel":
            return RunCancelled(now_ms=number, run=RUN)
        case "invite":
            digest = Digest(f"{number:064x}")
            return InviteIssued(now_ms=number, token_digest=digest, role="node", expires_unix_ms=0)
        case "complete" if fences:
            granted = fences[-1]
            blobs = (("out", Digest(granted.task.id)),)
            return TaskCompleted(
                now_ms=number,
                node=NODES[0],
                request_id=number,
                fence=granted.fence,
                task=granted.task.id,
                blobs=blobs,
                figures={},
            )
        case "lease-0" | "lease-1":
            return LeaseRequested(
                now_ms=number, node=NODES[int(call[-1])], request_id=number, boot_id="b", free_memory_bytes=1
            )
    return None


async def live(journal: MemoryJournal, wanted: list[str], first: int) -> tuple[list[tuple[Event, Answer]], Machine]:
    """One life of a coordinator: all calls, or as many as it lives to answer."""
    machine, answered, fences = Machine(), list[tuple[Event, Answer]](), list[TaskGranted]()
    runtime = Runtime(machine=machine, journal=journal, clock=ManualClock(), evaluate=plan, deliver=lambda push: None)
    runtime.replay()
    running = asyncio.create_task(runtime.run(f"boot-{first}"))
    with contextlib.suppress(PotluckError):
        for number, call in enumerate(wanted, start=first):
            event = event_of(call, number, fences)
            if event is not None:
                answer = await runtime.submit(event)
                answered.append((event, answer))
                if isinstance(answer, TaskGranted):
                    fences.append(answer)
    running.cancel()
    await asyncio.wait((running,))
    if not running.cancelled():
        assert isinstance(running.exception(), ResourceError)
    return answered, machine


def replay(rows: Sequence[str]) -> Machine:
    machine = Machine()
    for row in rows:
        machine.handle(decode_event(row))
    return machine


@settings(max_examples=60, deadline=None)
@given(
    lives=st.lists(st.tuples(st.lists(calls, max_size=12), st.integers(0, 20), st.booleans()), min_size=1, max_size=4)
)
def test_what_was_answered_is_in_the_journal_wherever_the_process_died(
    lives: list[tuple[list[str], int, bool]],
) -> None:
    rows: list[str] = []
    fences_seen: list[Fence] = []
    for index, (wanted, lifetime, wrote) in enumerate(lives):
        journal = DyingJournal(rows, lifetime, wrote_the_last=wrote)
        answered, _ = asyncio.run(live(journal, wanted, 1000 * (index + 1)))
        rows = journal.rows
        known = set(rows)
        for event, answer in answered:
            assert isinstance(event, DurableEvent)
            assert encode_event(event) in known
            if isinstance(answer, TaskGranted):
                fences_seen.append(answer.fence)
        tasks = replay(rows).durable.tasks
        for event, answer in answered:
            if isinstance(event, TaskCompleted) and isinstance(answer, TaskAccepted):
                assert tasks[event.task].result is not None
    assert fences_seen == sorted(set(fences_seen)), "a fence was granted twice or went back"


@settings(max_examples=60, deadline=None)
@given(wanted=st.lists(calls, max_size=30))
def test_a_replay_equals_the_life_it_repeats(wanted: list[str]) -> None:
    journal = MemoryJournal()
    _, machine = asyncio.run(live(journal, wanted, 1))
    assert durable_digest(replay(journal.rows).durable) == durable_digest(machine.durable)


@settings(max_examples=40, deadline=None)
@given(wanted=st.lists(calls, max_size=20), cut=st.integers(0, 40))
def test_after_any_prefix_of_the_journal_the_run_can_be_finished(wanted: list[str], cut: int) -> None:
    """Duties are derived from the state: a death between journalling and doing loses none of them."""
    journal = MemoryJournal()
    asyncio.run(live(journal, ["submit", *wanted], 1))
    rest = ["submit", *["lease-0", "complete", "lease-1", "complete"] * len(TASKS)]
    survivor = MemoryJournal(journal.rows[:cut])
    _, machine = asyncio.run(live(survivor, rest, 1000))
    assert all(machine.durable.tasks[task.id].result is not None for task in TASKS)
