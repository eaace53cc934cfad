"""Runs: submitted, advanced by their plan, cancelled, ended. Equal lineages and tasks are shared by id."""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

from coordinator.core.effects import AdvancePlan, Answer, Denied, Done, Effect, Reply, Revoke, RunAccepted
from coordinator.core.events import PlanAdvanced, RunCancelled, RunSubmitted
from coordinator.core.release import release
from coordinator.core.state import (
    Cancelled,
    CommitRecord,
    Lineage,
    LineageLedger,
    Run,
    RunStatus,
    State,
    Task,
)
from coordinator.core.values import Failed, Finished, LineageWanted, Running, TaskWanted
from potluck.config import to_mapping
from potluck.errors import InvariantViolation
from potluck.ids import NO_DIGEST, Digest, LineageId, RunId, TaskId, digest_json, short


def on_run_submitted(state: State, event: RunSubmitted) -> list[Effect]:
    """Starts a run, or resumes the one with this spec: a run is never forked."""
    runs = state.durable.runs
    run = runs.get(event.run)
    if run is not None and run.request_id == event.request_id:
        return [Reply(answer=RunAccepted(run=run.run, state=run.accepted_as))]
    if run is None:
        run = Run(
            run=event.run,
            name=event.name,
            priority=event.priority,
            spec_json=event.spec_json,
            corpus_json=event.corpus_json,
            created_unix_ms=event.unix_ms,
            request_id=event.request_id,
            accepted_as="started",
            weighted_flops=min((other.weighted_flops for other in state.durable.running()), default=0.0),
        )
        runs[event.run] = run
    else:
        run.request_id, run.name, run.priority = event.request_id, event.name, event.priority
        run.paused = False
        run.accepted_as = "already-finished" if isinstance(run.status, Finished) else "resumed"
    reply = Reply(answer=RunAccepted(run=run.run, state=run.accepted_as))
    if isinstance(run.status, Finished):
        return [reply]
    if not isinstance(run.status, Running):
        _take_up_again(state, run)
    return [reply, AdvancePlan(run=run.run)]


def on_run_cancelled(state: State, event: RunCancelled) -> list[Effect]:
    run = state.durable.runs.get(event.run)
    answer: Answer = Done()
    if run is None:
        return [Reply(answer=Denied(error_id="refused.no-such-run", reason=f"no run {short(event.run)}"))]
    if isinstance(run.status, Finished | Failed):
        answer = Denied(error_id="refused.run-ended", reason=f"run {short(event.run)} has ended already")
    if not isinstance(run.status, Running):
        return [Reply(answer=answer)]
    return [Reply(answer=answer), *end_run(state, run, Cancelled(), event.now_ms)]


def on_plan_advanced(state: State, event: PlanAdvanced) -> list[Effect]:
    """Takes over what the plan wants, in full: open work it no longer names is dropped.

    Done tasks may be left out; their results stay until the run ends.

    Raises:
        InvariantViolation: ``bug.segment-changed``; the state is then as before.
    """
    run = state.durable.runs.get(event.run)
    if run is None or not isinstance(run.status, Running):
        return []
    for wanted in event.lineages:
        _check_extension(state.durable.lineages.get(wanted.id), wanted)
    run.stage = event.stage
    run.plan_digest = plan_digest(event)
    if not isinstance(event.outcome, Failed):  # a failure says nothing of the mixtures there were
        run.steering = event.steering
    _publish(run, event)
    match event.outcome:
        case Running():
            found = _finds_results(state, run, event)
            effects = _want_lineages(state, run, event) + _want_tasks(state, run, event)
            effects += [AdvancePlan(run=run.run)] if found else []
        case Finished() | Failed():
            effects = end_run(state, run, event.outcome, event.now_ms)
        case _:
            assert_never(event.outcome)
    return effects


def plan_digest(event: PlanAdvanced) -> Digest:
    """Of all that a plan wants, whenever it said so: an equal digest again is no news."""
    outcome = [type(event.outcome).__name__, to_mapping(event.outcome)]  # not its repr: a row forgets the order of keys
    return digest_json({**to_mapping(event), "outcome": outcome, "now_ms": 0})


