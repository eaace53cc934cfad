"""Which work a node gets: a pure choice over the durable state and the request alone.

The order, from the outside in:

1. **Runs.** A run's quota is its weight's part of the leases there are with this one; a step of priority
   doubles the weight. Of the runs that have something this node can do, those go first that hold fewer
   leases than the whole number in their quota. Those that lack only a fraction of one take turns: the one
   that was trained least for its weight goes next. Then come the others, and of equals the older one.
2. **Classes** within a run: tasks that hold lineages up (rank 0, or rank 1 and overdue); lineages of
   rank 0; tasks of rank 1; lineages of rank 1 (controls); tasks of rank 2 (evaluation).
3. **Within lineages**, longest remaining FLOPs first. Those within a fifth of the longest count as
   equal, and of equals the node gets one whose head it holds: no bytes move.
4. **Within tasks**, the one most of whose inputs the node holds, then the oldest.

Work that does not fit the node's free memory is not offered. Work that failed on this node goes last.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from coordinator.core.queues import Cohort, Filed, RunQueue
from coordinator.core.settings import CoreSettings
from coordinator.core.state import DurableState, Lineage, Run, Task, TrainLease
from potluck.ids import Digest, LineageId, NodeId, RunId, TaskId

NEARLY_LONGEST = 0.8
"""Lineages with at least this part of the longest one's remaining FLOPs count as equally urgent."""
MAX_PRIORITY = 10
"""Priorities beyond this change nothing: weights stay exact floats."""


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A node that asks for work. `keep` is the lineage it is training, when the question is whether to yield it.

    `host` is the machine it runs on; work that another node is slow with is not for a node that does not say.
    """

    node: NodeId
    free_memory_bytes: int
    held: frozenset[Digest]
    now_ms: int
    keep: LineageId | None = None
    host: str = ""


@dataclass(frozen=True, kw_only=True)
class ChosenLineage:
    run: RunId
    lineage: LineageId


@dataclass(frozen=True, kw_only=True)
class ChosenTask:
    run: RunId
    task: TaskId


@dataclass(frozen=True, kw_only=True)
class NothingFits:
    reason: str


Choice = ChosenLineage | ChosenTask | NothingFits

_Urgency = tuple[bool, int]
"""Whether the work failed on this node, and its class; the least goes first."""


def choose(durable: DurableState, ask: Ask, settings: CoreSettings) -> Choice:
    """The work `ask.node` should do now, or why there is none. Changes nothing."""
    at_work = durable.at_work()
    offers = {run.run: offer for run in at_work if (offer := _offer(durable, run, ask, settings)) is not None}
    for run in _by_share(durable, [run for run in at_work if run.run in offers], ask):
        offer = offers[run.run]
        if isinstance(offer, Lineage):
            return ChosenLineage(run=run.run, lineage=offer.wanted.id)
        return ChosenTask(run=run.run, task=offer.wanted.id)
    too_large = (durable.queues.of(run.run).first_larger(ask.free_memory_bytes) for run in at_work)
    first = next((filed.work for filed in too_large if filed is not None), None)
    return NothingFits(reason=_why_nothing(durable) if first is None else _why_too_large(first, ask))


def _by_share(durable: DurableState, runs: list[Run], ask: Ask) -> list[Run]:
    held = _leases_by_run(durable, ask.keep)
    if not ask.host:  # a journal from before nodes named their machine: it was answered by this order
        return sorted(runs, key=lambda run: (held.get(run.run, 0) / weight(run.priority), run.weighted_flops))
    rivals = [run for run in durable.at_work() if run in runs or run.run in held]
    total_weight = sum(weight(run.priority) for run in rivals)
    num_leases = 1 + sum(held.get(run.run, 0) for run in rivals)

    def turn(run: Run) -> tuple[int, float]:
        mine, quota = held.get(run.run, 0), num_leases * weight(run.priority) / total_weight
        if math.floor(quota) <= mine < quota:
            return 1, run.weighted_flops
        return (0 if mine < quota else 2), mine / weight(run.priority)

    return sorted(runs, key=turn)


def weight(priority: int) -> float:
    return float(2.0 ** max(-MAX_PRIORITY, min(MAX_PRIORITY, priority)))


def has_steps(lineage: Lineage) -> bool:
    return lineage.head_step < lineage.wanted.known_steps


def waiting(durable: DurableState, run: Run) -> Iterator[Lineage | Task]:
    """A run's work that a node could start now: wanted, not done, not leased. All of it; `queues` has it in order."""
    for task_id in run.open_tasks:
        task = durable.tasks[task_id]
        if not task.leases:
            yield task
    for lineage_id in run.lineages:
        lineage = durable.lineages[lineage_id]
        if not lineage.leases and has_steps(lineage):
            yield lineage


