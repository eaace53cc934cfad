"""An expert node's process around the real machine: requests, fetches, puts, session and outbox, as they fail.

A twin of `expert_node.daemon` and its helpers. The disk survives a crash: the outbox, the epoch of request ids,
the blobs that were fetched.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import assert_never

from coordinator.core import effects as say
from coordinator.core import events as hear
from coordinator.core.effects import Push
from expert_node import effects as do
from expert_node import events as on
from expert_node.machine import Machine
from expert_node.outbox import IDS_PER_EPOCH
from expert_node.values import Finished, FinishedCommit, Lease, TaskLease, TrainLease
from potluck.ids import NO_DIGEST, Digest, Fence, NodeId
from potluck.net.version import package_version
from tests.simulation.calls import Calls, Came, Failed, lease_of
from tests.simulation.checkers import Checkers
from tests.simulation.hub import Hub
from tests.simulation.kernel import Kernel
from tests.simulation.network import HUB, Network, Stream
from tests.simulation.process import Process
from tests.simulation.worker import Worker

ASK_AGAIN_MS = 15_000
BACKOFF_MS = (250, 5_000)
FREE_MEMORY = 1 << 34
FATAL = ("refused.revoked", "refused.old-process")


@dataclass(kw_only=True)
class Disk:
    """What a crash leaves."""

    entries: dict[int, Finished]
    epoch: int = 0
    blobs: set[Digest]


class Node(Process):
    def __init__(
        self,
        name: str,
        *,
        kernel: Kernel,
        network: Network,
        hub: Hub,
        chance: random.Random,
        points: dict[str, float],
        checkers: Checkers,
        failures_left: dict[str, int],
        host: str,
        throttle: float,
    ) -> None:
        super().__init__(kernel)
        self.name = NodeId(name)
        self.host = host
        self.throttle = throttle
        self.slowness = throttle
        self.salt = ""
        self.points = points
        self.disk = Disk(entries={}, blobs=set())
        self.revoked = False
        self.lost = False
        """Left for good: it never starts again."""
        self.on_end: Callable[[Node], None] = lambda node: None
        self.stream: Stream | None = None
        self._network = network
        self._hub = hub
        self._chance = chance
        self._checkers = checkers
        self._failures_left = failures_left

    @property
    def gone(self) -> bool:
        return self.revoked or self.lost

    # --- life ----------------------------------------------------------------------------------

    def start(self) -> None:
        self.alive = True
        self.disk.epoch += 1
        self.boot_id = f"{self.name}-{self.life}"
        self.salt = f"bits of {self.boot_id}" if self.hits("other-bits") else ""
        if self.disk.entries:
            self.kernel.mark("outbox-redelivered")
        outbox = [self.disk.entries[number] for number in sorted(self.disk.entries)]
        self.machine = Machine(first_request_id=self.disk.epoch * IDS_PER_EPOCH, outbox=outbox)
        self._next_entry = max(self.disk.entries, default=0) + 1
        self.worker = Worker(self, self._chance)
        self._calls = Calls(self, self.name, self._network, self._hub)
        self._fetching: Lease | None = None
        self._events: deque[on.Event] = deque()
        self._handling = False
        self._failures = dict.fromkeys(("acquire", "deliver", "return", "session", "fetch"), 0)
        self.stream = None
        self._checkers.node_started(self.name)
        self._dial()
        self.later(self._hub.machine.state.settings.renew_ms, self._renew)
        self.later(ASK_AGAIN_MS, self._ask_again)

    def crash(self, why: str) -> None:
        self.kernel.mark(why)
        self._end()

    def _end(self) -> None:
        self.end_life()
        if self.stream is not None:
            self.stream.open_at_node = False
        self.on_end(self)

    def stop(self) -> None:
        self.tell(on.StopRequested())

    # --- the machine ----------------------------------------------------------------------------

    def tell(self, event: on.Event) -> None:
        """One event at a time, as the daemon does."""
        self._events.append(event)
        if self._handling:
            return
        self._handling = True
        life = self.life
        while self._events and life == self.life:
            for effect in self.machine.handle(self._events.popleft()):
                if life == self.life:
                    self._do(effect)
        self._handling = False

    def _do(self, effect: do.Effect) -> None:
        match effect:
            case do.AskForLease():
                busy = self.worker.lease is not None or self._fetching is not None
                self._checkers.requested(self.name, "acquire", effect.request_id, "", busy=busy)
                self._ask(effect)
            case do.FetchInputs(lease=lease):
                self._fetching = lease
                self.later(self._chance.uniform(20, 400), lambda: self._fetched(lease))
            case do.CancelFetch(fence=fence):
                self._fetching = None
                self.later(1, lambda: self.tell(on.WorkerStopped(fence=fence)))
            case do.StartTraining(lease=train):
                self.worker.start(train)
            case do.StartTask(lease=task):
                self.worker.start(task)
            case do.StopWorker(fence=fence):
                self.worker.stop(fence)
            case do.AckCheckpoint(fence=fence):
                self.worker.acknowledge(fence)
            case do.PutAndCommit() | do.PutAndComplete():
                entry = effect.commit if isinstance(effect, do.PutAndCommit) else effect.result
                self._checkers.requested(self.name, "deliver", effect.request_id, str(entry.entry))
                self._put(effect, entry)
            case do.DropEntry(entry=number, reason=reason):
                self._drop(number, reason)
            case do.ReturnLease():
                self._checkers.requested(self.name, "return", effect.request_id, str(effect.fence))
                self._give_back(effect)
            case do.Exit():
                self.kernel.mark("node-left")
                if self.stream is not None:
                    stream = self.stream
                    stream.up(self._hub.here(lambda: self._hub.close_session(stream, orderly=True)))
                self._end()
            case _:
                assert_never(effect)

    # --- requests -------------------------------------------------------------------------------

    def _ask(self, effect: do.AskForLease) -> None:
        held = tuple(sorted(self.disk.blobs))

        def event(now_ms: int) -> hear.LeaseRequested:
            return hear.LeaseRequested(
                now_ms=now_ms,
                node=self.name,
                request_id=effect.request_id,
                boot_id=self.boot_id,
                free_memory_bytes=FREE_MEMORY,
                held=held,
                host=self.host,
            )

        self._calls.send(event, lambda answer: self._granted(effect.request_id, answer))

    def _granted(self, request_id: int, answer: Came) -> None:
        match answer:
            case say.TrainGranted() | say.TaskGranted():
                self._failures["acquire"] = 0
                if self._dies("node-dies-with-new-grant"):
                    return
                self.tell(on.GrantReceived(request_id=request_id, lease=lease_of(answer)))
            case say.NothingToDo(reason=reason):
                self._failures["acquire"] = 0
                self.tell(on.NothingReceived(request_id=request_id, reason=reason))
            case _:
                self._no_answer("acquire", request_id, answer)

    def _put(self, effect: do.PutAndCommit | do.PutAndComplete, entry: Finished) -> None:
        """The data plane: each blob, then the call. A store may refuse, now and then and not for good."""
        if self.fails("put-refused", entry.label):
            refused = on.DeliveryFailed(request_id=effect.request_id, error_id="resource.quota", message="no room")
            self._checkers.told_never(self.name, entry)
            self.later(5, lambda: self.tell(refused))
            return
        files = [digest for digest, _ in entry.files if not effect.missing or digest in effect.missing]
        self.later(self._chance.uniform(5, 60) * (1 + len(files)), lambda: self._was_put(effect, entry, files))

    def _was_put(self, effect: do.PutAndCommit | do.PutAndComplete, entry: Finished, files: list[Digest]) -> None:
        if not self._reaches_hub():
            self._no_answer("deliver", effect.request_id, Failed())
            return
        self._hub.put(files)
        digests = tuple(digest for digest, _ in entry.files)
        self._calls.send(
            lambda now_ms: self._calls.delivery(effect, now_ms),
            lambda answer: self._delivered(effect.request_id, entry, answer),
            needs=digests,
        )

    def _delivered(self, request_id: int, entry: Finished, answer: Came) -> None:
        event: on.Event
        match answer:
            case say.CommitAccepted():
                event = on.CommitAnswered(request_id=request_id, accepted=True, yield_lease=answer.yield_lease)
            case say.CommitRefused(reason=reason):
                event = on.CommitAnswered(request_id=request_id, accepted=False, reason=reason)
            case say.TaskAccepted():
                event = on.TaskAnswered(request_id=request_id, accepted=True)
            case say.TaskRefused(reason=reason):
                event = on.TaskAnswered(request_id=request_id, accepted=False, reason=reason)
            case tuple() as missing:
                self.kernel.mark("blobs-put-again")
                answered = on.CommitAnswered if isinstance(entry, FinishedCommit) else on.TaskAnswered
                event = answered(request_id=request_id, accepted=False, reason="the store lacks these", missing=missing)
            case _:
                self._no_answer("deliver", request_id, answer)
                return
        self._failures["deliver"] = 0
        if not isinstance(answer, tuple):
            self._checkers.told(self.name, entry, answer)
        self.tell(event)

    def _give_back(self, effect: do.ReturnLease) -> None:
        def event(now_ms: int) -> hear.LeaseReturned:
            return hear.LeaseReturned(
                now_ms=now_ms,
                node=self.name,
                request_id=effect.request_id,
                fence=effect.fence,
                error_id=effect.error_id,
                message=effect.message,
            )

        self._calls.send(event, lambda answer: self._given_back(effect.request_id, answer))

    def _given_back(self, request_id: int, answer: Came) -> None:
        if isinstance(answer, Failed):
            self._no_answer("return", request_id, answer)
        else:
            self._failures["return"] = 0
            self.tell(on.ReturnAnswered(request_id=request_id))

    def _no_answer(self, verb: on.Verb, request_id: int, answer: object) -> None:
        if isinstance(answer, say.Denied) and answer.error_id in FATAL:
            self.kernel.mark(answer.error_id)
            self._checkers.denied(self.name, answer.error_id, is_revoked=self.revoked)
            self._end()
            return
        self.later(self._backoff_ms(verb), lambda: self.tell(on.RequestFailed(verb=verb, request_id=request_id)))

    def _backoff_ms(self, what: str) -> float:
        first, most = BACKOFF_MS
        pause = min(first * 2.0 ** self._failures[what], most)
        self._failures[what] += 1
        return pause * self._chance.uniform(0.5, 1.0)

    def _renew(self) -> None:
        fence = self.machine.fence
        if fence:
            self._calls.send(
                lambda now_ms: hear.LeaseRenewed(now_ms=now_ms, node=self.name, fence=fence),
                lambda answer: self._renewed(fence, answer),
            )
        self.later(self._hub.machine.state.settings.renew_ms, self._renew)

    def _renewed(self, fence: Fence, answer: Came) -> None:
        if isinstance(answer, say.RenewAnswer) and not answer.renewed:
            self.kernel.mark("renewal-refused")
            self._lost(fence, answer.reason)

    def _lost(self, fence: Fence, reason: str) -> None:
        held = self.machine.fence == fence  # news of a lease whose grant has not come yet passes unheard
        self.tell(on.LeaseLost(fence=fence, reason=reason))
        lease = self.worker.lease if self.alive else None
        still_works = lease is not None and lease.fence == fence and not self.worker.stopping
        self._checkers.lease_lost(self.name, fence, held=held, still_works=still_works)

    def _ask_again(self) -> None:
        self.tell(on.Woken())
        self.later(ASK_AGAIN_MS, self._ask_again)

    # --- inputs and outbox -----------------------------------------------------------------------

    def _fetched(self, lease: Lease) -> None:
        if self._fetching is not lease:
            return
        if not self._reaches_hub():
            self.later(self._backoff_ms("fetch"), lambda: self._fetched(lease))
            return
        self._failures["fetch"] = 0
        self._fetching = None
        wanted = _inputs(lease)
        missing = [digest for digest in wanted if digest not in self._hub.store]
        self._checkers.fetched(self.name, lease.fence, lease.label, missing)
        if missing:
            self.kernel.mark("inputs-of-an-ended-lease-are-gone")
            self.tell(on.InputsFailed(fence=lease.fence, error_id="data.missing", message="they are gone"))
            return
        if self.fails("inputs-fail", lease.label):
            self.tell(on.InputsFailed(fence=lease.fence, error_id="data.digest-mismatch", message="damaged"))
            return
        self.disk.blobs.update(wanted)
        self.tell(on.InputsReady(fence=lease.fence))

    def _drop(self, number: int, reason: str) -> None:
        entry = self.disk.entries.get(number)
        if entry is None or self._dies("node-dies-before-drop"):
            return
        self._checkers.dropped(self.name, entry, reason)
        del self.disk.entries[number]
        if not reason:
            self.disk.blobs.update(digest for digest, _ in entry.files)

    def next_entry(self) -> int:
        self._next_entry += 1
        return self._next_entry - 1

    def keep(self, entry: Finished, salt: str) -> bool:
        self.disk.entries[entry.entry] = entry
        self._checkers.made(self.name, entry, salt)
        return not self._dies("node-dies-with-entry-untold")

    def begun(self, fence: Fence) -> None:
        self._checkers.begun(self.name, fence)

    def trained(self, lineage: str, fence: Fence, step: int) -> None:
        self._checkers.trained(lineage, fence, step)

    # --- the session ----------------------------------------------------------------------------

    def _dial(self) -> None:
        if not self._reaches_hub():
            self.later(self._backoff_ms("session"), self._dial)
            return
        stream = Stream(self.kernel, self._network, self._chance, self.name, self._receive_on(self.life))
        self.stream = stream
        boot_id = self.boot_id

        def opened(now_ms: int) -> hear.SessionOpened:
            return hear.SessionOpened(
                now_ms=now_ms,
                node=self.name,
                role="node",
                boot_id=boot_id,
                version=package_version(),
                hostname=self.host,
                cores=1,
                memory_bytes=FREE_MEMORY,
            )

        stream.up(self._hub.here(lambda: self._hub.open_session(stream, opened)))
        stream.up(self._hub.here(lambda: stream.down(self.here(lambda: self._welcomed(stream)))))

    def _welcomed(self, stream: Stream) -> None:
        if self.stream is not stream or not stream.open_at_node:
            return
        self._failures["session"] = 0
        self.tell(on.SessionUp())
        self._beat(stream)

    def _beat(self, stream: Stream) -> None:
        if self.stream is not stream or not stream.open_at_node:
            return
        fence, activity = self.machine.fence, self.machine.activity
        stream.up(self._hub.here(lambda: self._heard(stream, fence, activity)))
        self.later(self._hub.machine.state.settings.heartbeat_ms, lambda: self._beat(stream))

    def _heard(self, stream: Stream, fence: Fence, activity: str) -> None:
        """At the hub: what comes on a stream that ended there goes nowhere."""
        if stream.open_at_hub:
            now_ms = self._hub.now_ms
            beat = hear.HeartbeatReceived(now_ms=now_ms, node=self.name, fence=fence, activity=activity)
            self._hub.submit(beat, None)

    def broken(self, stream: Stream) -> None:
        """The node's end of a stream has noticed that it is dead."""
        if not stream.open_at_node:
            return
        stream.open_at_node = False
        self.tell(on.SessionDown())
        self.later(self._backoff_ms("session"), self._dial)

    def _receive_on(self, life: int) -> Callable[[Push], None]:
        return lambda push: self.enter(life, lambda: self._take_push(push))

    def _take_push(self, push: Push) -> None:
        if self.stream is None or not self.stream.open_at_node:
            return
        match push:
            case say.Wake():
                self.tell(on.Woken())
            case say.Revoke(fence=fence, reason=reason):
                self.kernel.mark("revoke-received")
                self._lost(fence, reason)
            case say.SendDrain():
                self.kernel.mark("drain-received")
                self.tell(on.Drained())
            case say.SendServe(slots=slots):
                self._checkers.serves(self.name, {(slot.run, slot.slot): slot.weights for slot in slots})
            case say.SendRouters() | say.SendView():
                pass
            case _:
                assert_never(push)

    # --- chance ---------------------------------------------------------------------------------

    def hits(self, point: str) -> bool:
        rate = self.points.get(point)
        if rate is None or self._chance.random() >= rate:
            return False
        self.kernel.mark(point)
        return True

    def fails(self, point: str, work: str) -> bool:
        """A run fails at the third error of one work: the world stops short of that."""
        left = self._failures_left.setdefault(work, 2)
        if left <= 0 or not self.hits(point):
            return False
        self._failures_left[work] = left - 1
        return True

    def _dies(self, point: str) -> bool:
        if not self.hits(point):
            return False
        self._end()
        return True

    def _reaches_hub(self) -> bool:
        return self._hub.runs and self._network.passes_both(self.name, HUB)


def _inputs(lease: Lease) -> list[Digest]:
    """Blobs that a lease names and somebody had to put: the corpus and its shards are not among them."""
    if isinstance(lease, TaskLease):
        return [digest for name, digest in lease.inputs if name not in ("corpus", "corpus_manifest", "documents")]
    assert isinstance(lease, TrainLease)
    todo = [segment for segment in lease.segments if segment.end_step > lease.head_step]
    wanted = [segment.data.tokens for segment in todo]
    wanted += [segment.data.assignment for segment in todo if segment.data.kind == "assigned"]
    for segment in todo:
        wanted += [segment.data.labels, segment.data.mixture] if segment.data.kind == "clustered" else []
        wanted += [segment.data.labels] if segment.data.kind == "mixtures" else []
    if lease.head_step:
        return [*wanted, lease.head, lease.weights, lease.optimizer]
    origin = lease.recipe.origin
    return wanted if origin is None else [*wanted, *(d for d in (origin.weights, origin.optimizer) if d != NO_DIGEST)]
