"""The node's mind: events in, effects out. No I/O, no time, no chance.

One lease at a time, one outstanding request per verb. A request is repeated with its id until it is
answered (`RequestFailed` says that no answer came; the shell waits before it says so). Finished work
is on disk before `CheckpointWritten` or `TaskFinished` is told, so a machine born after a crash starts
from the outbox alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import assert_never

from expert_node import effects as do
from expert_node import events as on
from expert_node.values import Finished, FinishedCommit, FinishedTask, Lease, TaskLease, TrainLease
from potluck.ids import Fence

MAX_OUTBOX = 64
"""Entries kept before the worker is held up: a lineage commits at most 32 times plus its segments' ends."""

LEAVING = "the node is leaving"


@dataclass(frozen=True, kw_only=True)
class Idle:
    pass


@dataclass(frozen=True, kw_only=True)
class Fetching:
    """Its inputs are on their way to this node."""

    lease: Lease


@dataclass(frozen=True, kw_only=True)
class Working:
    """The worker trains, or runs the task."""

    lease: Lease


@dataclass(frozen=True, kw_only=True)
class Stopping:
    """The worker, or the fetch, was told to stop. `held`: the lease is still ours, as far as we know."""

    lease: Lease
    held: bool
    error_id: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Finishing:
    """The worker is done with the lease; its last results are delivered, then it is given back if still held."""

    lease: Lease
    held: bool
    error_id: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Returning:
    """`ReturnLease` is on its way."""

    lease: Lease


Work = Idle | Fetching | Working | Stopping | Finishing | Returning


