"""Leases: granted on request, given back, lapsed. A fence grows with each grant and names the lease."""

from __future__ import annotations

from typing import assert_never

from coordinator.core.effects import (
    Answer,
    Denied,
    Done,
    Effect,
    NothingToDo,
    Record,
    Reply,
    TaskGranted,
    TrainGranted,
)
from coordinator.core.events import LeaseLapsed, LeaseRequested, LeaseReturned, WorkAsked
from coordinator.core.liveness import hear
from coordinator.core.policy import Ask, Choice, ChosenLineage, ChosenTask, NothingFits
from coordinator.core.release import release
from coordinator.core.requests import fingerprint, forget_requests, keep_answer, kept_answer, last_request_id
from coordinator.core.runs import end_run
from coordinator.core.spares import choose_or_help
from coordinator.core.state import (
    MAX_HOLDERS,
    DurableState,
    Kept,
    Lineage,
    NodeFacts,
    State,
    Task,
    TaskLease,
    TrainLease,
    WorkFailure,
)
from coordinator.core.values import Failed, Running
from potluck.ids import NO_DIGEST, Fence, LineageId, RunId, TaskId

MAX_PAST_BOOTS = 8
MEMORY_NEWS = 8
"""Free memory is never twice the same; a change by less than one part in so many is no news."""


def on_work_asked(state: State, event: WorkAsked) -> list[Effect]:
    """Answers "nothing" without a trace where the request changes nothing; else asks for it to be recorded."""
    asked, durable = event.asked, state.durable
    mark = fingerprint(asked.boot_id)
    kept = kept_answer(durable, asked.node, "lease", asked.request_id, mark)
    answer = kept or _denial(state, asked) or _answer_in_vain(state, asked, mark)
    if answer is not None:
        return [Reply(answer=answer)]
    choice = _choice(state, asked)
    if not isinstance(choice, NothingFits) or _is_news(durable, asked):
        return [Record(event=asked)]
    nothing = NothingToDo(reason=choice.reason)
    hear(state, asked.node, event.now_ms)
    state.ephemeral.in_vain[asked.node] = Kept(request_id=asked.request_id, fingerprint=mark, answer=nothing)
    _call_later(state, asked)
    return [Reply(answer=nothing)]


def on_lease_requested(state: State, event: LeaseRequested) -> list[Effect]:
    """Grants one lease per node: a node that asks anew holds nothing any more."""
    durable = state.durable
    mark = fingerprint(event.boot_id)
    kept = kept_answer(durable, event.node, "lease", event.request_id, mark)
    if kept is not None:
        return [Reply(answer=kept)]
    denied = _denial(state, event)
    if denied is not None:
        return [Reply(answer=denied)]
    _note_node(state, event)
    hear(state, event.node, event.now_ms)
    for lease in durable.leases_of(event.node):
        release(state, lease, event.now_ms)
    answer = _grant(state, event)
    keep_answer(durable, event.node, "lease", event.request_id, mark, answer)
    state.ephemeral.in_vain.pop(event.node, None)
    if isinstance(answer, NothingToDo):
        _call_later(state, event)
    else:
        state.ephemeral.idle.pop(event.node, None)
    return [Reply(answer=answer)]


def on_lease_returned(state: State, event: LeaseReturned) -> list[Effect]:
    """Frees the work; an error counts against it, and the third makes its runs fail."""
    durable = state.durable
    lease = durable.leases.get(event.fence)
    if lease is None or lease.node != event.node:
        return [Reply(answer=Done())]
    release(state, lease, event.now_ms)
    effects: list[Effect] = [Reply(answer=Done())]
    work = durable.holder(lease)
    if event.error_id and work is not None:
        failure = WorkFailure(fence=event.fence, node=event.node, error_id=event.error_id, message=event.message)
        work.failures.append(failure)
        durable.queues.refile(work)
        if len(work.failures) >= state.settings.max_failures:
            effects += _fail_runs_of(state, work, event.now_ms)
    return effects


def on_lease_lapsed(state: State, event: LeaseLapsed) -> list[Effect]:
    lease = state.durable.leases.get(event.fence)
    if lease is not None:
        release(state, lease, event.now_ms)
    return []


def _denial(state: State, event: LeaseRequested) -> Denied | None:
    durable = state.durable
    if durable.is_revoked(event.node):
        return Denied(error_id="refused.revoked", reason=f"node {event.node} was revoked")
    facts = durable.nodes.get(event.node)
    if facts is None:
        return None
    if event.boot_id in facts.past_boots:
        return Denied(error_id="refused.old-process", reason=f"node {event.node} has a newer process")
    last = last_request_id(durable, event.node, "lease")
    if event.boot_id == facts.boot_id and event.request_id < last:
        return _stale(event.request_id, last)
    return None


def _answer_in_vain(state: State, event: LeaseRequested, mark: str) -> Answer | None:
    """What this process said to a request that left no row: the same to the same one, no to an older one."""
    kept = state.ephemeral.in_vain.get(event.node)
    if kept is None or kept.fingerprint != mark or event.request_id > kept.request_id:
        return None
    if event.request_id == kept.request_id:
        return kept.answer
    return _stale(event.request_id, kept.request_id)


