"""What people and the service ask: read-only views of the state, with the fields of admin.proto."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import assert_never

from coordinator.core.events import HeartbeatReceived
from coordinator.core.invariants import check_chain
from coordinator.core.state import (
    Cancelled,
    CommitRecord,
    Lease,
    Lineage,
    LineageLedger,
    Run,
    RunStatus,
    State,
    TrainLease,
)
from coordinator.core.superseded import superseded
from coordinator.core.values import Failed, Finished, LineageWanted, Publication, Running
from coordinator.core.waits import waits_of
from potluck.ids import NO_DIGEST, Digest, Fence, Json, LineageId, NodeId, RunId, canonical_json, short

MAX_RESULTS_JSON = 256 * 1024
"""Characters of small figures in one answer, so that it stays well below a message's 1 MiB."""


@dataclass(frozen=True, kw_only=True)
class LineageInfo:
    lineage: str
    label: str
    role: str
    head_step: int
    total_steps: int
    head: str
    node: str
    loss: float
    live_step: int
    tokens_per_second: float
    grad_norm: float = 0.0
    """This and what follows: of the step the node told last; 0 while nobody trains it, or when not known."""
    learning_rate: float = 0.0
    flops_per_second: float = 0.0
    mfu: float = 0.0
    rss_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class PublishedSlot:
    slot: str
    weights: str
    step: int
    replicas: tuple[str, ...]
    lineage: str
    checkpoint: str
    tokenizer: str
    model_json: str


@dataclass(frozen=True, kw_only=True)
class NodeInfo:
    node: str
    name: str
    role: str
    state: str
    """live | suspect | gone"""
    silent_ms: int
    activity: str
    label: str
    tokens_per_second: float
    step: int
    loss: float
    fraction: float
    hostname: str
    cores: int
    memory_bytes: int
    rss_bytes: int
    version: str
    tokens_total: int
    drained: bool


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    run: str
    name: str
    state: str
    """running | finished | cancelled | failed"""
    reason: str
    error_id: str
    """Of a failed run; not in the proto, the service may add it to `reason`."""
    stage: str
    fraction: float
    """Of the planned FLOPs of the lineages known so far."""
    lineages: tuple[LineageInfo, ...]
    tasks_open: int
    tasks_done: int
    published: tuple[PublishedSlot, ...]
    report: str
    spec_json: str
    nodes: tuple[NodeInfo, ...]
    results_json: str
    created_unix_ms: int
    paused: bool
    priority: int
    waits: tuple[str, ...]
    """What it waits for, in words, the most general first."""


@dataclass(frozen=True, kw_only=True)
class LedgerRange:
    start_step: int
    end_step: int
    parent: str
    child: str
    node: str
    fence: int


@dataclass(frozen=True, kw_only=True)
class LedgerLine:
    lineage: str
    label: str
    total_steps: int
    ranges: tuple[LedgerRange, ...]


@dataclass(frozen=True, kw_only=True)
class Ledger:
    ok: bool
    problems: tuple[str, ...]
    lineages: tuple[LedgerLine, ...]


def find_run(state: State, text: str) -> RunId | None:
    """A run by id, by unique prefix of its id, or by name (the newest of that name)."""
    runs = state.durable.runs
    if text in runs:
        return RunId(text)
    by_name = [run.run for run in runs.values() if run.name == text]
    by_prefix = [run_id for run_id in runs if text and run_id.startswith(text)]
    if by_name:
        return by_name[-1]
    return by_prefix[0] if len(by_prefix) == 1 else None


def find_node(state: State, text: str) -> NodeId | None:
    """A node by id, by unique prefix of its id, or by a name that only it has; not one that was revoked."""
    peers = [peer for peer in state.durable.peers.values() if peer.role == "node" and not peer.revoked]
    by_id = [peer.node for peer in peers if peer.node == text]
    by_name = [peer.node for peer in peers if peer.name == text]
    by_prefix = [peer.node for peer in peers if text and peer.node.startswith(text)]
    found = next((some for some in (by_id, by_name, by_prefix) if some), [])
    return found[0] if len(found) == 1 else None


def run_infos(state: State) -> tuple[RunInfo, ...]:
    return tuple(run_info(state, run) for run in state.durable.runs)


def run_info(state: State, run_id: RunId) -> RunInfo:
    """All that is known of a run.

    Raises:
        KeyError: there is no such run.
    """
    run = state.durable.runs[run_id]
    return RunInfo(
        run=run.run,
        name=run.name,
        state=_status_name(run.status),
        reason=run.status.message if isinstance(run.status, Failed) else "",
        error_id=run.status.error_id if isinstance(run.status, Failed) else "",
        stage=run.stage,
        fraction=_fraction(state, run),
        lineages=tuple(_lineage_infos(state, run)),
        tasks_open=len(run.open_tasks),
        tasks_done=run.num_tasks_done,
        published=_published(state, run),
        report=run.status.report if isinstance(run.status, Finished) else NO_DIGEST,
        spec_json=run.spec_json,
        nodes=node_infos(state),
        results_json=_results_json(state, run),
        created_unix_ms=run.created_unix_ms,
        paused=run.paused and isinstance(run.status, Running),
        priority=run.priority,
        waits=waits_of(state, run),
    )


