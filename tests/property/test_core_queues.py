"""The queues give out work in the order that looking at all of it gives, which is written here in plain."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from coordinator.core import queues
from coordinator.core.events import PlanAdvanced
from coordinator.core.policy import (
    NEARLY_LONGEST,
    Ask,
    Choice,
    ChosenLineage,
    ChosenTask,
    NothingFits,
    _by_share,
    _why_nothing,
    _why_too_large,
    choose,
    has_steps,
)
from coordinator.core.settings import CoreSettings
from coordinator.core.state import DurableState, Lineage, Run, Task
from coordinator.core.values import Running, TaskWanted
from potluck.ids import Digest, LineageId, NodeId, TaskId
from tests.property.test_core_replay import NODES, OPS, RUNS, STEP, World, replayed

SETTINGS = CoreSettings()
LATER_MS = (0, 500, 1_000, 3_000, 59_000, 61_000, 200_000, 1_000)
"""The last one goes back, as a clock does only in a test."""
HELD = (frozenset[Digest](), frozenset(map(Digest, ("w0", "w1", "x1"))), frozenset(map(Digest, ("x0", "x2", "all"))))
seen: Counter[str] = Counter()


class Crowd(World):
    """Plans ask for more tasks, of several sizes, which share what they read."""

    def plan(self, a: int, b: int) -> None:
        super().plan(a, b)
        run = self.machine.durable.runs.get(RUNS[a % 2])
        if run is None or not isinstance(run.status, Running):
            return
        lineages = tuple(self.machine.durable.lineages[one].wanted for one in run.lineages)
        tasks = tuple(self._task(run.run, i) for i in range(2)) + tuple(self._many(run.run, b))
        self.feed(
            PlanAdvanced(
                now_ms=self.now_ms,
                run=run.run,
                lineages=lineages,
                tasks=tasks,
                publish=(),
                stage="testing",
                outcome=Running(),
            )
        )

    def _many(self, run: str, b: int) -> Iterator[TaskWanted]:
        for i in range(b % 16):
            names = ("all", f"x{i % 3}", f"x{(i + 1) % 3}" if i % 4 else f"x{i % 3}")
            yield TaskWanted(
                id=TaskId(f"{run}-many-{i}"),
                kind="score",
                params_json="{}",
                inputs=tuple((str(number), Digest(name)) for number, name in enumerate(names)),
                label=f"many {i}",
                memory_bytes=100 * (i % 3),
                rank=(i + b // 16) % 3,
            )


def all_asks(durable: DurableState, now_ms: int) -> Iterator[Ask]:
    heads = frozenset(one.commits[-1].weights for one in durable.lineages.values() if one.commits)
    for held in (*HELD, heads):
        for free in (-1, 0, 100, 200):
            for node in (NODES[0], NodeId("other")):
                ask = Ask(node=node, free_memory_bytes=free, held=held, now_ms=now_ms, host="h")
                yield ask
                yield replace(ask, host="")
    for lease in list(durable.leases.values()):
        keep = getattr(lease, "lineage", None)
        if keep is not None:
            for held in (*HELD, heads):
                yield Ask(
                    node=lease.node, free_memory_bytes=100, held=held, now_ms=now_ms, keep=LineageId(keep), host="h"
                )


def assert_choices_are_plain(durable: DurableState, now_ms: int) -> None:
    for ask in all_asks(durable, now_ms):
        choice, plain = choose(durable, ask, SETTINGS), plain_choice(durable, ask, SETTINGS)
        if ask.keep is not None and isinstance(plain, NothingFits):
            assert isinstance(choice, NothingFits), ask
        else:
            assert choice == plain, ask
        seen[type(choice).__name__] += 1


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(STEP, min_size=20, max_size=70))
def check_lives(steps: list[tuple[int, int, int]]) -> None:
    world = Crowd()
    for i in range(2):
        world.submit(i, 0)
        world.plan(i, 15)
    for number, (op, a, b) in enumerate(steps):
        OPS[op](world, a, b) if OPS[op] is not World.plan else world.plan(a, b)
        if number % 10 == 9:
            assert_choices_are_plain(world.machine.durable, world.now_ms)
    for later_ms in LATER_MS:
        assert_choices_are_plain(world.machine.durable, world.now_ms + later_ms)
    again = replayed(world.durable)
    assert_choices_are_plain(again.durable, world.now_ms)


@pytest.mark.parametrize("max_narrow", [2, queues.MAX_NARROW])
def test_the_queues_choose_what_looking_at_all_that_waits_chooses(
    max_narrow: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queues, "MAX_NARROW", max_narrow)
    seen.clear()
    check_lives()
    assert min(seen[kind.__name__] for kind in (ChosenLineage, ChosenTask, NothingFits)) > 500, seen


# --- the order in plain ------------------------------------------------------------------------


@dataclass(kw_only=True)
class Offer:
    """The most urgent class of a run's work that the node can do, and what does not fit it."""

    lineages: list[Lineage]
    tasks: list[Task]
    too_large: Lineage | Task | None


