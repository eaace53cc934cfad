"""The runtime: effects leave after their rows, plans are asked once a batch, reads see only what is safe."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any

import pytest

from coordinator.core.effects import Done, NothingToDo, Push, RunAccepted, TaskGranted, Wake
from coordinator.core.events import (
    CoordinatorResumed,
    InviteIssued,
    LeaseRequested,
    PlanAdvanced,
    RunSubmitted,
    SessionOpened,
    TaskCompleted,
    TimePassed,
)
from coordinator.core.machine import Machine
from coordinator.core.state import durable_digest
from coordinator.core.values import Failed, Finished, Running, TaskWanted
from coordinator.journal import MemoryJournal
from coordinator.runtime import PlanEvaluator, Runtime
from coordinator.wire_events import decode_event
from potluck.clock import ManualClock
from potluck.errors import InvariantViolation, NotReachable, PotluckError, ResourceError, SpecError
from potluck.ids import Digest, Fence, NodeId, RunId, task_id

RUN = RunId("run-1")
NODE = NodeId("n1-box")
RESULT = Digest("d" * 64)


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


class GatedJournal(MemoryJournal):
    """Holds every append back until it is let through."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()
        self.gate = asyncio.Event()

    async def append(self, rows: Sequence[str]) -> None:
        self.asked.set()
        await self.gate.wait()
        await super().append(rows)


def one_task_plan(machine: Machine, run: RunId, now_ms: int) -> PlanAdvanced:
    """Wants one task, and is finished when that is done."""
    wanted = TaskWanted(id=task_id("fit", {}, {}), kind="fit", params_json="{}", inputs=(), label="fit it")
    result = machine.results_of(run).task(wanted.id)
    outcome = Running() if result is None else Finished(report=RESULT, figures=result.figures)
    return PlanAdvanced(
        now_ms=now_ms, run=run, lineages=(), tasks=(wanted,), publish=(), stage="fitting", outcome=outcome
    )


class World:
    def __init__(self, journal: MemoryJournal, evaluate: PlanEvaluator) -> None:
        self.journal = journal
        self.machine = Machine()
        self.clock = ManualClock()
        self.pushed: list[Push] = []
        self.runtime = Runtime(
            machine=self.machine,
            journal=journal,
            clock=self.clock,
            evaluate=evaluate,
            deliver=self.pushed.append,
        )

    async def submit_run(self) -> RunAccepted:
        answer = await self.runtime.submit(
            RunSubmitted(
                now_ms=0,
                unix_ms=0,
                request_id="r1",
                run=RUN,
                spec_json="{}",
                corpus_json="{}",
                name="demo",
                priority=0,
            )
        )
        assert isinstance(answer, RunAccepted)
        return answer

    def kinds(self) -> list[str]:
        return [json.loads(row)["type"] for row in self.journal.rows]


@contextlib.asynccontextmanager
async def world(journal: MemoryJournal | None = None, evaluate: PlanEvaluator = one_task_plan) -> AsyncIterator[World]:
    made = World(journal or MemoryJournal(), evaluate)
    made.runtime.replay()
    running = asyncio.create_task(made.runtime.run("boot"))
    try:
        yield made
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError, PotluckError):
            await running


def lease_requested(request_id: int = 1) -> LeaseRequested:
    return LeaseRequested(now_ms=0, node=NODE, request_id=request_id, boot_id="b", free_memory_bytes=1 << 30)


def invite(name: str) -> InviteIssued:
    return InviteIssued(now_ms=0, token_digest=Digest(name), role="node", expires_unix_ms=1)


def task_completed(fence: Fence) -> TaskCompleted:
    return TaskCompleted(
        now_ms=0,
        node=NODE,
        request_id=1,
        fence=fence,
        task=task_id("fit", {}, {}),
        blobs=(("out", RESULT),),
        figures={"x": 1},
    )


@in_loop
async def test_an_answer_leaves_only_after_its_row_is_durable() -> None:
    journal = GatedJournal()
    async with world(journal) as w:
        asking = asyncio.create_task(w.runtime.submit(invite("t")))
        await journal.asked.wait()
        for _ in range(20):
            await asyncio.sleep(0)
        assert not asking.done()
        journal.gate.set()
        assert await asking == Done()


@in_loop
async def test_a_read_does_not_see_what_is_not_durable_yet() -> None:
    journal = GatedJournal()
    async with world(journal) as w:
        asking = asyncio.create_task(w.runtime.submit(invite("t")))
        reading = asyncio.create_task(w.runtime.read(lambda state: len(state.durable.invites)))
        await journal.asked.wait()
        for _ in range(20):
            await asyncio.sleep(0)
        assert not reading.done()
        journal.gate.set()
        assert await reading == 1
        await asking


@in_loop
async def test_events_that_wait_together_are_one_append() -> None:
    journal = GatedJournal()
    async with world(journal) as w:
        first = asyncio.create_task(w.runtime.submit(invite("first")))
        await journal.asked.wait()
        rest = [asyncio.create_task(w.runtime.submit(invite(f"t{i}"))) for i in range(100)]
        await asyncio.sleep(0)
        journal.asked.clear()
        journal.gate.set()
        await asyncio.gather(first, *rest)
        assert w.kinds() == ["CoordinatorResumed"] + ["InviteIssued"] * 101
        assert list(w.machine.durable.invites) == ["first", *(f"t{i}" for i in range(100))]


