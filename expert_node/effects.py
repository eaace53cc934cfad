"""What the shell must do next, in the imperative. A closed union; done in the order given."""

from __future__ import annotations

from dataclasses import dataclass

from expert_node.values import FinishedCommit, FinishedTask, Lease, TaskLease, TrainLease
from potluck.ids import Digest, Fence


@dataclass(frozen=True, kw_only=True)
class AskForLease:
    request_id: int


@dataclass(frozen=True, kw_only=True)
class FetchInputs:
    lease: Lease


@dataclass(frozen=True, kw_only=True)
class CancelFetch:
    fence: Fence


@dataclass(frozen=True, kw_only=True)
class StartTraining:
    lease: TrainLease


@dataclass(frozen=True, kw_only=True)
class StartTask:
    lease: TaskLease


@dataclass(frozen=True, kw_only=True)
class StopWorker:
    fence: Fence


@dataclass(frozen=True, kw_only=True)
class AckCheckpoint:
    """Tells the worker that one checkpoint more is safe, so that it may run on."""

    fence: Fence
    step: int


@dataclass(frozen=True, kw_only=True)
class PutAndCommit:
    request_id: int
    commit: FinishedCommit
    missing: tuple[Digest, ...] = ()
    """What the store said it lacks: put again even if it was put before."""


@dataclass(frozen=True, kw_only=True)
class PutAndComplete:
    request_id: int
    result: FinishedTask
    missing: tuple[Digest, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DropEntry:
    """Forget an outbox entry: delivered (no reason), or dropped for a reason worth a log line."""

    entry: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class ReturnLease:
    request_id: int
    fence: Fence
    error_id: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Exit:
    """Nothing is left to do for a node that leaves."""


Request = AskForLease | PutAndCommit | PutAndComplete | ReturnLease
Effect = Request | FetchInputs | CancelFetch | StartTraining | StartTask | StopWorker | AckCheckpoint | DropEntry | Exit