class Machine:
    """What a node does next.

    Args:
        first_request_id: above every id that this node used before; see `outbox.next_epoch`.
        outbox: what an earlier process finished and nobody confirmed, oldest first.
    """

    def __init__(self, *, first_request_id: int = 1, outbox: Sequence[Finished] = ()) -> None:
        self.work: Work = Idle()
        self.outbox: list[Finished] = list(outbox)
        self.session_up = False
        self.draining = False
        self.leaving = False
        self._gone = False
        self._woken = True
        self._next_id = dict.fromkeys(("acquire", "deliver", "return"), first_request_id)
        self._open: dict[on.Verb, do.Request] = {}
        self._held_acks: list[do.AckCheckpoint] = []

    @property
    def fence(self) -> Fence:
        """The lease in hand, which heartbeats name and renewals keep; 0 when there is none."""
        if isinstance(self.work, Fetching | Working | Returning):
            return self.work.lease.fence
        if isinstance(self.work, Stopping | Finishing) and self.work.held:
            return self.work.lease.fence
        return Fence(0)

    @property
    def activity(self) -> str:
        """training | task | fetching | idle, for heartbeats."""
        if isinstance(self.work, Fetching):
            return "fetching"
        if isinstance(self.work, Working):
            return "training" if isinstance(self.work.lease, TrainLease) else "task"
        return "idle"

    def handle(self, event: on.Event) -> list[do.Effect]:
        """Takes one event and says what must happen now, in this order."""
        effects = self._take(event)
        return effects + self._go_on()

    def _take(self, event: on.Event) -> list[do.Effect]:
        match event:
            case on.SessionUp():
                self.session_up, self.draining, self._woken = True, False, True
            case on.SessionDown():
                self.session_up = False
            case on.Woken():
                self._woken = True
            case on.Drained():
                self.draining = True
            case on.StopRequested():
                return self._leave()
            case on.GrantReceived():
                return self._granted(event)
            case on.NothingReceived():
                self._answered("acquire", event.request_id)
            case on.InputsReady() | on.InputsFailed() | on.WorkerDone() | on.WorkerFailed() | on.WorkerStopped():
                return self._progressed(event)
            case on.CheckpointWritten() | on.TaskFinished():
                return self._finished(event)
            case on.CommitAnswered() | on.TaskAnswered() | on.DeliveryFailed():
                return self._delivered(event)
            case on.ReturnAnswered():
                if self._answered("return", event.request_id) and isinstance(self.work, Returning):
                    self.work, self._woken = Idle(), True
            case on.LeaseLost():
                return self._lose(event.reason) if event.fence == self.fence else []
            case on.RequestFailed():
                return self._repeat(event)
            case _:
                assert_never(event)
        return []

    # What follows from where we stand, whatever the event was.

    def _go_on(self) -> list[do.Effect]:
        effects: list[do.Effect] = []
        if self.outbox and "deliver" not in self._open and not self._cut_off():
            effects.append(self._deliver_oldest())
        if isinstance(self.work, Finishing) and not self._waiting_in_outbox(self.work.lease):
            effects += self._give_back(self.work)
        if self.leaving:
            return effects + self._exit_when_done()
        wants = isinstance(self.work, Idle) and self._woken and not self.outbox
        if wants and self.session_up and not self.draining and not self._open:
            self._woken = False
            ask = do.AskForLease(request_id=self._take_id("acquire"))
            self._open["acquire"] = ask
            effects.append(ask)
        return effects

    def _deliver_oldest(self) -> do.Effect:
        entry = self.outbox[0]
        request_id = self._take_id("deliver")
        effect: do.PutAndCommit | do.PutAndComplete
        if isinstance(entry, FinishedCommit):
            effect = do.PutAndCommit(request_id=request_id, commit=entry)
        else:
            effect = do.PutAndComplete(request_id=request_id, result=entry)
        self._open["deliver"] = effect
        return effect

    def _give_back(self, work: Finishing) -> list[do.Effect]:
        if not work.held or self._cut_off():
            self.work, self._woken = Idle(), True
            return []
        give = do.ReturnLease(
            request_id=self._take_id("return"),
            fence=work.lease.fence,
            error_id=work.error_id,
            message=work.message,
        )
        self._open["return"] = give
        self.work = Returning(lease=work.lease)
        return [give]

    def _exit_when_done(self) -> list[do.Effect]:
        busy = isinstance(self.work, Fetching | Working | Stopping)
        waiting = self.session_up and (bool(self._open) or bool(self.outbox))
        if busy or waiting or self._gone:
            return []
        self._gone = True
        return [do.Exit()]

    # Events.

    def _leave(self) -> list[do.Effect]:
        self.leaving = True
        return self._stop(held=True, message=LEAVING)

    def _granted(self, event: on.GrantReceived) -> list[do.Effect]:
        if not self._answered("acquire", event.request_id):
            return []
        assert isinstance(self.work, Idle), self.work
        if self.leaving:
            self.work = Finishing(lease=event.lease, held=True, error_id="", message=LEAVING)
            return []
        self.work = Fetching(lease=event.lease)
        return [do.FetchInputs(lease=event.lease)]

    def _progressed(
        self, event: on.InputsReady | on.InputsFailed | on.WorkerDone | on.WorkerFailed | on.WorkerStopped
    ) -> list[do.Effect]:
        work = self.work
        if isinstance(work, Idle | Finishing | Returning) or work.lease.fence != event.fence:
            return []
        lease = work.lease
        if isinstance(event, on.InputsReady):
            if not isinstance(work, Fetching):
                return []
            self.work = Working(lease=lease)
            if isinstance(lease, TrainLease):
                return [do.StartTraining(lease=lease)]
            return [do.StartTask(lease=lease)]
        self._held_acks.clear()
        held, error_id, message = True, "", ""
        if isinstance(work, Stopping):
            held, error_id, message = work.held, work.error_id, work.message
        elif isinstance(event, on.InputsFailed | on.WorkerFailed):
            error_id, message = event.error_id, event.message
        self.work = Finishing(lease=lease, held=held, error_id=error_id, message=message)
        return []

    def _finished(self, event: on.CheckpointWritten | on.TaskFinished) -> list[do.Effect]:
        if isinstance(event, on.TaskFinished):
            self.outbox.append(event.result)
            return []
        commit = event.commit
        self.outbox.append(commit)
        ack = do.AckCheckpoint(fence=commit.fence, step=commit.end_step)
        if len(self.outbox) < MAX_OUTBOX:
            return [ack]
        self._held_acks.append(ack)
        return []

    def _delivered(self, event: on.CommitAnswered | on.TaskAnswered | on.DeliveryFailed) -> list[do.Effect]:
        if not self._is_open("deliver", event.request_id):
            return []
        if not isinstance(event, on.DeliveryFailed) and event.missing:
            # The store lacks some of it: the same request, with these put again.
            again = self._open["deliver"]
            assert isinstance(again, do.PutAndCommit | do.PutAndComplete), again
            again = replace(again, missing=event.missing)
            self._open["deliver"] = again
            return [again]
        del self._open["deliver"]
        entry = self.outbox[0]
        if isinstance(event, on.DeliveryFailed):
            return self._drop_undeliverable(entry, event)
        if isinstance(entry, FinishedTask):
            # A task's lease ends with the answer to its result, whatever that is.
            effects = self._end_lease(entry, event.reason)
            return effects + self._drop([entry], "" if event.accepted else event.reason)
        if event.accepted:
            effects = self._drop([entry], "")
            if isinstance(event, on.CommitAnswered) and event.yield_lease:
                # The lease ended with this answer: somebody else's turn, or its target is reached.
                effects += self._end_lease(entry, "yielded")
            return effects
        rest: list[Finished] = [e for e in self.outbox if isinstance(e, FinishedCommit) and e.lineage == entry.lineage]
        return self._drop(rest, event.reason) + self._stop_if(entry, message=event.reason)

    def _end_lease(self, entry: Finished, message: str) -> list[do.Effect]:
        """The coordinator holds nothing for us any more under the lease that `entry` came of."""
        if isinstance(self.work, Idle | Returning) or not _same_work(self.work.lease, entry):
            return []
        return self._lose(message)

    def _drop_undeliverable(self, entry: Finished, event: on.DeliveryFailed) -> list[do.Effect]:
        """The store or the coordinator will never take this: say so with the lease."""
        same: list[Finished] = [e for e in self.outbox if e.fence == entry.fence]
        effects = self._drop(same, event.message)
        if isinstance(self.work, Finishing) and _same_work(self.work.lease, entry):
            self.work = replace(self.work, error_id=event.error_id, message=event.message)
            return effects
        return effects + self._stop_if(entry, error_id=event.error_id, message=event.message)

    def _lose(self, message: str) -> list[do.Effect]:
        if isinstance(self.work, Stopping | Finishing):
            self.work = replace(self.work, held=False)
            return []
        return self._stop(held=False, message=message)

    def _repeat(self, event: on.RequestFailed) -> list[do.Effect]:
        if not self._is_open(event.verb, event.request_id):
            return []
        if not self.leaving:
            return [self._open[event.verb]]
        # Nobody waits for a node that leaves.
        self.session_up = False
        del self._open[event.verb]
        return []

    # Small steps.

    def _stop_if(self, entry: Finished, *, message: str, error_id: str = "") -> list[do.Effect]:
        """Stops the work in hand if `entry` came of it."""
        if isinstance(self.work, Idle) or not _same_work(self.work.lease, entry):
            return []
        return self._stop(held=True, message=message, error_id=error_id)

    def _stop(self, *, held: bool, message: str, error_id: str = "") -> list[do.Effect]:
        work = self.work
        if not isinstance(work, Fetching | Working):
            return []
        self.work = Stopping(lease=work.lease, held=held, error_id=error_id, message=message)
        if isinstance(work, Fetching):
            return [do.CancelFetch(fence=work.lease.fence)]
        return [do.StopWorker(fence=work.lease.fence)]

    def _drop(self, entries: list[Finished], reason: str) -> list[do.Effect]:
        gone = {e.entry for e in entries}
        self.outbox = [e for e in self.outbox if e.entry not in gone]
        effects: list[do.Effect] = [do.DropEntry(entry=e.entry, reason=reason) for e in entries]
        if len(self.outbox) < MAX_OUTBOX:
            effects += self._held_acks
            self._held_acks.clear()
        return effects

    def _waiting_in_outbox(self, lease: Lease) -> bool:
        return not self._cut_off() and any(_same_work(lease, e) for e in self.outbox)

    def _cut_off(self) -> bool:
        """Leaving, with nobody to tell: what is not delivered stays in the outbox on disk."""
        return self.leaving and not self.session_up

    def _take_id(self, verb: on.Verb) -> int:
        request_id = self._next_id[verb]
        self._next_id[verb] += 1
        return request_id

    def _is_open(self, verb: on.Verb, request_id: int) -> bool:
        effect = self._open.get(verb)
        return effect is not None and effect.request_id == request_id

    def _answered(self, verb: on.Verb, request_id: int) -> bool:
        if not self._is_open(verb, request_id):
            return False
        del self._open[verb]
        return True


def _same_work(lease: Lease, entry: Finished) -> bool:
    if isinstance(lease, TaskLease):
        return not isinstance(entry, FinishedCommit) and entry.task == lease.task
    return isinstance(entry, FinishedCommit) and entry.lineage == lease.lineage
