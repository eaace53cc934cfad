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

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from statistics import median_low

from coordinator.core.policy import Ask, Choice, ChosenLineage, ChosenTask, NothingFits, choose, has_steps, waiting
from coordinator.core.settings import CoreSettings
from coordinator.core.state import DurableState, Lease, Lineage, Run, Task, TaskLease, TrainLease
from coordinator.core.values import LineageWanted
from potluck.ids import NodeId

_Kind = tuple[str, float]
"""Of a lineage: its role and the FLOPs of a step, which is all that a pace depends on."""
_SLACK = 1.0 + 1e-9
"""A bound may not rule out what the exact sum, rounded otherwise, would allow."""


@dataclass(frozen=True, kw_only=True)
class _Help:
    saved_ms: float
    choice: Choice


def choose_or_help(durable: DurableState, ask: Ask, settings: CoreSettings) -> Choice:
    """What `policy.choose` says; where that is nothing, work that another node is slow with. Changes nothing."""
    choice = choose(durable, ask, settings)
    if not isinstance(choice, NothingFits) or not ask.host:
        return choice
    usual = _UsualPaces(durable)
    helps = [help for run in durable.at_work() for help in _helps(durable, run, ask, settings, usual)]
    return max(helps, key=lambda help: help.saved_ms).choice if helps else choice


class Openings:
    """What waits for a node or for help, looked through once for many nodes; holds while the state stays as it is."""

    def __init__(self, durable: DurableState, now_ms: int, settings: CoreSettings) -> None:
        self._durable = durable
        self._now_ms = now_ms
        self._settings = settings
        self._usual = _UsualPaces(durable)
        waits = [work.wanted.memory_bytes for run in durable.at_work() for work in waiting(durable, run)]
        self._least_bytes = min(waits, default=None)
        # Where nothing waits there is only help to give, to each holder by one node.
        self.num = len(waits) or len(durable.leases)

    def has_one_for(self, ask: Ask) -> bool:
        """Whether `choose_or_help` finds something for a node that keeps nothing."""
        if self._least_bytes is not None and self._least_bytes <= ask.free_memory_bytes:
            return True
        if not ask.host or not self._may_help(ask.node):
            return False
        return not isinstance(choose_or_help(self._durable, ask, self._settings), NothingFits)

    def _may_help(self, node: NodeId) -> bool:
        """False if it is certainly too slow; the exact answer costs a look at every lease."""
        for kind, limit_ms in self._slowest_help.items():
            own_ms = _own_step_ms(self._durable, kind, node)
            if own_ms is None:
                own_ms = self._usual.least_ms(kind)
            if 0 < own_ms <= limit_ms * _SLACK:
                return True
        return self._has_stragglers

    @cached_property
    def _slowest_help(self) -> dict[_Kind, float]:
        """By kind: milliseconds a step that a second node of some such lineage may take at most."""
        durable, settings = self._durable, self._settings
        limits: dict[_Kind, float] = {}
        for run in durable.at_work():
            for lineage in (durable.lineages[lineage_id] for lineage_id in run.lineages):
                if len(lineage.leases) != 1 or not has_steps(lineage):
                    continue
                (fence,) = lineage.leases
                holder = durable.leases[fence]
                assert isinstance(holder, TrainLease)
                holder_ms = _holder_ms(durable, lineage, holder, self._now_ms)
                spare_ms = min(holder_ms / settings.spare_speedup, holder_ms - settings.spare_gain_ms)
                limit_ms = spare_ms / (lineage.wanted.known_steps - lineage.head_step)
                kind = _kind(lineage.wanted)
                limits[kind] = max(limit_ms, limits.get(kind, 0.0))
        return limits

    @cached_property
    def _has_stragglers(self) -> bool:
        durable, settings = self._durable, self._settings
        for run in durable.at_work():
            for task in (durable.tasks[task_id] for task_id in run.open_tasks):
                for holder in (durable.leases[fence] for fence in task.leases):
                    assert isinstance(holder, TaskLease)
                    if _saved_on_task(durable, task, holder, self._now_ms, settings) >= settings.spare_gain_ms:
                        return True
        return False


