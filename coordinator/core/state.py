"""What the coordinator knows: a durable half that a replay rebuilds, and an ephemeral half that it forgets.

Durable handlers may write both halves but decide by the durable one and their event alone; ephemeral
handlers write only the ephemeral half. Dicts keep insertion order, and ties break by it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from coordinator.core.effects import Answer, ServeSlot
from coordinator.core.events import HeartbeatReceived, SessionOpened
from coordinator.core.queues import Queues
from coordinator.core.settings import CoreSettings
from coordinator.core.values import (
    Failed,
    Figures,
    Finished,
    LineageWanted,
    Publication,
    Running,
    ServingReport,
    Steering,
    SteeringEntry,
    TaskKind,
    TaskResult,
    TaskWanted,
)
from potluck.ids import NO_DIGEST, Digest, Fence, LineageId, NodeId, RunId, TaskId, canonical_json, digest_bytes

NO_FENCE = Fence(0)
MAX_HOLDERS = 2
"""Live leases of one piece of work: its holder, and a spare where the holder is slow."""

# --- durable ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Invite:
    role: str
    expires_unix_ms: int
    spent_by: NodeId | None


@dataclass(frozen=True, kw_only=True)
class PeerFacts:
    node: NodeId
    role: str
    name: str
    curve_public_key: str
    revoked: bool
    drained: bool = False
    """Gets no work until it is restored."""


@dataclass(frozen=True, kw_only=True)
class NodeFacts:
    """What a node said when it last asked for work."""

    boot_id: str
    past_boots: tuple[str, ...]
    """A few earlier process starts, so that a delayed request of a dead process is known as such."""
    free_memory_bytes: int
    held: tuple[Digest, ...]
    host: str


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The last answer of one verb, repeated to whoever asks the same again."""

    request_id: int
    fingerprint: str
    answer: Answer


@dataclass(frozen=True, kw_only=True)
class TrainLease:
    fence: Fence
    node: NodeId
    run: RunId
    """The run whose share of the nodes this lease counts against."""
    lineage: LineageId
    target_step: int
    measured_ms: int
    """When, and at which step, its pace began to be measured: at the grant, and anew after a restart."""
    measured_step: int
    moved_ms: int
    """Of the grant or of the last commit under it, whichever came last."""


@dataclass(frozen=True, kw_only=True)
class TaskLease:
    fence: Fence
    node: NodeId
    run: RunId
    task: TaskId
    granted_ms: int


Lease = TrainLease | TaskLease


@dataclass(frozen=True, kw_only=True)
class Pace:
    step_ms: float
    step_flops: float
    """Of the lineage it was measured on."""

    def of_step(self, flops: float) -> float:
        """Milliseconds of a step of so many FLOPs: in proportion for larger steps, and no less for smaller ones."""
        return self.step_ms * max(1.0, flops / max(self.step_flops, 1.0))


@dataclass(frozen=True, kw_only=True)
class WorkFailure:
    fence: Fence
    node: NodeId
    error_id: str
    message: str


@dataclass(frozen=True, kw_only=True)
class CommitRecord:
    """One link of a chain: steps [start_step, end_step) done by `node` under `fence`."""

    start_step: int
    end_step: int
    parent: Digest
    checkpoint: Digest
    weights: Digest
    optimizer: Digest
    node: NodeId
    fence: Fence
    figures: Figures


@dataclass(kw_only=True)
class Lineage:
    wanted: LineageWanted
    ready_ms: int
    """Since when it waits for a node, while it does."""
    runs: dict[RunId, None] = field(default_factory=dict)
    """Running runs that want it."""
    commits: list[CommitRecord] = field(default_factory=list)
    leases: dict[Fence, None] = field(default_factory=dict)
    """Live ones, oldest first; see `MAX_HOLDERS`."""
    failures: list[WorkFailure] = field(default_factory=list)

    @property
    def head_step(self) -> int:
        return self.commits[-1].end_step if self.commits else 0

    @property
    def head(self) -> Digest:
        return self.commits[-1].checkpoint if self.commits else NO_DIGEST

    @property
    def remaining_flops(self) -> float:
        return (self.wanted.total_steps - self.head_step) * self.wanted.flops_per_step