def node_infos(state: State) -> tuple[NodeInfo, ...]:
    """Every enrolled peer and every open session, enrolled first."""
    known = dict.fromkeys((*state.durable.peers, *state.ephemeral.sessions))
    infos = (_node_info(state, node) for node in known if not state.durable.is_revoked(node))
    return tuple(info for info in infos if info.role in ("node", "router"))


def ledger(state: State, run_id: RunId) -> Ledger:
    """The committed ranges of each of a run's lineages, and whether they tile [0, head).

    Raises:
        KeyError: there is no such run.
    """
    run = state.durable.runs[run_id]
    lines = run.ledger or tuple(_line_of(state.durable.lineages[lineage]) for lineage in run.lineages)
    problems = [problem for line in lines for problem in check_chain(line.label, line.commits)]
    ledger_lines = tuple(
        LedgerLine(
            lineage=line.lineage,
            label=line.label,
            total_steps=line.total_steps,
            ranges=tuple(_range(commit) for commit in line.commits),
        )
        for line in lines
    )
    return Ledger(ok=not problems, problems=tuple(problems), lineages=ledger_lines)


def training_under(state: State, node: NodeId, fence: Fence) -> LineageWanted | None:
    """The lineage that a node trains under a lease of its own."""
    lease = state.durable.leases.get(fence)
    if not isinstance(lease, TrainLease) or lease.node != node:
        return None
    lineage = state.durable.lineages.get(lease.lineage)
    return lineage.wanted if lineage is not None else None


def label_of_lineage(state: State, lineage: LineageId) -> str:
    """What people call a lineage, also when its run has finished; empty for one that nobody wants."""
    found = state.durable.lineages.get(lineage)
    if found is not None:
        return found.wanted.label
    lines = (line for run in state.durable.runs.values() for line in run.ledger)
    return next((line.label for line in lines if line.lineage == lineage), "")


def pinned_digests(state: State) -> frozenset[Digest]:
    """Blobs that must not be collected: what open and kept work names, heads, parents, publications, reports.

    Manifests are named, not opened: whoever collects keeps what a pinned manifest lists.
    """
    pinned: set[Digest] = set()
    for task in state.durable.tasks.values():
        pinned.update(digest for _, digest in task.wanted.inputs)
        if task.result is not None:
            pinned.update(task.result.blobs.values())
    pinned -= superseded(state)
    for lineage in state.durable.lineages.values():
        pinned.update(commit.weights for commit in lineage.commits)
        for commit in lineage.commits[-2:]:
            pinned.update((commit.checkpoint, commit.optimizer))
    for run in state.durable.runs.values():
        for publication in run.published.values():
            pinned.update((publication.weights, publication.tokenizer))
        if isinstance(run.status, Finished):
            pinned.add(run.status.report)
    return frozenset(pinned - {NO_DIGEST})


# --- parts of a run ---------------------------------------------------------------------------


def _status_name(status: RunStatus) -> str:
    match status:
        case Running():
            return "running"
        case Finished():
            return "finished"
        case Failed():
            return "failed"
        case Cancelled():
            return "cancelled"
        case _:
            assert_never(status)


def _fraction(state: State, run: Run) -> float:
    if isinstance(run.status, Finished):
        return 1.0
    lineages = [state.durable.lineages[lineage_id] for lineage_id in run.lineages]
    planned = sum(lineage.wanted.total_steps * lineage.wanted.flops_per_step for lineage in lineages)
    done = planned - sum(lineage.remaining_flops for lineage in lineages)
    return done / planned if planned else 0.0


def _lineage_infos(state: State, run: Run) -> Iterator[LineageInfo]:
    for line in run.ledger:
        yield _finished_info(line)
    for lineage_id in run.lineages:
        lineage = state.durable.lineages[lineage_id]
        lease = _foremost(state, lineage)
        node = lease.node if lease is not None else ""
        beat = _beat_under(state, lease)
        last = lineage.commits[-1].figures.get("loss", 0.0) if lineage.commits else 0.0
        yield LineageInfo(
            lineage=lineage_id,
            label=lineage.wanted.label,
            role=lineage.wanted.role,
            head_step=lineage.head_step,
            total_steps=lineage.wanted.total_steps,
            head=lineage.head,
            node=node,
            loss=beat.loss if beat and beat.loss else float(last) if isinstance(last, int | float) else 0.0,
            live_step=max(beat.step, lineage.head_step) if beat else lineage.head_step,
            tokens_per_second=beat.tokens_per_second if beat else 0.0,
            grad_norm=beat.grad_norm if beat else 0.0,
            learning_rate=beat.learning_rate if beat else 0.0,
            flops_per_second=beat.flops_per_second if beat else 0.0,
            mfu=beat.mfu if beat else 0.0,
            rss_bytes=beat.rss_bytes if beat else 0,
        )


