"""How fast nodes are, as the journal shows it: times between grants, commits and results.

Heartbeats would say so sooner, but they are not journalled, and what a grant rests on must be there
when it is replayed.
"""

from __future__ import annotations

from dataclasses import replace

from coordinator.core.state import DurableState, Lineage, Pace, Task, TrainLease
from potluck.ids import NodeId

MAX_TASK_TIMES = 15
"""Of each kind: enough for a median that follows what the tasks are like now."""
UNMEASURED = -1
"""A lease that outlived a restart: its next commit may have been trained before the clock began."""


def note_commit(durable: DurableState, lineage: Lineage, lease: TrainLease, now_ms: int) -> None:
    """A commit under `lease` has moved the head: its node's pace over the whole lease, as nodes train ahead."""
    if lease.measured_step == UNMEASURED:
        lease = replace(lease, measured_ms=now_ms, measured_step=lineage.head_step)
    else:
        num_steps = lineage.head_step - lease.measured_step
        _set_pace(durable, lease.node, lineage, (now_ms - lease.measured_ms) / num_steps)
    durable.leases[lease.fence] = replace(lease, moved_ms=now_ms)


def note_loss(durable: DurableState, lineage: Lineage, lease: TrainLease, *, num_steps: int, now_ms: int) -> None:
    """Another node's commit of `num_steps` came first: so long, and they were not done here."""
    least_ms = (now_ms - lease.moved_ms) / num_steps
    known = durable.paces.get(lease.node, {}).get(lineage.wanted.role)
    if known is None or least_ms > known.of_step(lineage.wanted.flops_per_step):
        _set_pace(durable, lease.node, lineage, least_ms)


def note_task(durable: DurableState, task: Task, took_ms: int) -> None:
    before = durable.task_ms.get(task.wanted.kind, ())
    durable.task_ms[task.wanted.kind] = (*before, took_ms)[-MAX_TASK_TIMES:]


def measure_anew(durable: DurableState, now_ms: int) -> None:
    """The clock is that of another process: what leases took until now is not known."""
    for fence, lease in durable.leases.items():
        if isinstance(lease, TrainLease):
            durable.leases[fence] = replace(lease, measured_step=UNMEASURED, moved_ms=now_ms)
        else:
            durable.leases[fence] = replace(lease, granted_ms=now_ms)


def _set_pace(durable: DurableState, node: NodeId, lineage: Lineage, step_ms: float) -> None:
    pace = Pace(step_ms=step_ms, step_flops=lineage.wanted.flops_per_step)
    durable.paces.setdefault(node, {})[lineage.wanted.role] = pace