@dataclass(kw_only=True)
class Task:
    wanted: TaskWanted
    ready_ms: int
    runs: dict[RunId, None] = field(default_factory=dict)
    """Runs that want it or need its result."""
    result: TaskResult | None = None
    result_digest: Digest = NO_DIGEST
    num_divergent: int = 0
    leases: dict[Fence, None] = field(default_factory=dict)
    """Live ones, oldest first; see `MAX_HOLDERS`."""
    failures: list[WorkFailure] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class LineageLedger:
    """What is left of a lineage when its run has finished."""

    lineage: LineageId
    label: str
    role: str
    total_steps: int
    commits: tuple[CommitRecord, ...]
    """Without figures. Of a run that finished long ago only links to what is published and to the head."""


@dataclass(frozen=True, kw_only=True)
class Cancelled:
    pass


RunStatus = Running | Finished | Failed | Cancelled


@dataclass(kw_only=True)
class Run:
    run: RunId
    name: str
    priority: int
    spec_json: str
    corpus_json: str
    created_unix_ms: int
    request_id: str
    """Of the submission answered last, with that answer: a retry hears the same."""
    accepted_as: str
    status: RunStatus = field(default_factory=Running)
    paused: bool = False
    """While it is, nothing of it is granted for its own sake; its plan goes on with what comes in."""
    stage: str = ""
    lineages: dict[LineageId, None] = field(default_factory=dict)
    tasks: dict[TaskId, None] = field(default_factory=dict)
    """All its tasks, done ones too."""
    open_tasks: dict[TaskId, None] = field(default_factory=dict)
    """Those of them without a result."""
    num_tasks_done: int = 0
    weighted_flops: float = 0.0
    """FLOPs of training done for it, over its weight: what sharing nodes among runs goes by."""
    plan_digest: Digest = NO_DIGEST
    """Of what its plan wanted last."""
    published: dict[str, Publication] = field(default_factory=dict)
    serving_json: str = ""
    view_version: int = 0
    """Counts changes of what is published."""
    entries: tuple[SteeringEntry, ...] = ()
    """Changes of its mixture, oldest first."""
    steered_by: str = ""
    """Request id of the last of them."""
    steering: Steering | None = None
    ledger: tuple[LineageLedger, ...] = ()
    """Filled when it finishes."""


@dataclass(kw_only=True)
class DurableState:
    boot_id: str = ""
    next_fence: int = 1
    draining: bool = False
    invites: dict[Digest, Invite] = field(default_factory=dict)
    peers: dict[NodeId, PeerFacts] = field(default_factory=dict)
    nodes: dict[NodeId, NodeFacts] = field(default_factory=dict)
    requests: dict[NodeId, dict[str, Kept]] = field(default_factory=dict)
    runs: dict[RunId, Run] = field(default_factory=dict)
    whole_ledgers: dict[RunId, None] = field(default_factory=dict)
    """Finished runs whose ledger holds every commit, in the order in which they finished."""
    lineages: dict[LineageId, Lineage] = field(default_factory=dict)
    tasks: dict[TaskId, Task] = field(default_factory=dict)
    leases: dict[Fence, Lease] = field(default_factory=dict)
    paces: dict[NodeId, dict[str, Pace]] = field(default_factory=dict)
    """How fast each node trains, by role of the lineage, as its commits last showed."""
    task_ms: dict[TaskKind, tuple[int, ...]] = field(default_factory=dict)
    """How long the last tasks of each kind took, from grant to result."""

    def __post_init__(self) -> None:
        # No field: what follows from the others is neither compared nor written down.
        self.queues = Queues()

    def is_revoked(self, node: NodeId) -> bool:
        peer = self.peers.get(node)
        return peer is not None and peer.revoked

    def is_drained(self, node: NodeId) -> bool:
        peer = self.peers.get(node)
        return peer is not None and peer.drained

    def leases_of(self, node: NodeId) -> list[Lease]:
        return [lease for lease in self.leases.values() if lease.node == node]

    def running(self) -> list[Run]:
        return [run for run in self.runs.values() if isinstance(run.status, Running)]

    def at_work(self) -> list[Run]:
        """Running runs that nobody has paused: those that nodes work for."""
        return [run for run in self.running() if not run.paused]

    def holder(self, lease: Lease) -> Lineage | Task | None:
        """The work a lease names, if it is still there."""
        if isinstance(lease, TrainLease):
            return self.lineages.get(lease.lineage)
        return self.tasks.get(lease.task)