@in_loop
async def test_a_run_goes_from_submission_to_the_end_its_plan_sees() -> None:
    async with world() as w:
        assert (await w.submit_run()).state == "started"
        granted = await w.runtime.submit(lease_requested())
        assert isinstance(granted, TaskGranted)
        await w.runtime.submit(task_completed(granted.fence))
        run = w.machine.durable.runs[RUN]
        assert isinstance(run.status, Finished)
        assert w.kinds() == [
            "CoordinatorResumed",
            "RunSubmitted",
            "PlanAdvanced",
            "LeaseRequested",
            "TaskCompleted",
            "PlanAdvanced",
        ]


@in_loop
async def test_a_replay_of_the_journal_rebuilds_the_durable_state() -> None:
    async with world() as w:
        await w.submit_run()
        granted = await w.runtime.submit(lease_requested())
        assert isinstance(granted, TaskGranted)
        again = Machine()
        for row in w.journal.rows:
            again.handle(decode_event(row))
        assert durable_digest(again.durable) == durable_digest(w.machine.durable)


@in_loop
async def test_after_a_restart_the_plans_of_running_runs_are_asked_anew() -> None:
    asked: list[RunId] = []

    def plan(machine: Machine, run: RunId, now_ms: int) -> PlanAdvanced:
        asked.append(run)
        return one_task_plan(machine, run, now_ms)

    journal = MemoryJournal()
    async with world(journal) as w:
        await w.submit_run()
    num_rows = len(journal.rows)
    async with world(journal, plan) as w:
        assert await w.runtime.read(lambda state: len(state.durable.runs)) == 1
        assert asked == [RUN]
        # It wants what it wanted before: nothing to journal but the start itself.
        assert w.kinds()[num_rows:] == ["CoordinatorResumed"]


@in_loop
async def test_many_results_at_once_ask_the_plan_once() -> None:
    asked: list[RunId] = []

    def plan(machine: Machine, run: RunId, now_ms: int) -> PlanAdvanced:
        asked.append(run)
        return one_task_plan(machine, run, now_ms)

    async with world(evaluate=plan) as w:
        await asyncio.gather(*(w.submit_run() for _ in range(5)))
        await w.runtime.read(lambda state: None)
        assert asked == [RUN]


@in_loop
async def test_a_plan_that_cannot_go_on_fails_its_run_and_only_that() -> None:
    def plan(machine: Machine, run: RunId, now_ms: int) -> PlanAdvanced:
        raise SpecError("spec.too-little-text", "there is not enough text", "add some")

    async with world(evaluate=plan) as w:
        await w.submit_run()
        await w.runtime.submit(invite("still here"))
        assert w.machine.durable.runs[RUN].status == Failed(
            error_id="spec.too-little-text", message="there is not enough text"
        )


@in_loop
async def test_a_plan_with_a_mistake_fails_its_run_and_the_coordinator_lives() -> None:
    def plan(machine: Machine, run: RunId, now_ms: int) -> PlanAdvanced:
        raise ZeroDivisionError("oops")

    async with world(evaluate=plan) as w:
        await w.submit_run()
        status = w.machine.durable.runs[RUN].status
        assert isinstance(status, Failed)
        assert status.error_id == "bug.plan"


@in_loop
async def test_a_full_disk_ends_the_runtime_and_answers_nobody() -> None:
    w = World(MemoryJournal(capacity_rows=1), one_task_plan)
    running = asyncio.create_task(w.runtime.run("boot"))
    await w.runtime.read(lambda state: None)
    asking = asyncio.create_task(w.runtime.submit(invite("t")))
    with pytest.raises(ResourceError) as caught:
        await running
    assert caught.value.error_id == "resource.disk-full"
    with pytest.raises(NotReachable) as stopped:
        await asking
    assert stopped.value.error_id == "net.stopping"
    with pytest.raises(NotReachable):
        await w.runtime.submit(invite("later"))
    assert w.kinds() == ["CoordinatorResumed"]


@in_loop
async def test_a_question_that_fails_is_the_askers_trouble_alone() -> None:
    async with world() as w:
        with pytest.raises(KeyError):
            await w.runtime.read(lambda state: state.durable.runs[RunId("none")])
        assert await w.runtime.submit(invite("t")) == Done()


@in_loop
async def test_a_lapse_noticed_by_the_clock_is_journalled_as_a_fact() -> None:
    async with world() as w:
        await w.submit_run()
        await w.runtime.submit(lease_requested())
        await w.runtime.tell(TimePassed(now_ms=100_000))
        assert w.kinds()[-1] == "LeaseLapsed"
        assert not w.machine.durable.leases


@in_loop
async def test_an_idle_node_is_woken_when_there_is_work() -> None:
    async with world() as w:
        await w.runtime.tell(
            SessionOpened(
                now_ms=0, node=NODE, role="node", boot_id="b", version="1", hostname="h", cores=1, memory_bytes=1
            )
        )
        assert isinstance(await w.runtime.submit(lease_requested()), NothingToDo)
        await w.submit_run()
        assert Wake(node=NODE) in w.pushed


@in_loop
async def test_an_event_without_an_answer_is_a_mistake_of_ours_when_one_was_wanted() -> None:
    async with world() as w:
        with pytest.raises(InvariantViolation):
            await w.runtime.submit(CoordinatorResumed(now_ms=0, boot_id="x"))


@in_loop
async def test_whoever_waits_for_a_change_hears_of_it_and_not_of_time() -> None:
    async with world() as w:
        await w.runtime.submit(invite("first"))
        before = await w.runtime.changed(-1, 1.0)
        await w.runtime.tell(TimePassed(now_ms=1))
        assert await w.runtime.changed(before, 0.0) == before
        waiting = asyncio.create_task(w.runtime.changed(before, 60.0))
        await w.runtime.submit(invite("t"))
        assert await waiting > before
