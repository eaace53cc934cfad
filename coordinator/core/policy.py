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


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    failed_here: bool
    rank_class: int
    work: Lineage | Task


def choose(durable: DurableState, ask: Ask, settings: CoreSettings) -> Choice:
    """The work `ask.node` should do now, or why there is none. Changes nothing."""
    too_large: list[str] = []
    found = {run.run: list(_candidates(durable, run, ask, settings, too_large)) for run in durable.at_work()}
    for run in _by_share(durable, [run for run in durable.at_work() if found[run.run]], ask):
        candidates = found[run.run]
        first = min((c.failed_here, c.rank_class) for c in candidates)
        works = [c.work for c in candidates if (c.failed_here, c.rank_class) == first]
        lineages = [work for work in works if isinstance(work, Lineage)]
        if lineages:
            return ChosenLineage(run=run.run, lineage=_best_lineage(lineages, ask).wanted.id)
        tasks = [work for work in works if isinstance(work, Task)]
        return ChosenTask(run=run.run, task=_best_task(tasks, ask).wanted.id)
    return NothingFits(reason=too_large[0] if too_large else _why_nothing(durable))


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


def _candidates(
    durable: DurableState, run: Run, ask: Ask, settings: CoreSettings, too_large: list[str]
) -> Iterator[_Candidate]:
    for work in waiting(durable, run, ask.keep):
        kept = isinstance(work, Lineage) and work.wanted.id == ask.keep
        if ask.keep is not None and not kept and ask.now_ms - work.ready_ms < settings.yield_grace_ms:
            continue
        if work.wanted.memory_bytes > ask.free_memory_bytes and not kept:
            too_large.append(
                f"{work.wanted.label} needs {work.wanted.memory_bytes} bytes of memory, "
                f"{ask.free_memory_bytes} are free on this node"
            )
            continue
        failed_here = any(failure.node == ask.node for failure in work.failures)
        yield _Candidate(failed_here=failed_here, rank_class=_rank_class(work, ask.now_ms, settings), work=work)


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
    return max(tasks, key=lambda task: sum(digest in ask.held for _, digest in task.wanted.inputs))


def _leases_by_run(durable: DurableState, keep: LineageId | None) -> dict[RunId, int]:
    counts: dict[RunId, int] = {}
    for lease in durable.leases.values():
        if isinstance(lease, TrainLease) and lease.lineage == keep:
            continue
        counts[lease.run] = counts.get(lease.run, 0) + 1
    return counts


def _why_nothing(durable: DurableState) -> str:
    if durable.at_work():
        return "everything there is to do is being done"
    return "every run is paused" if durable.running() else "no run is under way"