# --- ephemeral -------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Session:
    opened: SessionOpened
    num_open: int
    """Streams of this process: a new one may come before the end of the old one is noticed."""


@dataclass(kw_only=True)
class EphemeralState:
    now_ms: int = 0
    sessions: dict[NodeId, Session] = field(default_factory=dict)
    last_heard_ms: dict[NodeId, int] = field(default_factory=dict)
    longest_gap_ms: dict[NodeId, int] = field(default_factory=dict)
    """Node -> the longest silence before a heartbeat; its memory fades by a tenth with each."""
    suspects: dict[NodeId, str] = field(default_factory=dict)
    """Node -> why."""
    heartbeats: dict[NodeId, HeartbeatReceived] = field(default_factory=dict)
    deadlines_ms: dict[Fence, int] = field(default_factory=dict)
    lapses_asked: dict[Fence, None] = field(default_factory=dict)
    """Leases whose lapse was noticed and is on its way into the journal."""
    former: dict[Fence, Lease] = field(default_factory=dict)
    """Leases that ended lately: their holders may not know."""
    idle: dict[NodeId, int] = field(default_factory=dict)
    """Nodes told that there is nothing to do -> when they were last woken since."""
    in_vain: dict[NodeId, Kept] = field(default_factory=dict)
    """Node -> its last request that changed nothing and left no row, with the answer "nothing"."""
    router_addresses: dict[NodeId, str] = field(default_factory=dict)
    serving: dict[NodeId, tuple[ServingReport, ...]] = field(default_factory=dict)
    assigned: dict[NodeId, dict[tuple[RunId, str], None]] = field(default_factory=dict)
    sent_serve: dict[NodeId, tuple[ServeSlot, ...]] = field(default_factory=dict)
    sent_routers: dict[NodeId, tuple[str, ...]] = field(default_factory=dict)
    sent_views: dict[NodeId, dict[RunId, int]] = field(default_factory=dict)

    def forget_node(self, node: NodeId) -> None:
        """Drops all that was known of a node's process."""
        for table in (
            self.sessions,
            self.last_heard_ms,
            self.longest_gap_ms,
            self.suspects,
            self.heartbeats,
            self.idle,
            self.in_vain,
            self.router_addresses,
            self.serving,
            self.assigned,
            self.sent_serve,
            self.sent_routers,
            self.sent_views,
        ):
            table.pop(node, None)


@dataclass(kw_only=True)
class State:
    settings: CoreSettings
    durable: DurableState = field(default_factory=DurableState)
    ephemeral: EphemeralState = field(default_factory=EphemeralState)


def durable_json(durable: DurableState) -> str:
    """The durable half as text, insertion order included: equal text, equal future."""
    return canonical_json(_plain(durable))


def durable_digest(durable: DurableState) -> Digest:
    return digest_bytes(durable_json(durable).encode())


def _plain(value: Any, ordered: bool = True) -> Any:
    """`ordered`: the order of a mapping's keys is part of the state, as it is outside of frozen values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        inside = not value.__dataclass_params__.frozen  # type: ignore[attr-defined]
        fields = {f.name: _plain(getattr(value, f.name), inside) for f in dataclasses.fields(value)}
        return {"": type(value).__name__, **fields}
    if isinstance(value, Mapping):
        items = value.items() if ordered else sorted(value.items())
        return [[key, _plain(item, ordered)] for key, item in items]
    if isinstance(value, list | tuple):
        return [_plain(item, ordered) for item in value]
    return value