def _offer(durable: DurableState, run: Run, ask: Ask, settings: CoreSettings) -> Lineage | Task | None:
    """The most urgent of a run's work that the node can do."""
    queue = durable.queues.of(run.run)
    cohorts: dict[_Urgency, list[Cohort]] = {}
    for shelf in queue.shelves():
        if shelf.memory_bytes > ask.free_memory_bytes:
            continue
        for ready_ms, cohort in shelf.cohorts(ask.now_ms, settings):
            if ask.keep is None or ask.now_ms - ready_ms >= settings.yield_grace_ms:
                rank_class = _rank_class(shelf.is_lineage, shelf.rank, ask.now_ms - ready_ms, settings)
                cohorts.setdefault((False, rank_class), []).append(cohort)
    single: dict[_Urgency, list[Filed]] = {}
    for filed in _singles(run, queue, ask, settings):
        wanted, failures = filed.work.wanted, filed.work.failures
        failed_here = any(failure.node == ask.node for failure in failures)
        waited_ms = ask.now_ms - filed.work.ready_ms
        rank_class = _rank_class(isinstance(filed.work, Lineage), wanted.rank, waited_ms, settings)
        single.setdefault((failed_here, rank_class), []).append(filed)
    first = min((*cohorts, *single), default=None)
    if first is None:
        return None
    best = _best_lineage if first[1] % 2 else _best_task
    return best(cohorts.get(first, []), single.get(first, []), ask).work


def _singles(run: Run, queue: RunQueue, ask: Ask, settings: CoreSettings) -> Iterator[Filed]:
    """What is in no cohort: works that failed before, and the lineage that the node has."""
    for filed in queue.failed.values():
        is_young = ask.keep is not None and ask.now_ms - filed.work.ready_ms < settings.yield_grace_ms
        if not is_young and filed.work.wanted.memory_bytes <= ask.free_memory_bytes:
            yield filed
    kept = queue.find((True, ask.keep)) if ask.keep is not None else None
    if kept is not None and isinstance(kept.work, Lineage) and has_steps(kept.work):
        yield kept


def _rank_class(is_lineage: bool, rank: int, waited_ms: int, settings: CoreSettings) -> int:
    """Tasks of rank r are class 2r, lineages of rank r class 2r + 1."""
    if is_lineage:
        return 2 * rank + 1
    return 0 if rank == 1 and waited_ms >= settings.overdue_ms else 2 * rank


def _best_lineage(cohorts: list[Cohort], single: list[Filed], ask: Ask) -> Filed:
    found = [*single, *(cohort.longest() for cohort in cohorts)]
    longest = max(_lineage(filed).remaining_flops for filed in found)
    found += [filed for cohort in cohorts for filed in cohort.with_heads_in(ask.held)]
    urgent = [filed for filed in found if _lineage(filed).remaining_flops >= NEARLY_LONGEST * longest]

    def order(filed: Filed) -> tuple[bool, float, int]:
        lineage = _lineage(filed)
        return not _holds_head(lineage, ask), -lineage.remaining_flops, filed.place

    return min(urgent, key=order)


def _lineage(filed: Filed) -> Lineage:
    assert isinstance(filed.work, Lineage)
    return filed.work


def _holds_head(lineage: Lineage, ask: Ask) -> bool:
    if lineage.wanted.id == ask.keep:
        return True
    return bool(lineage.commits) and lineage.commits[-1].weights in ask.held


def _best_task(cohorts: list[Cohort], single: list[Filed], ask: Ask) -> Filed:
    def order(filed: Filed) -> tuple[int, int]:
        assert isinstance(filed.work, Task)
        return -len([None for _, digest in filed.work.wanted.inputs if digest in ask.held]), filed.place

    return min((*single, *(filed for cohort in cohorts for filed in cohort.likeliest(ask.held))), key=order)


def _leases_by_run(durable: DurableState, keep: LineageId | None) -> dict[RunId, int]:
    counts: dict[RunId, int] = {}
    for lease in durable.leases.values():
        if isinstance(lease, TrainLease) and lease.lineage == keep:
            continue
        counts[lease.run] = counts.get(lease.run, 0) + 1
    return counts


def _why_too_large(work: Lineage | Task, ask: Ask) -> str:
    return (
        f"{work.wanted.label} needs {work.wanted.memory_bytes} bytes of memory, "
        f"{ask.free_memory_bytes} are free on this node"
    )


def _why_nothing(durable: DurableState) -> str:
    if durable.at_work():
        return "everything there is to do is being done"
    return "every run is paused" if durable.running() else "no run is under way"
