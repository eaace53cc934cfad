"""One task owns the machine: events go in one at a time, and effects leave when the journal has them.

Events that wait together are handled together, their rows committed as one group, and only then are
replies given and pushes sent, in the order of the events. Reads go through the same door, so nobody
is told of a fact that a power cut could take back.
"""

from __future__ import annotations

import asyncio
import contextlib
import typing
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar, assert_never

from coordinator.core.effects import (
    AdvancePlan,
    Answer,
    Done,
    Effect,
    NoteDivergence,
    Push,
    Record,
    Reply,
)
from coordinator.core.events import CoordinatorResumed, DurableEvent, Event, PlanAdvanced, TimePassed
from coordinator.core.machine import Machine
from coordinator.core.state import State
from coordinator.core.values import Failed
from coordinator.journal import Journal
from coordinator.snapshot import Mark
from coordinator.snapshots import SnapshotTaker
from coordinator.wire_events import decode_event, encode_event
from potluck.clock import Clock
from potluck.crashpoints import crash_here
from potluck.errors import InvariantViolation, NotReachable, PotluckError, ResourceError
from potluck.ids import RunId, digest_bytes
from potluck.telemetry import logger

AFTER_JOURNAL = "coordinator.after-journal-before-reply"
TICK_S = 0.25
MAX_WAITING = 8192
"""Calls that may wait; one node has at most one call a verb under way, so this is a thousand nodes."""
MAX_BATCH = 512
"""Most of them handled before the journal is written."""

log = logger("coordinator.runtime")
T = TypeVar("T")


class PlanEvaluator(Protocol):
    def __call__(self, machine: Machine, run: RunId, now_ms: int) -> PlanAdvanced:
        """What the run's plan wants now; may raise a `PotluckError` that fails the run."""


@dataclass(kw_only=True)
class _Submission:
    event: Event
    done: asyncio.Future[Answer] | None = None
    reply: Answer | None = None
    needs_reply: bool = True
    journalled: bool = False
    """It, or a fact that it made known, has a row."""


@dataclass(kw_only=True)
class _Question:
    read: Callable[[State], object]
    done: asyncio.Future[object]
    answer: object = None


@dataclass(kw_only=True)
class _Batch:
    items: list[_Submission | _Question]
    rows: list[str] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    changed: bool = False