def end_run(state: State, run: Run, status: RunStatus, now_ms: int) -> list[Effect]:
    """Ends a run: what no other run wants is taken from the nodes.

    A finished run collapses into figures, publications and its ledger; a cancelled or failed one
    keeps its results, for it may be taken up again.
    """
    assert not isinstance(status, Running)
    run.status = status
    effects: list[Effect] = []
    for lineage_id in list(run.lineages):
        effects += _unwant_lineage(state, run, lineage_id, now_ms)
    for task_id in list(run.open_tasks):
        effects += _unwant_open_task(state, run, task_id, now_ms)
    if isinstance(status, Finished):
        _collapse(state, run)
    return effects


def _take_up_again(state: State, run: Run) -> None:
    run.status = Running()
    run.plan_digest = NO_DIGEST  # its open tasks were dropped: what the plan wants is news, even if it is the same
    for lineage_id in run.lineages:
        lineage = state.durable.lineages[lineage_id]
        lineage.runs[run.run] = None
        lineage.failures.clear()
        state.durable.queues.refile(lineage)


def _publish(run: Run, event: PlanAdvanced) -> None:
    published = {publication.slot: publication for publication in event.publish}
    if published != run.published or event.serving_json != run.serving_json:
        run.published = published
        run.serving_json = event.serving_json
        run.view_version += 1


# --- wanting ---------------------------------------------------------------------------------


def _check_extension(lineage: Lineage | None, wanted: LineageWanted) -> None:
    """Of the known and the wanted segments one list must begin with the other."""
    if lineage is None:
        return
    common = min(len(lineage.wanted.segments_json), len(wanted.segments_json))
    same = lineage.wanted.segments_json[:common] == wanted.segments_json[:common]
    if not same or lineage.wanted.recipe_json != wanted.recipe_json:
        raise InvariantViolation(
            "bug.segment-changed",
            f"{wanted.label}: lineage {short(wanted.id)} is asked for with other data than it has",
            "report this; the plan must only append",
        )


def _finds_results(state: State, run: Run, event: PlanAdvanced) -> bool:
    """True if something that is new to this run was done already, for another one: its plan can go on at once."""
    tasks = [state.durable.tasks.get(wanted.id) for wanted in event.tasks if wanted.id not in run.tasks]
    lineages = [state.durable.lineages.get(wanted.id) for wanted in event.lineages if wanted.id not in run.lineages]
    return any(task and task.result for task in tasks) or any(lineage and lineage.commits for lineage in lineages)


def _want_lineages(state: State, run: Run, event: PlanAdvanced) -> list[Effect]:
    lineages = state.durable.lineages
    for wanted in event.lineages:
        lineage = lineages.get(wanted.id)
        if lineage is None:
            lineage = lineages[wanted.id] = Lineage(wanted=wanted, ready_ms=event.now_ms)
        elif len(wanted.segments_json) >= len(lineage.wanted.segments_json):
            if lineage.head_step >= lineage.wanted.known_steps:
                lineage.ready_ms = event.now_ms
            lineage.wanted = wanted
        lineage.runs[run.run] = None
        run.lineages[wanted.id] = None
        state.durable.queues.enter(run.run, lineage)
    named = {wanted.id for wanted in event.lineages}
    effects: list[Effect] = []
    for lineage_id in run.lineages:
        if lineage_id not in named:
            effects += _unwant_lineage(state, run, lineage_id, event.now_ms)
    return effects


def _want_tasks(state: State, run: Run, event: PlanAdvanced) -> list[Effect]:
    tasks = state.durable.tasks
    for wanted in event.tasks:
        task = tasks.get(wanted.id)
        if task is None:
            task = tasks[wanted.id] = Task(wanted=wanted, ready_ms=event.now_ms)
        elif wanted.rank != task.wanted.rank and task.result is None:
            task.wanted = _with_rank(task, wanted, run.run)
            state.durable.queues.refile(task)
        task.runs[run.run] = None
        if wanted.id not in run.tasks and task.result is not None:
            run.num_tasks_done += 1
        run.tasks[wanted.id] = None
        if task.result is None:
            run.open_tasks[wanted.id] = None
            state.durable.queues.enter(run.run, task)
    named = {wanted.id for wanted in event.tasks}
    effects: list[Effect] = []
    for task_id in list(run.open_tasks):
        if task_id not in named:
            effects += _unwant_open_task(state, run, task_id, event.now_ms)
    return effects


