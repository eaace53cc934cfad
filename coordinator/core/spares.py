"""Second leases: what a node does that finds nothing else, while somebody is slow.

Asked only when nothing waits. A second node is given work that one node holds, on another machine, if

- **a lineage**: it would train what is left of the known steps in half the time the holder needs. The holder
  needs what its pace says, less the time since it last committed; and as no commit came for that long, at
  least as long again for every interval of the grid that is left.
- **a task**: the holder has had it for three times what such tasks take (the median of the last ones),
  or as long as makes a task overdue if there was none yet.

Both must save a few seconds. Paces are those of `pace`. What saves most goes first. Whoever commits first has moved the
head, and the other one is told to stop (`work`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median_low

from coordinator.core.policy import Ask, Choice, ChosenLineage, ChosenTask, NothingFits, choose, has_steps
from coordinator.core.settings import CoreSettings
from coordinator.core.state import DurableState, Lease, Lineage, Run, Task, TaskLease, TrainLease
from coordinator.core.values import LineageWanted
from potluck.ids import NodeId


@dataclass(frozen=True, kw_only=True)
class _Help:
    saved_ms: float
    choice: Choice


def choose_or_help(durable: DurableState, ask: Ask, settings: CoreSettings) -> Choice:
    """What `policy.choose` says; where that is nothing, work that another node is slow with. Changes nothing."""
    choice = choose(durable, ask, settings)
    if not isinstance(choice, NothingFits) or not ask.host:
        return choice
    helps = [help for run in durable.at_work() for help in _helps(durable, run, ask, settings)]
    return max(helps, key=lambda help: help.saved_ms).choice if helps else choice


def _helps(durable: DurableState, run: Run, ask: Ask, settings: CoreSettings) -> Iterator[_Help]:
    for lineage_id in run.lineages:
        lineage = durable.lineages[lineage_id]
        holder = _only_holder(durable, lineage, ask)
        if isinstance(holder, TrainLease) and has_steps(lineage):
            saved_ms = _saved_on_lineage(durable, lineage, holder, ask, settings)
            if saved_ms >= settings.spare_gain_ms:
                yield _Help(saved_ms=saved_ms, choice=ChosenLineage(run=run.run, lineage=lineage_id))
    for task_id in run.open_tasks:
        task = durable.tasks[task_id]
        holder = _only_holder(durable, task, ask)
        if isinstance(holder, TaskLease):
            saved_ms = _saved_on_task(durable, task, holder, ask, settings)
            if saved_ms >= settings.spare_gain_ms:
                yield _Help(saved_ms=saved_ms, choice=ChosenTask(run=run.run, task=task_id))


def _only_holder(durable: DurableState, work: Lineage | Task, ask: Ask) -> Lease | None:
    """Who has it alone, if that is another machine, and the node that asks could do it as well."""
    if len(work.leases) != 1 or work.wanted.memory_bytes > ask.free_memory_bytes:
        return None
    if any(failure.node == ask.node for failure in work.failures):
        return None
    (fence,) = work.leases
    lease = durable.leases[fence]
    facts = durable.nodes.get(lease.node)
    return lease if facts is not None and facts.host not in ("", ask.host) else None


def _saved_on_lineage(
    durable: DurableState, lineage: Lineage, holder: TrainLease, ask: Ask, settings: CoreSettings
) -> float:
    """Milliseconds that the spare would be sooner; 0 if it would not be twice as fast, or nobody can tell."""
    wanted, since_ms = lineage.wanted, ask.now_ms - holder.moved_ms
    steps_left = wanted.known_steps - lineage.head_step
    next_step = min((lineage.head_step // wanted.commit_every + 1) * wanted.commit_every, wanted.known_steps)
    at_least_ms = since_ms / (next_step - lineage.head_step)
    own_ms = _own_step_ms(durable, wanted, ask.node, holder.node)
    holder_ms = max(_step_ms(durable, wanted, holder.node) * steps_left - since_ms, at_least_ms * steps_left)
    spare_ms = own_ms * steps_left
    return holder_ms - spare_ms if 0 < settings.spare_speedup * spare_ms <= holder_ms else 0.0


def _own_step_ms(durable: DurableState, wanted: LineageWanted, spare: NodeId, holder: NodeId) -> float:
    """By its own pace in this role, or else in the role with the likest steps; or by what is usual for others."""
    paces = durable.paces.get(spare, {})
    if wanted.role in paces or not paces:
        return _step_ms(durable, wanted, spare) or _usual_step_ms(durable, wanted, holder)
    likest = min(paces.values(), key=lambda pace: abs(pace.step_flops - wanted.flops_per_step))
    return likest.of_step(wanted.flops_per_step)


def _step_ms(durable: DurableState, wanted: LineageWanted, node: NodeId) -> float:
    pace = durable.paces.get(node, {}).get(wanted.role)
    return pace.of_step(wanted.flops_per_step) if pace is not None else 0.0


def _usual_step_ms(durable: DurableState, wanted: LineageWanted, but: NodeId) -> float:
    """The middle one of all nodes but the holder; 0 if none has one."""
    times = [_step_ms(durable, wanted, node) for node in durable.paces if node != but]
    return median_low([one for one in times if one] or [0.0])


def _saved_on_task(durable: DurableState, task: Task, holder: TaskLease, ask: Ask, settings: CoreSettings) -> float:
    """Milliseconds that it has taken longer than such tasks take; 0 if it is no straggler."""
    times, since_ms = durable.task_ms.get(task.wanted.kind, ()), ask.now_ms - holder.granted_ms
    if not times:
        return float(since_ms) if since_ms > settings.overdue_ms else 0.0
    usual_ms = median_low(times)
    return float(since_ms - usual_ms) if since_ms > settings.straggler_factor * usual_ms else 0.0
