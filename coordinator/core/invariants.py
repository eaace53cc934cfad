"""What must be true of the state after every event, by number; ARCHITECTURE.md names them alike."""

from __future__ import annotations

from collections.abc import Iterator

from coordinator.core.policy import waiting
from coordinator.core.queues import spot_of
from coordinator.core.state import (
    MAX_HOLDERS,
    CommitRecord,
    DurableState,
    Lineage,
    State,
    Task,
    TaskLease,
    TrainLease,
)
from coordinator.core.values import Running
from potluck.ids import NO_DIGEST, short


def check(state: State) -> list[str]:
    """Every invariant that does not hold, as a sentence that begins with its number; empty if all do."""
    durable = state.durable
    return [
        *_chains(durable),
        *_leases(durable),
        *_runs(durable),
        *_works(durable),
        *_queues(durable),
        *_ephemeral(state),
    ]


def check_chain(label: str, commits: tuple[CommitRecord, ...]) -> list[str]:
    """I1: committed ranges tile [0, head) along one chain."""
    problems: list[str] = []
    step, parent = 0, NO_DIGEST
    for commit in commits:
        if commit.start_step != step or commit.end_step <= step:
            problems.append(f"I1 {label}: steps [{commit.start_step}, {commit.end_step}) follow a head at {step}")
        if commit.parent != parent:
            problems.append(f"I1 {label}: the parent at step {commit.start_step} is not the checkpoint before")
        step, parent = commit.end_step, commit.checkpoint
    return problems


def _chains(durable: DurableState) -> Iterator[str]:
    for lineage_id, lineage in durable.lineages.items():
        yield from check_chain(short(lineage_id), tuple(lineage.commits))
        wanted = lineage.wanted
        if not lineage.head_step <= wanted.known_steps <= wanted.total_steps:
            yield (
                f"I2 {short(lineage_id)}: head {lineage.head_step} <= known {wanted.known_steps} "
                f"<= total {wanted.total_steps} does not hold"
            )
    for run in durable.runs.values():
        for line in run.ledger:
            yield from check_chain(short(line.lineage), line.commits)


def _leases(durable: DurableState) -> Iterator[str]:
    nodes: set[str] = set()
    last = 0
    for fence, lease in durable.leases.items():
        work_id = lease.lineage if isinstance(lease, TrainLease) else lease.task
        if fence != lease.fence or not last < fence < durable.next_fence:
            yield f"I3 lease {fence}: fences must be unique and grow; the next one is {durable.next_fence}"
        last = fence
        work = durable.holder(lease)
        if work is None or fence not in work.leases:
            yield f"I4 lease {fence}: {short(work_id)} does not know of it"
        elif not work.runs:
            yield f"I4 lease {fence}: no run wants {short(work_id)}"
        if isinstance(lease, TaskLease) and work is not None and durable.tasks[lease.task].result is not None:
            yield f"I4 lease {fence}: task {short(work_id)} is done"
        if lease.node in nodes:
            yield f"I5 node {lease.node} holds two leases"
        nodes.add(lease.node)
        if durable.is_revoked(lease.node):
            yield f"I6 lease {fence}: node {lease.node} is revoked"


def _works(durable: DurableState) -> Iterator[str]:
    works: list[Lineage | Task] = [*durable.lineages.values(), *durable.tasks.values()]
    for work in works:
        yield from _holders(durable, work)
    for lineage_id in durable.lineages:
        if not any(lineage_id in run.lineages for run in durable.runs.values()):
            yield f"I7 lineage {short(lineage_id)}: no run has it"
    for task_id, task in durable.tasks.items():
        if not task.runs:
            yield f"I7 task {short(task_id)}: no run has it"


def _holders(durable: DurableState, work: Lineage | Task) -> Iterator[str]:
    """I5: one node holds a piece of work, or two that run on machines which are known and differ."""
    name = short(work.wanted.id)
    missing = [fence for fence in work.leases if fence not in durable.leases]
    if missing:
        yield f"I4 {name}: its lease {missing[0]} is not there"
        return
    if len(work.leases) > MAX_HOLDERS:
        yield f"I5 {name} is leased {len(work.leases)} times"
    hosts = [durable.nodes[durable.leases[fence].node].host for fence in work.leases] if len(work.leases) > 1 else []
    if "" in hosts or len(set(hosts)) < len(hosts):
        yield f"I5 {name} is leased twice on {hosts}"


def _runs(durable: DurableState) -> Iterator[str]:
    for run in durable.runs.values():
        running = isinstance(run.status, Running)
        for lineage_id in run.lineages:
            lineage = durable.lineages.get(lineage_id)
            if lineage is None:
                yield f"I8 run {short(run.run)}: lineage {short(lineage_id)} is not there"
            elif run.run in lineage.runs and not running:
                yield f"I8 run {short(run.run)} has ended and still wants {short(lineage_id)}"
        for task_id in run.tasks:
            task = durable.tasks.get(task_id)
            if task is None or run.run not in task.runs:
                yield f"I8 run {short(run.run)}: task {short(task_id)} is not there"
            elif (task.result is None) != (task_id in run.open_tasks):
                yield f"I8 run {short(run.run)}: task {short(task_id)} is open and done"
        if not running and run.open_tasks:
            yield f"I8 run {short(run.run)} has ended with open tasks"


def _queues(durable: DurableState) -> Iterator[str]:
    """I10: what waits is queued, each where it belongs, and nothing else is."""
    for run in durable.runs.values():
        plain = list(waiting(durable, run))
        queued = durable.queues.of(run.run).waiting()
        if [filed.work for filed in queued] != plain:
            yield f"I10 run {short(run.run)}: {len(plain)} works wait and {len(queued)} are queued, or in another order"
        for filed in queued:
            if filed.spot != spot_of(filed.work):
                yield f"I10 {short(filed.work.wanted.id)}: it is queued where it was before"


def _ephemeral(state: State) -> Iterator[str]:
    leases = set(state.durable.leases)
    if set(state.ephemeral.deadlines_ms) != leases:
        yield "I9 the leases and their deadlines are not the same set"
    if not set(state.ephemeral.lapses_asked) <= leases:
        yield "I9 a lapse is asked for of a lease that is not there"