def _with_rank(task: Task, wanted: TaskWanted, run: RunId) -> TaskWanted:
    """The wish of the only run counts; of several, the most urgent one."""
    alone = set(task.runs) <= {run}
    return replace(task.wanted, rank=wanted.rank if alone else min(task.wanted.rank, wanted.rank))


def _unwant_lineage(state: State, run: Run, lineage_id: LineageId, now_ms: int) -> list[Effect]:
    lineage = state.durable.lineages[lineage_id]
    lineage.runs.pop(run.run, None)
    return [] if lineage.runs else _take_back(state, lineage, now_ms)


def _unwant_open_task(state: State, run: Run, task_id: TaskId, now_ms: int) -> list[Effect]:
    task = state.durable.tasks[task_id]
    del run.open_tasks[task_id]
    run.tasks.pop(task_id, None)
    task.runs.pop(run.run, None)
    state.durable.queues.leave(run.run, task)
    if task.runs:
        return []
    effects = _take_back(state, task, now_ms)
    del state.durable.tasks[task_id]
    return effects


def _take_back(state: State, work: Lineage | Task, now_ms: int) -> list[Effect]:
    leases = [state.durable.leases[fence] for fence in work.leases]
    for lease in leases:
        release(state, lease, now_ms)
    return [Revoke(node=one.node, fence=one.fence, reason="no run wants this work any more") for one in leases]


# --- collapsing ------------------------------------------------------------------------------


def _collapse(state: State, run: Run) -> None:
    """Keeps what people ask of a finished run; drops what nobody else needs."""
    durable = state.durable
    run.ledger = tuple(_ledger_of(durable.lineages[lineage_id]) for lineage_id in run.lineages)
    others = [other for other in durable.runs.values() if other.run != run.run]
    for lineage_id in run.lineages:
        durable.queues.leave(run.run, durable.lineages[lineage_id])
        if not any(lineage_id in other.lineages for other in others):
            del durable.lineages[lineage_id]
    for task_id in run.tasks:
        task = durable.tasks[task_id]
        task.runs.pop(run.run, None)
        if not task.runs:
            del durable.tasks[task_id]
    run.lineages.clear()
    run.tasks.clear()
    durable.whole_ledgers[run.run] = None
    _fold_ledgers(state)


def _fold_ledgers(state: State) -> None:
    """Folds the oldest ledgers until what is left is within bounds."""
    durable = state.durable
    whole = [durable.runs[run_id] for run_id in durable.whole_ledgers]
    num_commits = sum(len(line.commits) for run in whole for line in run.ledger)
    for oldest in whole[:-1]:
        if num_commits <= state.settings.ledger_commits:
            return
        num_commits -= sum(len(line.commits) for line in oldest.ledger)
        del durable.whole_ledgers[oldest.run]
        published = {(one.lineage, one.step) for one in oldest.published.values()}
        oldest.ledger = tuple(_folded(line, published) for line in oldest.ledger)


def _ledger_of(lineage: Lineage) -> LineageLedger:
    return LineageLedger(
        lineage=lineage.wanted.id,
        label=lineage.wanted.label,
        role=lineage.wanted.role,
        total_steps=lineage.wanted.total_steps,
        commits=tuple(replace(commit, figures={}) for commit in lineage.commits),
    )


def _folded(line: LineageLedger, published: set[tuple[LineageId, int]]) -> LineageLedger:
    """The same chain in longer links, which end where something was published and at the head."""
    links: list[CommitRecord] = []
    step, parent = 0, NO_DIGEST
    for commit in line.commits:
        if commit is line.commits[-1] or (line.lineage, commit.end_step) in published:
            links.append(replace(commit, start_step=step, parent=parent))
            step, parent = commit.end_step, commit.checkpoint
    return replace(line, commits=tuple(links))