def _foremost(state: State, lineage: Lineage) -> Lease | None:
    """The lease of whoever is the furthest, where two nodes train the same steps."""
    leases = [state.durable.leases[fence] for fence in lineage.leases]
    beats = [_beat_under(state, lease) for lease in leases]
    steps = [beat.step if beat is not None else 0 for beat in beats]
    return leases[steps.index(max(steps))] if leases else None


def _beat_under(state: State, lease: Lease | None) -> HeartbeatReceived | None:
    """The last heartbeat of a lease's holder, if it was sent under that lease."""
    beat = state.ephemeral.heartbeats.get(lease.node) if lease is not None else None
    return beat if lease is not None and beat is not None and beat.fence == lease.fence else None


def _finished_info(line: LineageLedger) -> LineageInfo:
    head = line.commits[-1] if line.commits else None
    return LineageInfo(
        lineage=line.lineage,
        label=line.label,
        role=line.role,
        head_step=head.end_step if head else 0,
        total_steps=line.total_steps,
        head=head.checkpoint if head else NO_DIGEST,
        node="",
        loss=0.0,
        live_step=head.end_step if head else 0,
        tokens_per_second=0.0,
    )


def _published(state: State, run: Run) -> tuple[PublishedSlot, ...]:
    return tuple(
        PublishedSlot(
            slot=slot,
            weights=publication.weights,
            step=publication.step,
            replicas=tuple(
                node
                for node, reports in state.ephemeral.serving.items()
                if any(
                    (report.run, report.slot, report.weights, report.state)
                    == (run.run, slot, publication.weights, "ready")
                    for report in reports
                )
            ),
            lineage=publication.lineage,
            checkpoint=_checkpoint_of(state, run, publication),
            tokenizer=publication.tokenizer,
            model_json=publication.model_json,
        )
        for slot, publication in run.published.items()
    )


def _checkpoint_of(state: State, run: Run, publication: Publication) -> Digest:
    """The commit a publication was taken from; the run's own ledger has it once the lineage is gone."""
    lineage = state.durable.lineages.get(publication.lineage)
    chains = (
        [lineage.commits] if lineage else [line.commits for line in run.ledger if line.lineage == publication.lineage]
    )
    found = (commit.checkpoint for commits in chains for commit in commits if commit.end_step == publication.step)
    return next(found, NO_DIGEST)


def _results_json(state: State, run: Run) -> str:
    """Small figures by label; the newest are left out first if there are too many."""
    if isinstance(run.status, Finished):
        return canonical_json(run.status.figures)
    figures: dict[str, Json] = {}
    size = 2
    for task_id in run.tasks:
        task = state.durable.tasks[task_id]
        if task.result is None or not task.result.figures:
            continue
        size += len(canonical_json({task.wanted.label: task.result.figures}))
        if size > MAX_RESULTS_JSON:
            break
        figures[task.wanted.label] = task.result.figures
    return canonical_json(figures)


# --- parts of a node and a ledger -------------------------------------------------------------


def _node_info(state: State, node: NodeId) -> NodeInfo:
    ephemeral = state.ephemeral
    peer = state.durable.peers.get(node)
    session = ephemeral.sessions.get(node)
    opened = session.opened if session is not None else None
    beat = ephemeral.heartbeats.get(node)
    leases = state.durable.leases_of(node)
    heard = ephemeral.last_heard_ms.get(node, ephemeral.now_ms)
    return NodeInfo(
        node=node,
        name=peer.name if peer is not None else short(node),
        role=peer.role if peer is not None else opened.role if opened is not None else "",
        state="gone" if opened is None else "suspect" if node in ephemeral.suspects else "live",
        silent_ms=max(0, ephemeral.now_ms - heard),
        activity=beat.activity if beat is not None else "",
        label=_label_of(state, leases[0]) if leases else "",
        tokens_per_second=beat.tokens_per_second if beat is not None else 0.0,
        step=beat.step if beat is not None else 0,
        loss=beat.loss if beat is not None else 0.0,
        fraction=beat.fraction if beat is not None else 0.0,
        hostname=opened.hostname if opened is not None else "",
        cores=opened.cores if opened is not None else 0,
        memory_bytes=opened.memory_bytes if opened is not None else 0,
        rss_bytes=beat.rss_bytes if beat is not None else 0,
        version=opened.version if opened is not None else "",
        tokens_total=beat.tokens_total if beat is not None else 0,
        drained=peer is not None and peer.drained,
    )


def _label_of(state: State, lease: Lease) -> str:
    work = state.durable.holder(lease)
    if work is None:
        return ""
    steps = f" to step {lease.target_step}" if isinstance(lease, TrainLease) else ""
    return work.wanted.label + steps


def _line_of(lineage: Lineage) -> LineageLedger:
    return LineageLedger(
        lineage=lineage.wanted.id,
        label=lineage.wanted.label,
        role=lineage.wanted.role,
        total_steps=lineage.wanted.total_steps,
        commits=tuple(lineage.commits),
    )


def _range(commit: CommitRecord) -> LedgerRange:
    return LedgerRange(
        start_step=commit.start_step,
        end_step=commit.end_step,
        parent=commit.parent,
        child=commit.checkpoint,
        node=commit.node,
        fence=commit.fence,
    )
