"""The coordinator's process around the real machine, by the runtime's rule: journal first, then effects.

A twin of `coordinator.runtime` and of the services before it, without a loop, sockets or files: events that
wait are handled as one batch, its rows reach the journal together or not at all, and then answers and
pushes leave. It can die before it handles, before it journals, before the effects leave, and in the middle of a
snapshot; it starts from the newest snapshot that is good and the rows after it.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from coordinator.collector import roots_of
from coordinator.core.effects import AdvancePlan, Answer, Effect, NoteDivergence, Push, Record, Reply
from coordinator.core.events import (
    CheckpointCommitted,
    CoordinatorResumed,
    DurableEvent,
    Event,
    SessionClosed,
    SessionOpened,
    TaskCompleted,
    TimePassed,
)
from coordinator.core.machine import Machine
from coordinator.core.state import DurableState, durable_digest
from coordinator.plain_json import copied
from coordinator.planning import evaluate_plan
from coordinator.snapshot import Mark
from coordinator.wire_events import decode_event, encode_event
from potluck.ids import Digest, NodeId, RunId, digest_bytes
from tests.simulation.checkers import Checkers, Handled
from tests.simulation.kernel import Kernel
from tests.simulation.memory_snapshots import MemorySnapshots
from tests.simulation.network import Stream
from tests.simulation.process import Process
from tests.simulation.snapshot import snapshot_of
from tests.simulation.weather import Weather

TICK_MS = 500
CLOCK_STARTS_MS = 1_000_000
"""Each process start has its own monotonic clock; they begin anywhere below this."""
SNAPSHOT_MS = (5, 500)
"""A thread writes it as fast as the disk likes."""
YOUNG_MS = 3_000
"""A blob that was put or named since is not collected: what names it may be on its way."""
LOOK_EVERY = 16
"""Batches between two looks of the checkers at the whole state."""

Receive = Callable[[Answer], None]


@dataclass(kw_only=True)
class Submission:
    event: Event
    answered: Receive | None = None
    reply: Answer | None = None


@dataclass(kw_only=True)
class Batch:
    items: list[Submission]
    rows: list[DurableEvent] = field(default_factory=list)
    handled: list[Handled] = field(default_factory=list)
    pushes: list[Push] = field(default_factory=list)
    roots: frozenset[Digest] | None = None
    """If blobs are to be collected: what the state needs, read as the runtime reads, before plans are asked anew."""


class MemoryRows:
    """The journal's twin: whole groups of rows, or nothing. Rows are read back as they were written."""

    def __init__(self) -> None:
        self.events: list[DurableEvent] = []
        self.rows: list[str] = []

    def append(self, events: list[DurableEvent]) -> None:
        for event in events:
            row = encode_event(event)
            read = decode_event(row)
            assert read == event, f"a row says something else than its event: {event}"
            self.events.append(read)
            self.rows.append(row)

    def mark(self) -> Mark:
        return Mark(rows=len(self.rows), last_row=digest_bytes(self.rows[-1].encode()))


