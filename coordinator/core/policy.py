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


@dataclass(kw_only=True)
class _Offer:
    """The most urgent class of a run's work that the node can do, and what does not fit it."""

    lineages: list[Lineage]
    tasks: list[Task]
    too_large: Lineage | Task | None


def choose(durable: DurableState, ask: Ask, settings: CoreSettings) -> Choice:
    """The work `ask.node` should do now, or why there is none. Changes nothing."""
    offers = {run.run: _offer(durable, run, ask, settings) for run in durable.at_work()}
    runs = [run for run in durable.at_work() if offers[run.run].lineages or offers[run.run].tasks]
    for run in _by_share(durable, runs, ask):
        offer = offers[run.run]
        if offer.lineages:
            return ChosenLineage(run=run.run, lineage=_best_lineage(offer.lineages, ask).wanted.id)
        return ChosenTask(run=run.run, task=_best_task(offer.tasks, ask).wanted.id)
    too_large = next((offer.too_large for offer in offers.values() if offer.too_large is not None), None)
    return NothingFits(reason=_why_nothing(durable) if too_large is None else _why_too_large(too_large, ask))


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


def waiting(durable: DurableState, run: Run, keep: LineageId | None = None) -> Iterator[Lineage | Task]:
    """A run's work that a node could start now: wanted, not done, not leased, unless leased to who asks."""
    for task_id in run.open_tasks:
        task = durable.tasks[task_id]
        if not task.leases:
            yield task
    for lineage_id in run.lineages:
        lineage = durable.lineages[lineage_id]
        if (not lineage.leases or lineage_id == keep) and has_steps(lineage):
            yield lineage


def _offer(durable: DurableState, run: Run, ask: Ask, settings: CoreSettings) -> _Offer:
    """One pass over all that waits, which may be much: so it keeps only what is as urgent as anything before."""
    offer = _Offer(lineages=[], tasks=[], too_large=None)
    first = (True, math.inf)
    for work in waiting(durable, run, ask.keep):
        kept = ask.keep is not None and isinstance(work, Lineage) and work.wanted.id == ask.keep
        if ask.keep is not None and not kept and ask.now_ms - work.ready_ms < settings.yield_grace_ms:
            continue
        if work.wanted.memory_bytes > ask.free_memory_bytes and not kept:
            offer.too_large = offer.too_large or work
            continue
        failed_here = bool(work.failures) and any(failure.node == ask.node for failure in work.failures)
        urgency = (failed_here, _rank_class(work, ask.now_ms, settings))
        if urgency > first:
            continue
        if urgency < first:
            first, offer.lineages, offer.tasks = urgency, [], []
        if isinstance(work, Lineage):
            offer.lineages.append(work)
        else:
            offer.tasks.append(work)
    return offer


def _rank_class(work: Lineage | Task, now_ms: int, settings: CoreSettings) -> int:
    """Tasks of rank r are class 2r, lineages of rank r class 2r + 1."""
    rank = work.wanted.rank
    if isinstance(work, Lineage):
        return 2 * rank + 1
    if rank == 1 and now_ms - work.ready_ms >= settings.overdue_ms:
        return 0
    return 2 * rank


def _best_lineage(lineages: list[Lineage], ask: Ask) -> Lineage:
    longest = max(lineage.remaining_flops for lineage in lineages)
    urgent = [lineage for lineage in lineages if lineage.remaining_flops >= NEARLY_LONGEST * longest]
    return min(urgent, key=lambda lineage: (not _holds_head(lineage, ask), -lineage.remaining_flops))


def _holds_head(lineage: Lineage, ask: Ask) -> bool:
    if lineage.wanted.id == ask.keep:
        return True
    return bool(lineage.commits) and lineage.commits[-1].weights in ask.held


def _best_task(tasks: list[Task], ask: Ask) -> Task:
    if not ask.held:
        return tasks[0]
    return max(tasks, key=lambda task: len([None for _, digest in task.wanted.inputs if digest in ask.held]))


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
