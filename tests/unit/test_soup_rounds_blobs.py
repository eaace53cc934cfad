"""What is kept of a spread soup's rounds: all that will be read, and little else."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from coordinator.core.queries import pinned_digests
from coordinator.core.settings import CoreSettings
from coordinator.core.state import Cancelled, DurableState, Run, RunStatus, State, Task
from coordinator.core.values import Running, TaskWanted
from potluck.ids import Digest, RunId
from potluck.lm.soup_spread import Spread
from potluck.specs.soup import SoupControls
from tests.unit.soup_fold import SoupFold, soup

RUN = RunId("r" * 64)
SPREADS = [Spread(parts=2), Spread(parts=4), Spread(parts=2, local_steps=4, outer_momentum=0.9)]


def pinned(fold: SoupFold, status: RunStatus | None = None) -> frozenset[Digest]:
    run = Run(
        run=RUN,
        name="soup",
        priority=0,
        spec_json="",
        corpus_json="",
        created_unix_ms=0,
        request_id="",
        accepted_as="started",
        status=status or Running(),
        open_tasks={task.id: None for task in fold.seen_tasks.values() if task.id not in fold.done},
    )
    tasks = {
        task.id: Task(wanted=task, ready_ms=0, runs={RUN: None}, result=fold.done.get(task.id))
        for task in fold.seen_tasks.values()
    }
    return pinned_digests(State(settings=CoreSettings(), durable=DurableState(runs={RUN: run}, tasks=tasks)))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("spread", SPREADS)
def test_nothing_is_given_up_that_a_task_reads_later_not_even_before_it_is_wanted(spread: Spread, seed: int) -> None:
    fold = SoupFold(soup(controls=SoupControls(generic=False, constant=False), spread=spread))
    chance = random.Random(seed)
    kept = pinned(fold)
    while work := fold.open_work(fold.advance()):
        news = {digest for task in work if isinstance(task, TaskWanted) for _, digest in task.inputs}
        made = {digest for result in fold.done.values() for digest in result.blobs.values()}
        assert news & made <= kept
        assert news & made <= pinned(fold)
        fold.do(chance.choice(work))
        kept = pinned(fold)


@pytest.mark.parametrize(("spread", "most"), list(zip(SPREADS, [16, 28, 14], strict=True)))
def test_however_many_rounds_there_were_the_blobs_of_two_are_kept(spread: Spread, most: int) -> None:
    spec = soup(controls=SoupControls(generic=False, constant=False), spread=spread)
    spec = replace(spec, training=replace(spec.training, steps=40 * spread.local_steps))
    fold = SoupFold(spec)
    while work := fold.open_work(fold.advance()):
        made = {d for t in fold.seen_tasks.values() if _is_of_a_round(t) for d in _blobs(fold, t)}
        assert len(made & pinned(fold)) <= most
        fold.do(work[0])
    everything = len({d for t in fold.seen_tasks.values() if _is_of_a_round(t) for d in _blobs(fold, t)})
    assert everything > 4 * most


def test_a_cancelled_run_keeps_all_for_it_may_be_taken_up_again() -> None:
    fold = SoupFold(soup(controls=SoupControls(generic=False, constant=False), spread=SPREADS[0]))
    for _ in range(80):
        fold.do(fold.open_work(fold.advance())[0])
    made = {digest for result in fold.done.values() for digest in result.blobs.values()}
    assert made <= pinned(fold, Cancelled())
    assert not made <= pinned(fold)


def _is_of_a_round(task: TaskWanted) -> bool:
    return task.kind in ("train", "outer_step") and '"assemble"' not in task.params_json


def _blobs(fold: SoupFold, task: TaskWanted) -> list[Digest]:
    return list(fold.done[task.id].blobs.values()) if task.id in fold.done else []