class _UsualPaces:
    """The middle pace of all nodes but one, by kind; sorted once a kind."""

    def __init__(self, durable: DurableState) -> None:
        self._durable = durable
        self._sorted: dict[_Kind, list[float]] = {}

    def step_ms(self, kind: _Kind, but: NodeId) -> float:
        """The lower of two middle ones; 0 if no other node has one."""
        times, own_ms = self._times(kind), _step_ms(self._durable, kind, but)
        num_others = len(times) - (own_ms > 0)
        if not num_others:
            return 0.0
        middle = (num_others - 1) // 2
        skips_own = own_ms > 0 and bisect_left(times, own_ms) <= middle
        return times[middle + skips_own]

    def least_ms(self, kind: _Kind) -> float:
        """No more than `step_ms`, whoever is left out, unless that is 0."""
        times = self._times(kind)
        return times[max(0, (len(times) - 2) // 2)] if times else 0.0

    def _times(self, kind: _Kind) -> list[float]:
        if kind not in self._sorted:
            times = (_step_ms(self._durable, kind, node) for node in self._durable.paces)
            self._sorted[kind] = sorted(one for one in times if one)
        return self._sorted[kind]


def _helps(durable: DurableState, run: Run, ask: Ask, settings: CoreSettings, usual: _UsualPaces) -> Iterator[_Help]:
    for lineage_id in run.lineages:
        lineage = durable.lineages[lineage_id]
        holder = _only_holder(durable, lineage, ask)
        if isinstance(holder, TrainLease) and has_steps(lineage):
            saved_ms = _saved_on_lineage(durable, lineage, holder, ask, settings, usual)
            if saved_ms >= settings.spare_gain_ms:
                yield _Help(saved_ms=saved_ms, choice=ChosenLineage(run=run.run, lineage=lineage_id))
    for task_id in run.open_tasks:
        task = durable.tasks[task_id]
        holder = _only_holder(durable, task, ask)
        if isinstance(holder, TaskLease):
            saved_ms = _saved_on_task(durable, task, holder, ask.now_ms, settings)
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
    durable: DurableState,
    lineage: Lineage,
    holder: TrainLease,
    ask: Ask,
    settings: CoreSettings,
    usual: _UsualPaces,
) -> float:
    """Milliseconds that the spare would be sooner; 0 if it would not be twice as fast, or nobody can tell."""
    steps_left = lineage.wanted.known_steps - lineage.head_step
    kind = _kind(lineage.wanted)
    own_ms = _own_step_ms(durable, kind, ask.node)
    if own_ms is None:
        own_ms = usual.step_ms(kind, holder.node)
    holder_ms = _holder_ms(durable, lineage, holder, ask.now_ms)
    spare_ms = own_ms * steps_left
    return holder_ms - spare_ms if 0 < settings.spare_speedup * spare_ms <= holder_ms else 0.0


def _holder_ms(durable: DurableState, lineage: Lineage, holder: TrainLease, now_ms: int) -> float:
    """Milliseconds that the holder still needs for the known steps."""
    wanted, since_ms = lineage.wanted, now_ms - holder.moved_ms
    steps_left = wanted.known_steps - lineage.head_step
    next_step = min((lineage.head_step // wanted.commit_every + 1) * wanted.commit_every, wanted.known_steps)
    at_least_ms = since_ms / (next_step - lineage.head_step)
    return max(_step_ms(durable, _kind(wanted), holder.node) * steps_left - since_ms, at_least_ms * steps_left)


def _kind(wanted: LineageWanted) -> _Kind:
    return wanted.role, wanted.flops_per_step


def _own_step_ms(durable: DurableState, kind: _Kind, node: NodeId) -> float | None:
    """By its own pace in this role, or else in the role with the likest steps; None if it has none."""
    paces, (role, flops) = durable.paces.get(node, {}), kind
    if role in paces or not paces:
        return _step_ms(durable, kind, node) or None
    return min(paces.values(), key=lambda pace: abs(pace.step_flops - flops)).of_step(flops)


def _step_ms(durable: DurableState, kind: _Kind, node: NodeId) -> float:
    role, flops = kind
    pace = durable.paces.get(node, {}).get(role)
    return pace.of_step(flops) if pace is not None else 0.0


def _saved_on_task(durable: DurableState, task: Task, holder: TaskLease, now_ms: int, settings: CoreSettings) -> float:
    """Milliseconds that it has taken longer than such tasks take; 0 if it is no straggler."""
    times, since_ms = durable.task_ms.get(task.wanted.kind, ()), now_ms - holder.granted_ms
    if not times:
        return float(since_ms) if since_ms > settings.overdue_ms else 0.0
    usual_ms = median_low(times)
    return float(since_ms - usual_ms) if since_ms > settings.straggler_factor * usual_ms else 0.0
