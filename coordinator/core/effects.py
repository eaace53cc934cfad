"""What the shell must do next, in the imperative. A closed union.

Replies may be lost: the same request gets the same answer. Pushes go to a node's session if it has
one, else nowhere: all they say is derivable from state. Duties are done at least once, are
idempotent, and end in a confirming event.
"""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.core.events import DurableEvent
from coordinator.core.values import LineageWanted, TaskWanted
from potluck.ids import Digest, Fence, NodeId, RunId, TaskId

# --- answers ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TrainGranted:
    fence: Fence
    term_ms: int
    lineage: LineageWanted
    head_step: int
    head: Digest
    weights: Digest
    optimizer: Digest
    target_step: int


@dataclass(frozen=True, kw_only=True)
class TaskGranted:
    fence: Fence
    term_ms: int
    task: TaskWanted


@dataclass(frozen=True, kw_only=True)
class NothingToDo:
    reason: str


@dataclass(frozen=True, kw_only=True)
class CommitAccepted:
    head_step: int
    head: Digest
    yield_lease: bool


@dataclass(frozen=True, kw_only=True)
class CommitRefused:
    """Only when the head has moved, or the run is gone: says where it is now."""

    reason: str
    head_step: int
    head: Digest


@dataclass(frozen=True, kw_only=True)
class TaskAccepted:
    divergent: bool = False
    """True when another node's result came first and differed: that one stands."""


@dataclass(frozen=True, kw_only=True)
class TaskRefused:
    reason: str


@dataclass(frozen=True, kw_only=True)
class RenewAnswer:
    renewed: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class RunAccepted:
    run: RunId
    state: str
    """started | resumed | already-finished"""


@dataclass(frozen=True, kw_only=True)
class Steered:
    """A change of a mixture was taken in: its number, and the step it is about."""

    number: int
    step: int


@dataclass(frozen=True, kw_only=True)
class Done:
    """The plain yes."""


@dataclass(frozen=True, kw_only=True)
class Denied:
    """The plain no, with an id of the error tree (`refused.*`, `join.*`)."""

    error_id: str
    reason: str


Answer = (
    TrainGranted
    | TaskGranted
    | NothingToDo
    | CommitAccepted
    | CommitRefused
    | TaskAccepted
    | TaskRefused
    | RenewAnswer
    | RunAccepted
    | Steered
    | Done
    | Denied
)


@dataclass(frozen=True, kw_only=True)
class Reply:
    """Answers the event that caused it."""

    answer: Answer


# --- pushes ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Wake:
    node: NodeId


@dataclass(frozen=True, kw_only=True)
class Revoke:
    node: NodeId
    fence: Fence
    reason: str


@dataclass(frozen=True, kw_only=True)
class SendDrain:
    node: NodeId
    reason: str


@dataclass(frozen=True, kw_only=True)
class SendRouters:
    node: NodeId
    addresses: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ServeSlot:
    run: RunId
    slot: str
    weights: Digest
    tokenizer: Digest
    model_json: str


@dataclass(frozen=True, kw_only=True)
class SendServe:
    """All that the node should serve; replaces what it was told before."""

    node: NodeId
    slots: tuple[ServeSlot, ...]


@dataclass(frozen=True, kw_only=True)
class SendView:
    """To a router: the whole view of one run."""

    node: NodeId
    run: RunId
    version: int
    view_json: str


# --- duties ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class AdvancePlan:
    """Evaluate the run's plan and come back with `PlanAdvanced`."""

    run: RunId


@dataclass(frozen=True, kw_only=True)
class Record:
    """A durable fact the machine has noticed: journal it, then handle it."""

    event: DurableEvent


@dataclass(frozen=True, kw_only=True)
class NoteDivergence:
    """Two nodes computed one task and differ; for the log and the ledger."""

    task: TaskId
    node: NodeId


Effect = Reply | Wake | Revoke | SendDrain | SendRouters | SendServe | SendView | AdvancePlan | Record | NoteDivergence
Push = Wake | Revoke | SendDrain | SendRouters | SendServe | SendView