def plain_choice(durable: DurableState, ask: Ask, settings: CoreSettings) -> Choice:
    """The work `ask.node` should do now, or why there is none. Changes nothing."""
    offers = {run.run: offer_of(durable, run, ask, settings) for run in durable.at_work()}
    runs = [run for run in durable.at_work() if offers[run.run].lineages or offers[run.run].tasks]
    for run in _by_share(durable, runs, ask):
        offer = offers[run.run]
        if offer.lineages:
            return ChosenLineage(run=run.run, lineage=best_lineage(offer.lineages, ask).wanted.id)
        return ChosenTask(run=run.run, task=best_task(offer.tasks, ask).wanted.id)
    too_large = next((offer.too_large for offer in offers.values() if offer.too_large is not None), None)
    return NothingFits(reason=_why_nothing(durable) if too_large is None else _why_too_large(too_large, ask))


def waiting_or_kept(durable: DurableState, run: Run, keep: LineageId | None = None) -> Iterator[Lineage | Task]:
    """A run's work that a node could start now: wanted, not done, not leased, unless leased to who asks."""
    for task_id in run.open_tasks:
        task = durable.tasks[task_id]
        if not task.leases:
            yield task
    for lineage_id in run.lineages:
        lineage = durable.lineages[lineage_id]
        if (not lineage.leases or lineage_id == keep) and has_steps(lineage):
            yield lineage


def offer_of(durable: DurableState, run: Run, ask: Ask, settings: CoreSettings) -> Offer:
    """One pass over all that waits, which may be much: so it keeps only what is as urgent as anything before."""
    offer = Offer(lineages=[], tasks=[], too_large=None)
    first = (True, math.inf)
    for work in waiting_or_kept(durable, run, ask.keep):
        kept = ask.keep is not None and isinstance(work, Lineage) and work.wanted.id == ask.keep
        if ask.keep is not None and not kept and ask.now_ms - work.ready_ms < settings.yield_grace_ms:
            continue
        if work.wanted.memory_bytes > ask.free_memory_bytes and not kept:
            offer.too_large = offer.too_large or work
            continue
        failed_here = bool(work.failures) and any(failure.node == ask.node for failure in work.failures)
        urgency = (failed_here, rank_class(work, ask.now_ms, settings))
        if urgency > first:
            continue
        if urgency < first:
            first, offer.lineages, offer.tasks = urgency, [], []
        if isinstance(work, Lineage):
            offer.lineages.append(work)
        else:
            offer.tasks.append(work)
    return offer


def rank_class(work: Lineage | Task, now_ms: int, settings: CoreSettings) -> int:
    """Tasks of rank r are class 2r, lineages of rank r class 2r + 1."""
    rank = work.wanted.rank
    if isinstance(work, Lineage):
        return 2 * rank + 1
    if rank == 1 and now_ms - work.ready_ms >= settings.overdue_ms:
        return 0
    return 2 * rank


def best_lineage(lineages: list[Lineage], ask: Ask) -> Lineage:
    longest = max(lineage.remaining_flops for lineage in lineages)
    urgent = [lineage for lineage in lineages if lineage.remaining_flops >= NEARLY_LONGEST * longest]
    return min(urgent, key=lambda lineage: (not holds_head(lineage, ask), -lineage.remaining_flops))


def holds_head(lineage: Lineage, ask: Ask) -> bool:
    if lineage.wanted.id == ask.keep:
        return True
    return bool(lineage.commits) and lineage.commits[-1].weights in ask.held


def best_task(tasks: list[Task], ask: Ask) -> Task:
    if not ask.held:
        return tasks[0]
    return max(tasks, key=lambda task: len([None for _, digest in task.wanted.inputs if digest in ask.held]))
