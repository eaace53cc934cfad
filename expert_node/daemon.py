"""The node: one event loop in which the machine decides and everything else obeys."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, assert_never

import psutil

from expert_node import effects as do
from expert_node import events as on
from expert_node.attach import Attachments, serving_message
from expert_node.backoff import Backoff
from expert_node.cache import DEFAULT_LIMIT_BYTES, Cache
from expert_node.child import GroupNote
from expert_node.coordinator_calls import CoordinatorCalls
from expert_node.fetch import fetch_inputs
from expert_node.machine import Machine
from expert_node.outbox import Outbox, next_epoch
from expert_node.recording import Recording
from expert_node.room import LOOK_AGAIN_S, Room
from expert_node.serve import Serving, Slot, SlotState
from expert_node.session import Session, is_fatal
from expert_node.values import Finished, FinishedCommit, Lease
from expert_node.workshop import Workshop
from potluck.clock import SystemClock
from potluck.crashpoints import crash_here
from potluck.errors import NotReachable, PotluckError
from potluck.ids import Digest, Fence
from potluck.metrics_sinks import Recorder
from potluck.net.channels import open_channel
from potluck.net.counters import Plane
from potluck.net.identity import Identity
from potluck.net.version import make_hello
from potluck.recipe import Profile
from potluck.telemetry import logger
from potluck.v1 import node_pb2

RENEW_SECONDS = 10.0
"""A third of the shortest lease in use: two renewals may be lost."""
ASK_AGAIN_SECONDS = 15.0
"""An idle node asks this often without being woken: a wake-up may be lost with its stream."""

log = logger("expert_node")


class Node:
    """One expert node on one home folder.

    Args:
        home: holds `outbox/`, `blobs/` and `work/`; its lock is the caller's affair.
        boot_id: new at each process start.
        recorder: gets what training measures; the node closes it.
        hostname: of the machine, if not what the system calls it.
        cache_bytes: most bytes of blobs that stay when it asks for work.
    """

    def __init__(
        self,
        home: Path,
        identity: Identity,
        *,
        boot_id: str,
        recorder: Recorder | None = None,
        hostname: str = "",
        cache_bytes: int = DEFAULT_LIMIT_BYTES,
    ) -> None:
        self.identity = identity
        self.welcomed = asyncio.Event()
        self._outbox = Outbox(home / "outbox")
        self._machine = Machine(first_request_id=next_epoch(home / "outbox"), outbox=self._outbox.entries())
        self._cache = Cache(home / "blobs", identity, limit_bytes=cache_bytes)
        self._room = Room(home)
        notes = GroupNote(home / "work" / "worker.json")
        for pid in notes.kill_stale():
            log.fact("stale-worker-killed", pid=pid)
        self._recording = Recording(recorder, node=identity.node_id, clock=SystemClock())
        self._workshop = Workshop(home / "work", self._outbox, notes, self._recording, self.tell)
        self._serving = Serving(notes=notes, fetch=self._fetch_weights, publish=self._publish_serving)
        self._attachments = Attachments(identity, self._serving)
        self._channel = open_channel(identity)
        self._calls = CoordinatorCalls(self._channel, boot_id=boot_id)
        self._session = Session(
            identity,
            self._channel,
            hello=make_hello(boot_id=boot_id, hostname=hostname),
            heartbeat=self._heartbeat,
            serving=lambda: serving_message(self._serving.states),
            on_up=lambda: self.tell(on.SessionUp()),
            on_down=lambda: self.tell(on.SessionDown()),
            on_item=self._session_item,
        )
        self._events: deque[on.Event] = deque()
        self._handling = False
        self._jobs: set[asyncio.Task[None]] = set()
        self._fetch: asyncio.Task[None] | None = None
        self._inputs: dict[Digest, Path] = {}
        self._backoff = {verb: Backoff() for verb in ("acquire", "deliver", "return")}
        self._leave = asyncio.Event()
        self._fatal: BaseException | None = None

    async def run(self) -> None:
        """Works until it is told to stop.

        Raises:
            JoinError, Refused: the coordinator wants nothing of this node any more.
        """
        session = self._start(self._session.run(), "session")
        for coroutine, name in ((self._renew_forever(), "renew"), (self._ask_forever(), "ask again")):
            self._start(coroutine, name)
        try:
            await self._workshop.warm_up(Profile())
            self._go_on([])
            await self._leave.wait()
        finally:
            self._session.close()
            await asyncio.wait([session], timeout=3.0)
            await self._close()
        if self._fatal is not None:
            raise self._fatal

    @property
    def outbox_size(self) -> int:
        """Finished commits and results that wait for an answer."""
        return len(self._machine.outbox)

    def stop(self) -> None:
        """Stops in good order: the worker at its next step, the lease given back, a bye."""
        self.tell(on.StopRequested())

    def tell(self, event: on.Event) -> None:
        """Tells the machine what happened and does what it says; one event at a time."""
        if isinstance(event, on.WorkerFailed | on.InputsFailed):
            self._room.note_failure(event.error_id)
        self._events.append(event)
        if self._handling:
            return
        self._handling = True
        try:
            while self._events:
                self._go_on(self._machine.handle(self._events.popleft()))
        finally:
            self._handling = False

    def _go_on(self, effects: list[do.Effect]) -> None:
        for effect in effects:
            self._do(effect)

    def _do(self, effect: do.Effect) -> None:
        match effect:
            case do.AskForLease():
                self._start(self._ask(effect), "ask")
            case do.FetchInputs(lease=lease):
                self._fetch = self._start(self._fetch_inputs(lease), "fetch")
            case do.CancelFetch(fence=fence):
                self._cancel_fetch(fence)
            case do.StartTraining(lease=lease):
                self._start(self._workshop.start(lease, self._inputs), "start training")
            case do.StartTask(lease=lease):
                self._start(self._workshop.start(lease, self._inputs), "start task")
            case do.StopWorker(fence=fence):
                self._workshop.stop(fence)
            case do.AckCheckpoint(fence=fence, step=step):
                self._workshop.acknowledge(fence, step)
            case do.PutAndCommit() | do.PutAndComplete():
                self._start(self._deliver(effect), "deliver")
            case do.DropEntry(entry=entry, reason=reason):
                self._start(self._drop(entry, reason), "drop")
            case do.ReturnLease():
                self._start(self._give_back(effect), "return")
            case do.Exit():
                self._leave.set()
            case _:
                assert_never(effect)

    # Requests. No answer is told after a pause, so that the machine's repeat does not hammer.

    async def _ask(self, effect: do.AskForLease) -> None:
        served = {state.slot.weights for state in self._serving.states}
        await asyncio.to_thread(self._cache.trim, served)
        if self._room.is_short:
            await asyncio.to_thread(self._cache.clear, served)
        if self._room.is_short:
            await asyncio.sleep(LOOK_AGAIN_S)
            self.tell(on.RequestFailed(verb="acquire", request_id=effect.request_id))
            return
        held = await asyncio.to_thread(self._cache.held)
        free = psutil.virtual_memory().available
        try:
            answer = await self._calls.acquire(effect.request_id, free_memory_bytes=free, held=held)
        except PotluckError as error:
            await self._no_answer("acquire", effect.request_id, error)
            return
        self._backoff["acquire"].reset()
        if isinstance(answer, on.GrantReceived):
            log.fact("lease-granted", fence=answer.lease.fence, label=answer.lease.label)
        self.tell(answer)

    async def _give_back(self, effect: do.ReturnLease) -> None:
        log.fact("lease-returned", fence=effect.fence, error_id=effect.error_id, message=effect.message)
        try:
            answer = await self._calls.give_back(effect.request_id, effect.fence, effect.error_id, effect.message)
        except PotluckError as error:
            await self._no_answer("return", effect.request_id, error)
            return
        self._backoff["return"].reset()
        self.tell(answer)

    async def _deliver(self, effect: do.PutAndCommit | do.PutAndComplete) -> None:
        entry = effect.commit if isinstance(effect, do.PutAndCommit) else effect.result
        plane: Plane = "weights" if isinstance(entry, FinishedCommit) else entry.plane
        answer: on.Event
        try:
            for digest, _ in entry.files:
                if not effect.missing or digest in effect.missing:
                    await self._cache.put(digest, self._outbox.path_of(entry, digest), plane)
            crash_here(f"node.mid-delivery.{type(entry).__name__}")
            if isinstance(effect, do.PutAndCommit):
                answer = await self._calls.commit(effect.request_id, effect.commit)
            else:
                answer = await self._calls.complete(effect.request_id, effect.result)
        except NotReachable as error:
            await self._no_answer("deliver", effect.request_id, error)
            return
        except PotluckError as error:
            if is_fatal(error):
                await self._no_answer("deliver", effect.request_id, error)
                return
            log.fact("delivery-failed", label=entry.label, error_id=error.error_id, message=error.message)
            self.tell(on.DeliveryFailed(request_id=effect.request_id, error_id=error.error_id, message=error.message))
            return
        self._backoff["deliver"].reset()
        self._log_delivery(entry, answer)
        self.tell(answer)

    def _log_delivery(self, entry: Finished, answer: on.Event) -> None:
        assert isinstance(answer, on.CommitAnswered | on.TaskAnswered), answer
        if answer.missing:
            log.fact("blobs-missing-there", label=entry.label, count=len(answer.missing))
        elif not answer.accepted:
            log.fact("result-refused", label=entry.label, reason=answer.reason)
        elif isinstance(entry, FinishedCommit):
            log.fact("committed", label=entry.label, start=entry.start_step, end=entry.end_step)

    async def _no_answer(self, verb: on.Verb, request_id: int, error: PotluckError) -> None:
        backoff = self._backoff[verb]
        if is_fatal(error):
            self._end_with(error)
            return
        if backoff.failures == 0:
            log.fact("no-answer", verb=verb, error_id=error.error_id, message=error.message)
        await backoff.pause()
        self.tell(on.RequestFailed(verb=verb, request_id=request_id))

    async def _drop(self, number: int, reason: str) -> None:
        if reason:
            log.fact("outbox-entry-dropped", entry=number, reason=reason)
        await asyncio.to_thread(self._outbox.remove, number, None if reason else self._cache.adopt)

    # Inputs.

    async def _fetch_inputs(self, lease: Lease) -> None:
        backoff = Backoff()
        while True:
            try:
                self._inputs = await fetch_inputs(lease, self._cache)
            except asyncio.CancelledError:
                self.tell(on.WorkerStopped(fence=lease.fence))
                return
            except NotReachable as error:
                # An outage is not the work's fault: go on until the lease is lost.
                log.fact("fetch-waits", label=lease.label, error_id=error.error_id, message=error.message)
                await backoff.pause()
            except PotluckError as error:
                if is_fatal(error):
                    self._end_with(error)
                log.fact("inputs-failed", label=lease.label, error_id=error.error_id, message=error.message)
                self.tell(on.InputsFailed(fence=lease.fence, error_id=error.error_id, message=error.message))
                return
            else:
                self.tell(on.InputsReady(fence=lease.fence))
                return

    def _cancel_fetch(self, fence: Fence) -> None:
        assert self._fetch is not None
        if self._fetch.done():
            self.tell(on.WorkerStopped(fence=fence))
        else:
            self._fetch.cancel()

    async def _fetch_weights(self, digest: Digest) -> Path:
        return await self._cache.get(digest, "weights")

    # The session.

    def _heartbeat(self) -> node_pb2.Heartbeat:
        progress, work = self._workshop.progress, self._machine
        traffic = self._cache.counter
        return node_pb2.Heartbeat(
            fence=work.fence,
            activity=work.activity,
            step=progress.step,
            tokens_per_second=progress.tokens_per_second,
            loss=progress.loss,
            fraction=progress.fraction,
            rss_bytes=psutil.Process().memory_info().rss + self._workshop.rss_bytes(),
            tokens_total=self._workshop.tokens_total,
            data_bytes_in=traffic.total("in"),
            data_bytes_out=traffic.total("out"),
            grad_norm=progress.grad_norm,
            learning_rate=progress.learning_rate,
            flops_per_second=progress.flops_per_second,
            mfu=progress.mfu,
        )

    async def _session_item(self, item: node_pb2.DownItem) -> None:
        match item.WhichOneof("item"):
            case "welcome":
                self.welcomed.set()
            case "wake":
                self.tell(on.Woken())
            case "revoke":
                if item.revoke.fence == self._machine.fence:  # Else it crossed the end of that lease.
                    log.fact("lease-revoked", fence=item.revoke.fence, reason=item.revoke.reason)
                self.tell(on.LeaseLost(fence=Fence(item.revoke.fence), reason=item.revoke.reason))
            case "drain":
                log.fact("coordinator-drains", reason=item.drain.reason)
                self.tell(on.Drained())
            case "routers":
                await self._attachments.dial(list(item.routers.addresses))
            case "serve":
                await self._serving.assign([_slot(a) for a in item.serve.assignments])
            case _:
                pass  # A bye ends the stream by itself; views are for routers; later versions may say more.

    def _publish_serving(self, states: tuple[SlotState, ...]) -> None:
        self._session.say_serving()
        self._attachments.publish(states)

    # Loops and ends.

    async def _renew_forever(self) -> None:
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            fence = self._machine.fence
            if not fence:
                continue
            try:
                reason = await self._calls.renew(fence)
            except NotReachable:
                continue  # The session says that the coordinator is away.
            except PotluckError as error:
                log.fact("renewal-failed", fence=fence, error_id=error.error_id, message=error.message)
                continue
            if reason is not None:
                log.fact("lease-lost", fence=fence, reason=reason)
                self.tell(on.LeaseLost(fence=fence, reason=reason))

    async def _ask_forever(self) -> None:
        while True:
            await asyncio.sleep(ASK_AGAIN_SECONDS)
            self.tell(on.Woken())

    def _start(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine, name=name)
        self._jobs.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._jobs.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._end_with(error)

    def _end_with(self, error: BaseException) -> None:
        """Something no repeat can mend: the node ends, and says why."""
        if self._fatal is None:
            self._fatal = error
        self._leave.set()

    async def _close(self) -> None:
        for task in list(self._jobs):
            task.cancel()
        await asyncio.gather(*self._jobs, return_exceptions=True)
        await self._attachments.close()
        await self._serving.close()
        await self._workshop.close()
        await asyncio.to_thread(self._recording.close)
        await self._channel.close(None)
        await asyncio.to_thread(self._cache.close)


def _slot(assignment: node_pb2.ServeAssignment) -> Slot:
    return Slot(
        run=assignment.run,
        slot=assignment.slot,
        weights=Digest(assignment.weights),
        model_json=assignment.model_json,
    )
