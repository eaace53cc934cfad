"""A node's worker child without arithmetic: it takes steps in simulated time and stops between two of them.

A twin of `expert_node.workshop` with its child: what is finished goes to the outbox on disk first and is told
then; at most four checkpoints are unconfirmed; after `stop` nothing is said but `WorkerStopped`, unless the end
came first.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from expert_node import events as on
from expert_node.values import Finished, FinishedCommit, FinishedTask, Lease, TaskLease, TrainLease
from potluck.ids import NO_DIGEST, Digest, Fence
from potluck.recipe import Segment, next_commit
from tests.simulation import fake
from tests.simulation.kernel import Action

MAX_UNCONFIRMED = 4
DISK_MS = (5, 200)
"""Writing and syncing a checkpoint takes as long as the disk likes."""
LOOKS_UP = 0.5
"""Tasks that notice a stop before they are done."""


class Host(Protocol):
    """What a worker needs of its node."""

    slowness: float
    salt: str
    """Not empty on a machine whose arithmetic differs."""

    def later(self, delay_ms: float, action: Action) -> None: ...

    def tell(self, event: on.Event) -> None: ...

    def hits(self, point: str) -> bool: ...

    def fails(self, point: str, work: str) -> bool: ...

    def next_entry(self) -> int: ...

    def keep(self, entry: Finished, salt: str) -> bool:
        """Puts an entry on the disk; False if the node died right after."""

    def begun(self, fence: Fence) -> None: ...

    def trained(self, lineage: str, fence: Fence, step: int) -> None: ...


@dataclass(kw_only=True)
class _Job:
    lease: Lease
    step: int = 0
    since: int = 0
    parent: Digest = NO_DIGEST
    segments: tuple[Segment, ...] = ()
    commit_every: int = 1
    unconfirmed: int = 0
    stopping: bool = False
    waits_for_ack: bool = False
    keeping: bool = False
    stop_due: bool = False


class Worker:
    def __init__(self, host: Host, chance: random.Random) -> None:
        self._host = host
        self._chance = chance
        self._job: _Job | None = None

    @property
    def lease(self) -> Lease | None:
        return self._job.lease if self._job is not None else None

    @property
    def stopping(self) -> bool:
        return self._job is not None and self._job.stopping

    def start(self, lease: Lease) -> None:
        assert self._job is None, "one piece of work at a time"
        self._host.begun(lease.fence)
        if isinstance(lease, TrainLease):
            job = _Job(lease=lease, step=lease.head_step, since=lease.head_step, parent=lease.head)
            job.segments, job.commit_every = lease.segments, lease.recipe.commit_every
            self._job = job
            self._host.later(self._step_ms(), lambda: self._step(job, lease))
        else:
            job = self._job = _Job(lease=lease)
            self._host.later(self._step_ms() * self._chance.uniform(1, 4), lambda: self._task(job, lease))

    def stop(self, fence: int) -> None:
        """A step under way is taken to its end; a task may be done before it looks up."""
        job = self._job
        if job is None or job.lease.fence != fence:
            return  # It has ended already, and the machine was told.
        job.stopping = True
        if job.waits_for_ack or (isinstance(job.lease, TaskLease) and self._chance.random() < LOOKS_UP):
            self._host.later(self._step_ms() * self._chance.random(), lambda: self._stopped(job))

    def acknowledge(self, fence: int) -> None:
        job = self._job
        if job is None or job.lease.fence != fence or not isinstance(job.lease, TrainLease):
            return
        job.unconfirmed -= 1
        if job.waits_for_ack and job.unconfirmed < MAX_UNCONFIRMED and not job.stopping:
            job.waits_for_ack = False
            lease = job.lease
            self._host.later(0, lambda: self._after_commit(job, lease))

    # --- training -------------------------------------------------------------------------------

    def _step(self, job: _Job, lease: TrainLease) -> None:
        if self._job is not job:
            return
        if self._host.fails("worker-fails", lease.label):
            self._end(on.WorkerFailed(fence=lease.fence, error_id="bug.worker-crashed", message="signal 11"))
            return
        self._host.trained(lease.lineage, lease.fence, job.step)
        job.step += 1
        if job.step == next_commit(step=job.since, commit_every=job.commit_every, segments=job.segments):
            self._commit(job, lease)
        else:
            self._go_on(job, lease)

    def _go_on(self, job: _Job, lease: TrainLease) -> None:
        if job.stopping:
            self._end(on.WorkerStopped(fence=lease.fence))
        else:
            self._host.later(self._step_ms(), lambda: self._step(job, lease))

    def _commit(self, job: _Job, lease: TrainLease) -> None:
        salt = self._host.salt
        made = fake.checkpoint(lease.lineage, job.parent, job.segments, job.since, job.step, salt)
        commit = FinishedCommit(
            entry=self._host.next_entry(),
            fence=lease.fence,
            lineage=lease.lineage,
            parent=job.parent,
            start_step=job.since,
            end_step=job.step,
            child=made.child,
            weights=made.weights,
            optimizer=made.optimizer,
            figures=made.figures,
            files=((made.child, "checkpoint"), (made.weights, "weights"), (made.optimizer, "optimizer")),
            label=lease.label,
        )
        job.parent, job.since = made.child, job.step
        self._keep(job, commit, salt, lambda: self._kept_commit(job, lease, commit))

    def _kept_commit(self, job: _Job, lease: TrainLease, commit: FinishedCommit) -> None:
        job.unconfirmed += 1
        self._host.tell(on.CheckpointWritten(commit=commit))
        if job.unconfirmed >= MAX_UNCONFIRMED and not job.stopping:
            job.waits_for_ack = True
        else:
            self._after_commit(job, lease)

    def _after_commit(self, job: _Job, lease: TrainLease) -> None:
        if self._job is not job:
            return
        if job.step >= lease.target_step:
            self._end(on.WorkerDone(fence=lease.fence))
        else:
            self._go_on(job, lease)

    # --- tasks ----------------------------------------------------------------------------------

    def _task(self, job: _Job, lease: TaskLease) -> None:
        if self._job is not job:
            return
        if self._host.fails("worker-fails", lease.label):
            self._end(on.WorkerFailed(fence=lease.fence, error_id="resource.out-of-memory", message="killed"))
            return
        salt = f"diverges {lease.fence}" if self._host.hits("diverges") else ""
        made = fake.task_result(lease.kind, lease.params_json, lease.inputs, salt)
        result = FinishedTask(
            entry=self._host.next_entry(),
            fence=lease.fence,
            task=lease.task,
            blobs=tuple(made.blobs.items()),
            figures=made.figures,
            files=tuple((digest, name) for name, digest in made.blobs.items()),
            label=lease.label,
        )
        self._keep(job, result, salt, lambda: self._kept_result(job, result))

    def _kept_result(self, job: _Job, result: FinishedTask) -> None:
        self._host.tell(on.TaskFinished(result=result))
        if self._job is job:
            self._end(on.WorkerDone(fence=result.fence))

    # --- ends -----------------------------------------------------------------------------------

    def _keep(self, job: _Job, entry: Finished, salt: str, told: Callable[[], None]) -> None:
        """What is made is kept and told even if the node wants us to stop by now; then the stop counts."""
        job.keeping = True
        if self._host.keep(entry, salt):
            self._host.later(self._chance.uniform(*DISK_MS), lambda: self._told(job, told))

    def _told(self, job: _Job, told: Callable[[], None]) -> None:
        job.keeping = False
        told()
        if job.stop_due:
            self._stopped(job)

    def _stopped(self, job: _Job) -> None:
        if job.keeping:
            job.stop_due = True
        elif self._job is job:
            self._end(on.WorkerStopped(fence=job.lease.fence))

    def _end(self, event: on.Event) -> None:
        self._job = None
        self._host.tell(event)

    def _step_ms(self) -> float:
        return self._chance.uniform(150, 500) * self._host.slowness