class Hub(Process):
    """`faults` are drawn by `chance` at each point; the world says when it may die."""

    def __init__(
        self,
        kernel: Kernel,
        chance: random.Random,
        weather: Weather,
        checkers: Checkers,
        on_death: Callable[[], None],
    ) -> None:
        super().__init__(kernel)
        self._on_death = on_death
        self._chance = chance
        self._settings = weather.settings
        self.points = dict(weather.swarm)
        self._checkers = checkers
        self.journal = MemoryRows()
        self.snapshots = MemorySnapshots()
        self._snapshot_rows = weather.snapshot_rows
        self._rows_saved = 0
        self.store: dict[Digest, int] = {}
        """Blobs, and when each was put or named last."""
        self._collect_every_ms = weather.collect_every_ms
        self._collect_due = False
        self._held: set[Digest] = set()
        self.machine = Machine(self._settings)
        self.streams: dict[NodeId, Stream] = {}
        self._waiting: deque[Submission] = deque()
        self._busy = False
        self._due: dict[RunId, None] = {}
        self._in_flight: Batch | None = None
        self._clock_ms = 0
        self._num_batches = 0

    @property
    def now_ms(self) -> int:
        return self.kernel.now_ms + self._clock_ms

    @property
    def is_quiet(self) -> bool:
        """All that was handled has been journalled, and its effects have left."""
        return self.runs and not self._busy and self._in_flight is None

    # --- life ----------------------------------------------------------------------------------

    def start(self) -> None:
        self.alive = True
        self._clock_ms = self._chance.randrange(CLOCK_STARTS_MS)
        self.machine = self._restored()
        self._checkers.replayed(snapshot_of(self.machine.state))
        self._waiting.clear()
        self._due.clear()
        self._busy, self._in_flight = False, None
        self.submit(CoordinatorResumed(now_ms=self.now_ms, boot_id=f"hub-{self.life}"), None)
        self.later(TICK_MS, self._tick)
        if self._collect_every_ms:
            self.later(self._collect_every_ms, self._note_collection)

    def die(self, why: str) -> None:
        """All but the journal and the store is gone."""
        self.kernel.mark(why)
        lost = self._in_flight.rows if self._in_flight is not None else []
        if lost:
            self.kernel.mark("rows-lost")
        self.compare_replay(lost)
        self.end_life()
        self._checkers.hub_died()
        self._waiting.clear()
        for stream in self.streams.values():
            stream.open_at_hub = False
        self.streams.clear()
        self._on_death()

    def compare_replay(self, lost: list[DurableEvent]) -> None:
        """Rows alone, in a new machine, must give the durable state that this one has."""
        replayed = self._replayed([*self.journal.events, *lost])
        self._checkers.compare_replay(durable_digest(self.machine.durable), durable_digest(replayed.durable))

    def _restored(self) -> Machine:
        """From the newest good snapshot, which must be what the rows before it lead to; or from all rows."""
        whole = self._replayed(self.journal.events)
        found = self.snapshots.newest(self.journal.rows)
        if found is None:
            self._rows_saved = 0
            return whole
        self.kernel.mark("started-from-snapshot")
        mark, durable = found
        self._rows_saved = mark.rows
        machine = Machine(self._settings)
        machine.adopt(durable)
        for event in self.journal.events[mark.rows :]:
            machine.handle(event)
        self._checkers.compare_replay(durable_digest(machine.durable), durable_digest(whole.durable))
        return machine

    def _replayed(self, events: list[DurableEvent]) -> Machine:
        machine = Machine(self._settings)
        for event in events:
            machine.handle(event)
        return machine

    def _tick(self) -> None:
        self.submit(TimePassed(now_ms=self.now_ms), None)
        self.later(TICK_MS, self._tick)

    # --- the service ----------------------------------------------------------------------------

    def submit(self, event: Event, answered: Receive | None) -> None:
        self._waiting.append(Submission(event=event, answered=answered))
        if not self._busy:
            self._busy = True
            self.later(0, self._take)

    def put(self, digests: Iterable[Digest]) -> None:
        self.store.update(dict.fromkeys(digests, self.kernel.now_ms))
        self._checkers.blobs.put(digests)

    def missing(self, digests: tuple[Digest, ...]) -> tuple[Digest, ...]:
        """What the store lacks: of what no accepted result names, a blob may be gone again. The others are held."""
        loose = [digest for digest in digests if digest not in self._held]
        if loose and self._hits("blob-vanishes"):
            self.store.pop(self._chance.choice(loose), None)
        missing = tuple(digest for digest in digests if digest not in self.store)
        if not missing:
            self.put(digests)
            self._held.update(digests)
        return missing

    def open_session(self, stream: Stream, opened: Callable[[int], SessionOpened]) -> None:
        event = opened(self.now_ms)
        older = self.streams.get(stream.node)
        self.streams[stream.node] = stream
        stream.open_at_hub, stream.boot_id = True, event.boot_id
        self.submit(event, None)
        if older is not None:
            self._close(older, orderly=False)

    def close_session(self, stream: Stream, *, orderly: bool) -> None:
        """An end, however it is noticed; once a stream."""
        if not stream.open_at_hub:
            return
        if self.streams.get(stream.node) is stream:
            del self.streams[stream.node]
        self._close(stream, orderly=orderly)

    def _close(self, stream: Stream, *, orderly: bool) -> None:
        stream.open_at_hub = False
        closed = SessionClosed(now_ms=self.now_ms, node=stream.node, boot_id=stream.boot_id, orderly=orderly)
        self.submit(closed, None)

    # --- one batch ------------------------------------------------------------------------------

    def _take(self) -> None:
        batch = Batch(items=list(self._waiting))
        carries_work = any(isinstance(i.event, CheckpointCommitted | TaskCompleted) for i in batch.items)
        if carries_work and self._dies("hub-dies-before-handling"):
            return
        self._waiting.clear()
        self._in_flight = batch
        for item in batch.items:
            self._handle(batch, item.event, item)
        if self._collect_due:
            self._collect_due = False
            batch.roots = roots_of(self.machine.state)
        due, self._due = self._due, {}
        for run in due:
            advanced = evaluate_plan(self.machine, run, self.now_ms)
            if self.machine.is_news(advanced):
                self._handle(batch, advanced, None)
        if batch.rows and (self._dies("hub-dies-before-journalling") or self._dies("journal-full")):
            return
        self.later(self._chance.uniform(1, 15) if batch.rows else 0, lambda: self._journalled(batch))

    def _handle(self, batch: Batch, event: Event, asked: Submission | None) -> None:
        events = deque([event])
        while events:
            current = events.popleft()
            effects = self.machine.handle(current)
            answers = [effect.answer for effect in effects if isinstance(effect, Reply)]
            batch.handled.append(Handled(event=current, answer=answers[0] if answers else None))
            if isinstance(current, DurableEvent):
                batch.rows.append(current)
            for effect in effects:
                self._sort(batch, effect, events, asked)

    def _sort(self, batch: Batch, effect: Effect, events: deque[Event], asked: Submission | None) -> None:
        match effect:
            case Reply(answer=answer):
                if asked is not None:
                    asked.reply = answer
            case Record(event=fact):
                events.append(fact)
            case AdvancePlan(run=run):
                self._due[run] = None
            case NoteDivergence():
                self.kernel.mark("divergence-noted")
            case _:
                batch.pushes.append(effect)

    def _journalled(self, batch: Batch) -> None:
        self.journal.append(batch.rows)
        self._in_flight = None
        for handled in batch.handled:
            self._checkers.handled(handled)
        if batch.roots is not None:
            self._collect(batch.roots)
        self._take_snapshot()
        self._num_batches += 1
        if self._num_batches % LOOK_EVERY == 0:
            self._checkers.look(snapshot_of(self.machine.state))
        if batch.rows and self._dies("hub-dies-before-effects-leave"):
            return
        life = self.life
        for item in batch.items:
            if item.answered is not None:
                assert item.reply is not None, f"{type(item.event).__name__} got no answer"
                item.answered(item.reply)
        for push in batch.pushes:
            self._checkers.pushed(push)
            self._deliver(push)
        self._checkers.batch_left()
        assert life == self.life, "nothing that leaves may end the hub"
        self._busy = bool(self._waiting) or bool(self._due)
        if self._busy:
            self.later(0, self._take)

    def _note_collection(self) -> None:
        self._collect_due = True
        self.later(self._collect_every_ms, self._note_collection)

    def _collect(self, roots: frozenset[Digest]) -> None:
        """A twin of `coordinator.collector` in a store that is always short of room; blobs list no others here."""
        old_ms = self.kernel.now_ms - YOUNG_MS
        gone = [digest for digest, put_ms in self.store.items() if put_ms < old_ms and digest not in roots]
        for digest in gone:
            del self.store[digest]
        self._held.difference_update(gone)
        self._checkers.blobs.gave_up(gone)

    def _take_snapshot(self) -> None:
        """What the rows so far lead to is copied now, and written in a while."""
        if len(self.journal.rows) - self._rows_saved >= self._snapshot_rows:
            self._rows_saved = len(self.journal.rows)
            copy, mark = copied(self.machine.durable), self.journal.mark()
            self.later(self._chance.uniform(*SNAPSHOT_MS), lambda: self._save_snapshot(copy, mark))

    def _save_snapshot(self, copy: DurableState, mark: Mark) -> None:
        if self._dies("hub-dies-in-mid-snapshot"):
            return
        self.snapshots.save(copy, mark)
        if self._hits("snapshot-damaged"):
            self.snapshots.damage(self._chance)

    def _deliver(self, push: Push) -> None:
        stream = self.streams.get(push.node)
        if stream is not None:
            stream.push(push)

    def _dies(self, point: str) -> bool:
        if not self._hits(point):
            return False
        self.die(point)
        return True

    def _hits(self, point: str) -> bool:
        rate = self.points.get(point)
        if rate is None or self._chance.random() >= rate:
            return False
        if point in ("blob-vanishes", "snapshot-damaged"):
            self.kernel.mark(point)
        return True