class Runtime:
    """Drives the machine. `deliver` hands a push to the session of its node, and must not block.

    With `snapshots` a start replays only the rows after the last one.
    """

    def __init__(
        self,
        *,
        machine: Machine,
        journal: Journal,
        clock: Clock,
        evaluate: PlanEvaluator,
        deliver: Callable[[Push], None],
        snapshots: SnapshotTaker | None = None,
    ) -> None:
        self._machine = machine
        self._journal = journal
        self._clock = clock
        self._evaluate = evaluate
        self._deliver = deliver
        self._snapshots = snapshots
        self._num_rows = 0
        self._last_row = ""
        self._at_rest = True
        """The durable state is what the journal's rows lead to: no batch is between handling and disk."""
        self._waiting: deque[_Submission | _Question] = deque()
        self._work = asyncio.Event()
        self._due: dict[RunId, None] = {}
        self._stopped: PotluckError | None = None
        self._changes = asyncio.Condition()
        self._version = 0

    def now_ms(self) -> int:
        return self._clock.monotonic_ms()

    def unix_ms(self) -> int:
        return self._clock.unix_ms()

    async def submit(self, event: Event) -> Answer:
        """Hands an event in and returns the machine's answer, once it is safe to be known.

        Raises:
            ResourceError: ``resource.busy``: too many calls wait.
            NotReachable: ``net.stopping``: the coordinator ends; the event may or may not have been taken.
        """
        self._check_open()
        done: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._enqueue(_Submission(event=event, done=done))
        return await done

    async def tell(self, event: Event) -> None:
        """Hands in an event that has no answer and waits until it is handled. Raises as `submit` does."""
        self._check_open()
        done: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._enqueue(_Submission(event=event, done=done, needs_reply=False))
        await done

    def post(self, event: Event) -> None:
        """Hands an event in without waiting; for the few that cannot wait, such as the end of a stream."""
        if self._stopped is None:
            self._enqueue(_Submission(event=event))

    async def read(self, question: Callable[[State], T]) -> T:
        """Asks the state between two events. Raises as `submit` does, and what the question raises."""
        self._check_open()
        done: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._enqueue(_Question(read=question, done=done))
        return typing.cast(T, await done)

    async def changed(self, version: int, timeout_s: float) -> int:
        """Waits until anything but the time has changed since `version`, or the timeout; returns the version now."""
        async with self._changes:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._changes.wait_for(lambda: self._version != version or self._stopped is not None)
            return self._version

    def replay(self) -> int:
        """Rebuilds the state; returns how many of the journal's rows it took. Call it once, before `run`.

        Raises:
            DataError: ``data.journal-row``.
        """
        began_ms = self.now_ms()
        found = self._snapshots.restore(self._journal) if self._snapshots is not None else None
        if found is not None:
            self._machine.adopt(found.durable)
            self._num_rows = found.mark.rows
        count = 0
        for row in self._journal.read_all(after=self._num_rows):
            self._machine.handle(decode_event(row))
            self._last_row = row
            count += 1
        self._num_rows += count
        log.fact("replayed", rows=count, snapshot=found.name if found else "none", ms=self.now_ms() - began_ms)
        return count

    async def run(self, boot_id: str) -> None:
        """Handles events until cancelled, or until the journal fails, which is the end of the process.

        Raises:
            ResourceError: ``resource.disk-full`` or ``resource.journal``.
            InvariantViolation: the machine has found a mistake of ours; nothing of its event is on disk.
        """
        self._waiting.appendleft(_Submission(event=CoordinatorResumed(now_ms=self.now_ms(), boot_id=boot_id)))
        self._work.set()
        ticker = asyncio.create_task(self._tick())
        try:
            while True:
                await self._work.wait()
                self._work.clear()
                await self._take(self._next_batch())
        finally:
            ticker.cancel()
            await self._refuse_the_rest()

    async def finish_snapshots(self) -> None:
        """After `run` has ended: takes a last snapshot, so that the next start replays nothing."""
        if self._snapshots is not None:
            await self._snapshots.finish(self._machine.durable, self._mark() if self._at_rest else None)

    # --- one batch -----------------------------------------------------------------------------

    def _next_batch(self) -> _Batch:
        items = [self._waiting.popleft() for _ in range(min(MAX_BATCH, len(self._waiting)))]
        if self._waiting:
            self._work.set()
        return _Batch(items=items)

    async def _take(self, batch: _Batch) -> None:
        self._at_rest = False
        try:
            self._handle_all(batch)
            if batch.rows:
                await self._journal.append(batch.rows)
        except BaseException:
            self._waiting.extendleft(reversed(batch.items))
            raise
        self._at_rest = True
        self._note_rows(batch.rows)
        self._release(batch)
        if batch.changed:
            self._version += 1
            async with self._changes:
                self._changes.notify_all()

    def _handle_all(self, batch: _Batch) -> None:
        for item in batch.items:
            match item:
                case _Submission():
                    self._handle(batch, item.event, item)
                case _Question():
                    item.answer = _ask(item.read, self._machine.state)
                case _:
                    assert_never(item)
        # Plans are evaluated once a batch, however many results came; what an evaluation makes due waits a turn.
        due, self._due = self._due, {}
        for run in due:
            self._advance(batch, run)
        if self._due:
            self._work.set()

    def _handle(self, batch: _Batch, event: Event, asked: _Submission | None) -> None:
        """Handles an event and the facts it makes known; their rows and effects join the batch."""
        events = deque([event])
        while events:
            current = events.popleft()
            effects = self._machine.handle(current)
            if isinstance(current, DurableEvent):
                batch.rows.append(encode_event(current))
                if asked is not None:
                    asked.journalled = True
            batch.changed = batch.changed or not isinstance(current, TimePassed)
            for effect in effects:
                match effect:
                    case Reply(answer=answer):
                        if asked is not None:
                            asked.reply = answer
                    case Record(event=fact):
                        events.append(fact)
                    case AdvancePlan(run=run):
                        self._due[run] = None
                    case _:
                        batch.effects.append(effect)

    def _advance(self, batch: _Batch, run: RunId) -> None:
        """Asks the plan anew. A plan that cannot go on fails its run, and only its run."""
        now_ms = self.now_ms()
        advanced = self._plan(run, now_ms)
        if not self._machine.is_news(advanced):
            return
        try:
            self._handle(batch, advanced, None)
        except InvariantViolation as error:
            # A plan that changes what it had asked for; the machine has refused the event as a whole.
            log.failure("plan-refused", error, run=run)
            self._handle(batch, _failed(run, error.error_id, error.message, now_ms), None)

    def _plan(self, run: RunId, now_ms: int) -> PlanAdvanced:
        try:
            return self._evaluate(self._machine, run, now_ms)
        except PotluckError as error:
            log.fact("plan-failed", run=run, error_id=error.error_id, message=error.message)
            return _failed(run, error.error_id, error.message, now_ms)
        except Exception as error:
            log.failure("plan-failed", error, run=run)
            return _failed(run, "bug.plan", f"the plan failed: {type(error).__name__}: {error}", now_ms)

    def _note_rows(self, rows: list[str]) -> None:
        if not rows:
            return
        self._num_rows += len(rows)
        self._last_row = rows[-1]
        if self._snapshots is not None and self._snapshots.is_due(self._num_rows):
            self._snapshots.take(self._machine.durable, self._mark())

    def _mark(self) -> Mark:
        return Mark(rows=self._num_rows, last_row=digest_bytes(self._last_row.encode()))

    def _release(self, batch: _Batch) -> None:
        """The rows are on disk: answers and pushes may leave."""
        for item in batch.items:
            match item:
                case _Submission():
                    _settle_submission(item)
                case _Question(done=waiter, answer=answer):
                    _settle_question(waiter, answer)
                case _:
                    assert_never(item)
        for effect in batch.effects:
            if isinstance(effect, NoteDivergence):
                log.fact("task-divergent", task=effect.task, node=effect.node)
            else:
                assert isinstance(effect, Push), effect
                self._deliver(effect)

    # --- beginning and end ----------------------------------------------------------------------

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self.post(TimePassed(now_ms=self.now_ms()))

    def _enqueue(self, item: _Submission | _Question) -> None:
        self._waiting.append(item)
        self._work.set()

    def _check_open(self) -> None:
        if self._stopped is not None:
            raise self._stopped
        if len(self._waiting) >= MAX_WAITING:
            raise ResourceError("resource.busy", f"{MAX_WAITING} calls wait already", "try again in a second")

    async def _refuse_the_rest(self) -> None:
        self._stopped = NotReachable("net.stopping", "the coordinator is stopping", "try again when it is back")
        while self._waiting:
            done = self._waiting.popleft().done
            if done is not None and not done.done():
                done.set_exception(self._stopped)
        async with self._changes:
            self._changes.notify_all()


