"""What happened to a node, in the past tense. A closed union; the shell tells them one at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from expert_node.values import FinishedCommit, FinishedTask, Lease
from potluck.ids import Digest, Fence

Verb = Literal["acquire", "deliver", "return"]


@dataclass(frozen=True, kw_only=True)
class SessionUp:
    """The coordinator said welcome."""


@dataclass(frozen=True, kw_only=True)
class SessionDown:
    pass


@dataclass(frozen=True, kw_only=True)
class Woken:
    """There may be work: a wake-up came, or a long time has passed without one."""


@dataclass(frozen=True, kw_only=True)
class Drained:
    """The coordinator grants nothing until its next welcome; what is in hand goes on."""


@dataclass(frozen=True, kw_only=True)
class StopRequested:
    """A signal to this node: stop the work, give back the lease, go."""


@dataclass(frozen=True, kw_only=True)
class GrantReceived:
    request_id: int
    lease: Lease


@dataclass(frozen=True, kw_only=True)
class NothingReceived:
    request_id: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class InputsReady:
    fence: Fence


@dataclass(frozen=True, kw_only=True)
class InputsFailed:
    fence: Fence
    error_id: str
    message: str


@dataclass(frozen=True, kw_only=True)
class CheckpointWritten:
    """The worker reached a commit point; the checkpoint is in the outbox, on disk."""

    commit: FinishedCommit


@dataclass(frozen=True, kw_only=True)
class TaskFinished:
    """The result is in the outbox, on disk; `WorkerDone` follows."""

    result: FinishedTask


@dataclass(frozen=True, kw_only=True)
class WorkerDone:
    """The target step is reached, or the task's result is written."""

    fence: Fence


@dataclass(frozen=True, kw_only=True)
class WorkerFailed:
    fence: Fence
    error_id: str
    message: str


@dataclass(frozen=True, kw_only=True)
class WorkerStopped:
    """Worker or fetch ended because it was told to. Follows every CancelFetch, and every StopWorker
    that no WorkerDone or WorkerFailed has overtaken."""

    fence: Fence


@dataclass(frozen=True, kw_only=True)
class CommitAnswered:
    request_id: int
    accepted: bool
    reason: str = ""
    yield_lease: bool = False
    missing: tuple[Digest, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TaskAnswered:
    request_id: int
    accepted: bool
    reason: str = ""
    missing: tuple[Digest, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DeliveryFailed:
    """It can never be delivered as it is: refused by the store's quota, or damaged on this disk."""

    request_id: int
    error_id: str
    message: str


@dataclass(frozen=True, kw_only=True)
class ReturnAnswered:
    request_id: int


@dataclass(frozen=True, kw_only=True)
class LeaseLost:
    """Revoked, or its renewal was refused."""

    fence: Fence
    reason: str


@dataclass(frozen=True, kw_only=True)
class RequestFailed:
    """No answer: not reachable, or late. Told after a pause, so that a repeat does not hammer."""

    verb: Verb
    request_id: int


Event = (
    SessionUp
    | SessionDown
    | Woken
    | Drained
    | StopRequested
    | GrantReceived
    | NothingReceived
    | InputsReady
    | InputsFailed
    | CheckpointWritten
    | TaskFinished
    | WorkerDone
    | WorkerFailed
    | WorkerStopped
    | CommitAnswered
    | TaskAnswered
    | DeliveryFailed
    | ReturnAnswered
    | LeaseLost
    | RequestFailed
)
