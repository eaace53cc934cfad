"""What happened, in the past tense. A closed union; every event carries the time it is handled at.

`DurableEvent`s are journalled before any of their effects leaves; replaying them gives the same
durable state. `EphemeralEvent`s (heartbeats, sessions, ticks) never touch durable state: when one
of them reveals a durable fact, such as a lapsed lease, the machine asks for that fact to be recorded
(`effects.Record`), and the fact comes back as an event of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from coordinator.core.values import (
    Figures,
    LineageWanted,
    Outcome,
    Publication,
    ServingReport,
    Steering,
    TaskWanted,
)
from potluck.ids import Digest, Fence, LineageId, NodeId, RunId, TaskId


@dataclass(frozen=True, kw_only=True)
class CoordinatorResumed:
    """A process start. Re-arms every deadline: downtime counts against nobody."""

    now_ms: int
    boot_id: str


@dataclass(frozen=True, kw_only=True)
class InviteIssued:
    now_ms: int
    token_digest: Digest
    role: str
    expires_unix_ms: int


@dataclass(frozen=True, kw_only=True)
class PeerEnrolled:
    """A token was spent on a certificate. The coordinator, not the joiner, chose the id."""

    now_ms: int
    node: NodeId
    role: str
    name: str
    curve_public_key: str
    token_digest: Digest


@dataclass(frozen=True, kw_only=True)
class PeerRevoked:
    now_ms: int
    node: NodeId


@dataclass(frozen=True, kw_only=True)
class RunSubmitted:
    now_ms: int
    unix_ms: int
    request_id: str
    run: RunId
    spec_json: str
    corpus_json: str
    """Canonical JSON of `coordinator.plans.base.CorpusFacts`: what a plan must know of the corpus."""
    name: str
    priority: int


@dataclass(frozen=True, kw_only=True)
class RunCancelled:
    now_ms: int
    run: RunId


@dataclass(frozen=True, kw_only=True)
class RunPaused:
    """Somebody wants a run to rest: its trainings stop at their next commit, nothing of it is granted."""

    now_ms: int
    run: RunId


@dataclass(frozen=True, kw_only=True)
class RunResumed:
    now_ms: int
    run: RunId


@dataclass(frozen=True, kw_only=True)
class NodeDrained:
    """Somebody wants a node to rest: it finishes its task, or trains to its next commit, and gets no more."""

    now_ms: int
    node: NodeId


@dataclass(frozen=True, kw_only=True)
class NodeRestored:
    """A drained node may have work again."""

    now_ms: int
    node: NodeId


@dataclass(frozen=True, kw_only=True)
class MixtureSteered:
    """Somebody changed a run's mixture, or proposed a change."""

    now_ms: int
    unix_ms: int
    request_id: str
    run: RunId
    kind: Literal["set", "proposal"]
    mixture: Digest
    origin: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class PlanAdvanced:
    """What a plan wants now, in full. Journalled, so that replay needs no plan code."""

    now_ms: int
    run: RunId
    lineages: tuple[LineageWanted, ...]
    tasks: tuple[TaskWanted, ...]
    publish: tuple[Publication, ...]
    stage: str
    """For people: what the run is doing now."""
    outcome: Outcome
    serving_json: str = ""
    """What a router needs beside the published slots (tokenizer, prefix, router weights); empty until known."""
    steering: Steering | None = None
    """None where no mixture can be changed."""


@dataclass(frozen=True, kw_only=True)
class LeaseRequested:
    now_ms: int
    node: NodeId
    request_id: int
    boot_id: str
    free_memory_bytes: int
    held: tuple[Digest, ...] = ()
    host: str = ""
    """The machine it runs on, as its session said; empty if not known, and then it is no spare for others."""


@dataclass(frozen=True, kw_only=True)
class LeaseReturned:
    """Given back: in good order (error_id empty), or with the reason it could not be done."""

    now_ms: int
    node: NodeId
    request_id: int
    fence: Fence
    error_id: str
    message: str


@dataclass(frozen=True, kw_only=True)
class LeaseLapsed:
    now_ms: int
    fence: Fence
    reason: str


@dataclass(frozen=True, kw_only=True)
class CheckpointCommitted:
    """A node asks to move a lineage's head. The store holds all three digests already."""

    now_ms: int
    node: NodeId
    request_id: int
    fence: Fence
    lineage: LineageId
    parent: Digest
    start_step: int
    end_step: int
    child: Digest
    weights: Digest
    optimizer: Digest
    figures: Figures


@dataclass(frozen=True, kw_only=True)
class TaskCompleted:
    now_ms: int
    node: NodeId
    request_id: int
    fence: Fence
    task: TaskId
    blobs: tuple[tuple[str, Digest], ...]
    figures: Figures


@dataclass(frozen=True, kw_only=True)
class DrainRequested:
    """No more grants until the next `CoordinatorResumed`; nodes are told to finish what they hold.

    Durable, for it changes how later requests are answered, and a replay must answer alike.
    """

    now_ms: int


DurableEvent = (
    CoordinatorResumed
    | InviteIssued
    | PeerEnrolled
    | PeerRevoked
    | RunSubmitted
    | RunCancelled
    | RunPaused
    | RunResumed
    | NodeDrained
    | NodeRestored
    | MixtureSteered
    | PlanAdvanced
    | LeaseRequested
    | LeaseReturned
    | LeaseLapsed
    | CheckpointCommitted
    | TaskCompleted
    | DrainRequested
)


@dataclass(frozen=True, kw_only=True)
class TimePassed:
    now_ms: int


@dataclass(frozen=True, kw_only=True)
class SessionOpened:
    now_ms: int
    node: NodeId
    role: str
    boot_id: str
    version: str
    hostname: str
    cores: int
    memory_bytes: int
    router_address: str = ""


@dataclass(frozen=True, kw_only=True)
class SessionClosed:
    """`orderly` after a bye; anything else is a loss."""

    now_ms: int
    node: NodeId
    boot_id: str
    orderly: bool


@dataclass(frozen=True, kw_only=True)
class HeartbeatReceived:
    now_ms: int
    node: NodeId
    fence: Fence
    activity: str
    step: int = 0
    tokens_per_second: float = 0.0
    loss: float = 0.0
    fraction: float = 0.0
    rss_bytes: int = 0
    tokens_total: int = 0
    grad_norm: float = 0.0
    learning_rate: float = 0.0
    flops_per_second: float = 0.0
    mfu: float = 0.0


@dataclass(frozen=True, kw_only=True)
class LeaseRenewed:
    now_ms: int
    node: NodeId
    fence: Fence


@dataclass(frozen=True, kw_only=True)
class ServingReported:
    now_ms: int
    node: NodeId
    slots: tuple[ServingReport, ...] = field(default=())


@dataclass(frozen=True, kw_only=True)
class WorkAsked:
    """A node asks for work. It becomes the fact `asked` only if it gets some, or says of itself what is news."""

    now_ms: int
    asked: LeaseRequested


EphemeralEvent = (
    TimePassed | SessionOpened | SessionClosed | HeartbeatReceived | LeaseRenewed | ServingReported | WorkAsked
)

Event = DurableEvent | EphemeralEvent