def _stale(request_id: int, last: int) -> Denied:
    return Denied(error_id="refused.stale-request", reason=f"request {request_id} is older than {last}")


def _is_news(durable: DurableState, event: LeaseRequested) -> bool:
    """Whether a request that gets nothing must be remembered: it ends a lease, or steers when the node is called."""
    facts = durable.nodes.get(event.node)
    if facts is None or durable.leases_of(event.node):
        return True
    if (facts.boot_id, facts.held, facts.host) != (event.boot_id, event.held, event.host):
        return True
    before, now = facts.free_memory_bytes, event.free_memory_bytes
    if abs(now - before) * MEMORY_NEWS > before:
        return True
    # Or the node would be called again and again for what it has no room for.
    queues = (durable.queues.of(run.run) for run in durable.at_work())
    return now < before and any(now < size <= before for queue in queues for size in queue.sizes())


def _call_later(state: State, event: LeaseRequested) -> None:
    state.ephemeral.idle[event.node] = event.now_ms - state.settings.wake_again_ms


def _note_node(state: State, event: LeaseRequested) -> None:
    durable = state.durable
    before = durable.nodes.get(event.node)
    past: tuple[str, ...] = ()
    if before is not None:
        past = before.past_boots
        if before.boot_id != event.boot_id:
            past = (*past, before.boot_id)[-MAX_PAST_BOOTS:]
            forget_requests(durable, event.node)
    durable.nodes[event.node] = NodeFacts(
        boot_id=event.boot_id,
        past_boots=past,
        free_memory_bytes=event.free_memory_bytes,
        held=event.held,
        host=event.host,
    )


def _choice(state: State, event: LeaseRequested) -> Choice:
    durable = state.durable
    if durable.draining:
        return NothingFits(reason="the coordinator is draining")
    if durable.is_drained(event.node):
        return NothingFits(reason="this node is drained; `potluck drain --undo` gives it work again")
    ask = Ask(
        node=event.node,
        free_memory_bytes=event.free_memory_bytes,
        held=frozenset(event.held),
        now_ms=event.now_ms,
        host=event.host,
    )
    return choose_or_help(durable, ask, state.settings)


def _grant(state: State, event: LeaseRequested) -> Answer:
    choice = _choice(state, event)
    match choice:
        case NothingFits(reason=reason):
            return NothingToDo(reason=reason)
        case ChosenLineage(run=run, lineage=lineage):
            return _grant_lineage(state, event, run, lineage)
        case ChosenTask(run=run, task=task):
            return _grant_task(state, event, run, task)
        case _:
            assert_never(choice)


def _next_fence(state: State, now_ms: int) -> Fence:
    fence = Fence(state.durable.next_fence)
    state.durable.next_fence += 1
    state.ephemeral.deadlines_ms[fence] = now_ms + state.settings.lease_ms
    return fence


def _grant_lineage(state: State, event: LeaseRequested, run: RunId, lineage_id: LineageId) -> TrainGranted:
    lineage = state.durable.lineages[lineage_id]
    assert len(lineage.leases) < MAX_HOLDERS, lineage_id
    fence = _next_fence(state, event.now_ms)
    target = lineage.wanted.known_steps
    lineage.leases[fence] = None
    state.durable.queues.refile(lineage)
    state.durable.leases[fence] = TrainLease(
        fence=fence,
        node=event.node,
        run=run,
        lineage=lineage_id,
        target_step=target,
        measured_ms=event.now_ms,
        measured_step=lineage.head_step,
        moved_ms=event.now_ms,
    )
    head = lineage.commits[-1] if lineage.commits else None
    return TrainGranted(
        fence=fence,
        term_ms=state.settings.lease_ms,
        lineage=lineage.wanted,
        head_step=lineage.head_step,
        head=lineage.head,
        weights=head.weights if head else NO_DIGEST,
        optimizer=head.optimizer if head else NO_DIGEST,
        target_step=target,
    )


def _grant_task(state: State, event: LeaseRequested, run: RunId, task_id: TaskId) -> TaskGranted:
    task = state.durable.tasks[task_id]
    assert len(task.leases) < MAX_HOLDERS, task_id
    assert task.result is None, task_id
    fence = _next_fence(state, event.now_ms)
    task.leases[fence] = None
    state.durable.queues.refile(task)
    state.durable.leases[fence] = TaskLease(
        fence=fence, node=event.node, run=run, task=task_id, granted_ms=event.now_ms
    )
    return TaskGranted(fence=fence, term_ms=state.settings.lease_ms, task=task.wanted)


def _fail_runs_of(state: State, work: Lineage | Task, now_ms: int) -> list[Effect]:
    last = work.failures[-1]
    message = f"{work.wanted.label}: {last.message} (attempt {len(work.failures)}, on node {last.node})"
    effects: list[Effect] = []
    for run_id in list(work.runs):
        run = state.durable.runs[run_id]
        if isinstance(run.status, Running):
            effects += end_run(state, run, Failed(error_id=last.error_id, message=message), now_ms)
    return effects