@dataclass(frozen=True, kw_only=True)
class _Raised:
    error: Exception


def _ask(read: Callable[[State], object], state: State) -> object:
    """A question that fails is the asker's trouble, not the machine's."""
    try:
        return read(state)
    except Exception as error:
        return _Raised(error=error)


def _settle_question(done: asyncio.Future[object], answer: object) -> None:
    if done.done():
        return
    if isinstance(answer, _Raised):
        done.set_exception(answer.error)
    else:
        done.set_result(answer)


def _settle_submission(item: _Submission) -> None:
    if item.done is None:
        return
    if item.journalled:
        crash_here(AFTER_JOURNAL)
        # By answer too, so that a test can die with a grant or a commit on its lips.
        crash_here(f"{AFTER_JOURNAL}.{type(item.reply).__name__}")
    if item.done.done():
        return
    reply = item.reply if item.needs_reply else Done()
    if reply is None:
        what = type(item.event).__name__
        item.done.set_exception(InvariantViolation("bug.no-answer", f"{what} got no answer", "report this"))
    else:
        item.done.set_result(reply)


def _failed(run: RunId, error_id: str, message: str, now_ms: int) -> PlanAdvanced:
    outcome = Failed(error_id=error_id, message=message)
    return PlanAdvanced(now_ms=now_ms, run=run, lineages=(), tasks=(), publish=(), stage="failed", outcome=outcome)
