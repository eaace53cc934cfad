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

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median_low

from coordinator.core.policy import Ask, Choice, ChosenLineage, ChosenTask, NothingFits, choose, has_steps
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

    def __init__(self, durable: DurableState, nodes: Sequence[NodeId], now_ms: int, settings: CoreSettings) -> None:
        """`nodes`: that have nothing to do."""
        self._durable = durable
        self._nodes = nodes
        self._now_ms = now_ms
        self._settings = settings
        self._usual = _UsualPaces(durable)
        queues = [durable.queues.of(run.run) for run in durable.at_work()]
        self._num_waiting = sum(queue.num_waiting for queue in queues)
        self._least_bytes = min((size for queue in queues for size in queue.sizes()), default=None)

    def takers(self, *, but: int) -> Iterator[NodeId]:
        """Those that would find something, in their order, as many as there are things to do but so many."""
        num_left = (self._num_waiting or self._num_helps) - but
        for node in self._nodes:
            if num_left <= 0:
                return
            if self.has_one_for(node):
                num_left -= 1
                yield node

    def has_one_for(self, node: NodeId) -> bool:
        """Whether it would be given something if it asked as it did last, by `choose_or_help`."""
        facts = self._durable.nodes.get(node)
        if facts is None or self._durable.is_drained(node):
            return False
        free = facts.free_memory_bytes
        if self._least_bytes is not None and self._least_bytes <= free:
            return True
        if not facts.host or not (self._num_stragglers or self._is_fast_enough(node)):
            return False
        ask = Ask(node=node, free_memory_bytes=free, held=frozenset(), now_ms=self._now_ms, host=facts.host)
        return not isinstance(choose_or_help(self._durable, ask, self._settings), NothingFits)

    def _is_fast_enough(self, node: NodeId) -> bool:
        """False if it is certainly too slow to help; the exact answer costs a look at every lease."""
        slowest = self._slowest_helps
        return any(0 < self._at_least_ms(kind, node) <= limits[-1] for kind, limits in slowest.items())

    def _at_least_ms(self, kind: _Kind, node: NodeId) -> float:
        own_ms = _own_step_ms(self._durable, kind, node)
        return self._usual.least_ms(kind) if own_ms is None else own_ms

    @cached_property
    def _num_helps(self) -> int:
        """No fewer than the leases that one of the nodes could help with."""
        measured = [node for node in self._nodes if node in self._durable.paces]
        # All that never trained count as equally fast: one stands for them.
        different = [*measured, *next(([node] for node in self._nodes if node not in self._durable.paces), [])]
        num = self._num_stragglers
        for kind, limits in self._slowest_helps.items():
            times = (self._at_least_ms(kind, node) for node in different)
            fastest = min((ms for ms in times if ms > 0), default=math.inf)
            num += len(limits) - bisect_left(limits, fastest)
        return num

    @cached_property
    def _slowest_helps(self) -> dict[_Kind, list[float]]:
        """By kind: of each lineage that one node has, the milliseconds a step that a second may take; in order."""
        durable, settings = self._durable, self._settings
        limits: dict[_Kind, list[float]] = {}
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
                limits.setdefault(_kind(lineage.wanted), []).append(limit_ms * _SLACK)
        return {kind: sorted(found) for kind, found in limits.items()}

    @cached_property
    def _num_stragglers(self) -> int:
        durable, settings = self._durable, self._settings
        num = 0
        for run in durable.at_work():
            for task in (durable.tasks[task_id] for task_id in run.open_tasks):
                for holder in (durable.leases[fence] for fence in task.leases):
                    assert isinstance(holder, TaskLease)
                    saved_ms = _saved_on_task(durable, task, holder, self._now_ms, settings)
                    num += saved_ms >= settings.spare_gain_ms
        return num


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
