"""Results come in: commits move a lineage's head by compare-and-set, tasks are done once."""

from __future__ import annotations

from coordinator.core.effects import (
    AdvancePlan,
    Answer,
    CommitAccepted,
    CommitRefused,
    Denied,
    Effect,
    NoteDivergence,
    Reply,
    Revoke,
    TaskAccepted,
    TaskRefused,
)
from coordinator.core.events import CheckpointCommitted, TaskCompleted
from coordinator.core.pace import note_commit, note_loss, note_task
from coordinator.core.pausing import is_at_rest
from coordinator.core.policy import Ask, ChosenLineage, NothingFits, choose, has_steps, weight
from coordinator.core.release import release
from coordinator.core.requests import fingerprint, keep_answer, kept_answer
from coordinator.core.state import CommitRecord, DurableState, Lineage, State, Task, TaskLease, TrainLease
from coordinator.core.values import TaskResult
from potluck.ids import NO_DIGEST, Digest, NodeId, digest_json


def on_checkpoint_committed(state: State, event: CheckpointCommitted) -> list[Effect]:
    """Accepts a link whose parent is the head, whatever the fence; a link that is there already, too."""
    durable = state.durable
    mark = fingerprint(event.lineage, event.parent, event.child, event.fence)
    kept = kept_answer(durable, event.node, "commit", event.request_id, mark)
    if kept is not None:
        return [Reply(answer=kept)]
    if durable.is_revoked(event.node):
        return [Reply(answer=_revoked(event.node))]
    effects: list[Effect] = []
    lineage = durable.lineages.get(event.lineage)
    answer: Answer
    if lineage is None or not lineage.runs:
        head_step, head = (lineage.head_step, lineage.head) if lineage else (0, NO_DIGEST)
        answer = CommitRefused(reason="no run wants this lineage any more", head_step=head_step, head=head)
    elif _is_in_chain(lineage, event):
        answer = _accepted(state, lineage, event)
    else:
        reason = _why_refused(lineage, event)
        if reason:
            answer = CommitRefused(reason=reason, head_step=lineage.head_step, head=lineage.head)
            _release_own(state, event)
        else:
            _append(lineage, event)
            durable.queues.refile(lineage)
            _charge(state, lineage, event)
            effects = _relieve_others(state, lineage, event)
            answer = _accepted(state, lineage, event)
            effects += [AdvancePlan(run=run) for run in lineage.runs]
    keep_answer(durable, event.node, "commit", event.request_id, mark, answer)
    return [Reply(answer=answer), *effects]


def on_task_completed(state: State, event: TaskCompleted) -> list[Effect]:
    """The first result stands; another one for the same task is noted and dropped."""
    durable = state.durable
    mark = fingerprint(event.task, event.fence, _result_digest(event))
    kept = kept_answer(durable, event.node, "complete", event.request_id, mark)
    if kept is not None:
        return [Reply(answer=kept)]
    if durable.is_revoked(event.node):
        return [Reply(answer=_revoked(event.node))]
    effects: list[Effect] = []
    task = durable.tasks.get(event.task)
    answer: Answer
    if task is None:
        answer = TaskRefused(reason="no run wants this task any more")
    elif task.result is None:
        answer = TaskAccepted()
        effects = _take_result(state, task, event)
    elif task.result_digest == _result_digest(event):
        answer = TaskAccepted()
    else:
        task.num_divergent += 1
        answer = TaskAccepted(divergent=True)
        effects = [NoteDivergence(task=event.task, node=event.node)]
    keep_answer(durable, event.node, "complete", event.request_id, mark, answer)
    return [Reply(answer=answer), *effects]


def _revoked(node: NodeId) -> Denied:
    return Denied(error_id="refused.revoked", reason=f"node {node} was revoked")


def _is_in_chain(lineage: Lineage, event: CheckpointCommitted) -> bool:
    """True for a repeated commit, or the equal one of another node with the same profile."""
    return any(
        commit.checkpoint == event.child and commit.parent == event.parent and commit.end_step == event.end_step
        for commit in reversed(lineage.commits)
    )


def _why_refused(lineage: Lineage, event: CheckpointCommitted) -> str:
    if event.parent != lineage.head or event.start_step != lineage.head_step:
        return f"the head has moved: it is at step {lineage.head_step}"
    if not event.start_step < event.end_step <= lineage.wanted.known_steps:
        return f"steps [{event.start_step}, {event.end_step}) do not end in ({lineage.head_step}, " + (
            f"{lineage.wanted.known_steps}]"
        )
    return ""


def _append(lineage: Lineage, event: CheckpointCommitted) -> None:
    lineage.failures.clear()
    lineage.commits.append(
        CommitRecord(
            start_step=event.start_step,
            end_step=event.end_step,
            parent=event.parent,
            checkpoint=event.child,
            weights=event.weights,
            optimizer=event.optimizer,
            node=event.node,
            fence=event.fence,
            figures=event.figures,
        )
    )


def _charge(state: State, lineage: Lineage, event: CheckpointCommitted) -> None:
    """Counts the training against the share of each run that wanted it."""
    flops = (event.end_step - event.start_step) * lineage.wanted.flops_per_step
    for run_id in lineage.runs:
        run = state.durable.runs[run_id]
        run.weighted_flops += flops / weight(run.priority)


def _relieve_others(state: State, lineage: Lineage, event: CheckpointCommitted) -> list[Effect]:
    """The first commit wins: whoever trains the same steps beside a holder of the lineage is told to stop."""
    durable = state.durable
    own = durable.leases.get(event.fence)
    if not isinstance(own, TrainLease) or event.fence not in lineage.leases or own.node != event.node:
        return []
    note_commit(durable, lineage, own, event.now_ms)
    effects: list[Effect] = []
    for other in [durable.leases[fence] for fence in lineage.leases if fence != event.fence]:
        assert isinstance(other, TrainLease), other
        note_loss(durable, lineage, other, num_steps=event.end_step - event.start_step, now_ms=event.now_ms)
        release(state, other, event.now_ms)
        effects.append(Revoke(node=other.node, fence=other.fence, reason="another node's commit came first"))
    return effects


def _accepted(state: State, lineage: Lineage, event: CheckpointCommitted) -> CommitAccepted:
    """The yes, and whether the node's lease ends with it: `yield_lease` says to ask for work anew."""
    over = _lease_is_over(state, lineage, event)
    if over:
        _release_own(state, event)
    return CommitAccepted(head_step=lineage.head_step, head=lineage.head, yield_lease=over)


def _lease_is_over(state: State, lineage: Lineage, event: CheckpointCommitted) -> bool:
    lease = state.durable.leases.get(event.fence)
    own = isinstance(lease, TrainLease) and lease.node == event.node and lease.lineage == event.lineage
    behind = event.end_step < lineage.head_step
    if not own or behind or not has_steps(lineage) or _is_called_off(state.durable, lineage, event.node):
        return True
    assert isinstance(lease, TrainLease)
    return event.end_step >= lease.target_step or _should_yield(state, event)


def _is_called_off(durable: DurableState, lineage: Lineage, node: NodeId) -> bool:
    return durable.draining or durable.is_drained(node) or is_at_rest(durable, lineage)


def _should_yield(state: State, event: CheckpointCommitted) -> bool:
    """Asks the policy what this node would get if it asked now; yields if that is something else."""
    facts = state.durable.nodes.get(event.node)
    ask = Ask(
        node=event.node,
        free_memory_bytes=facts.free_memory_bytes if facts else 0,
        held=frozenset(facts.held if facts else ()),
        now_ms=event.now_ms,
        keep=event.lineage,
        host=facts.host if facts else "",
    )
    choice = choose(state.durable, ask, state.settings)
    kept = isinstance(choice, ChosenLineage) and choice.lineage == event.lineage
    return not kept and not isinstance(choice, NothingFits)


def _release_own(state: State, event: CheckpointCommitted) -> None:
    lease = state.durable.leases.get(event.fence)
    if isinstance(lease, TrainLease) and lease.node == event.node and lease.lineage == event.lineage:
        release(state, lease, event.now_ms)


def _take_result(state: State, task: Task, event: TaskCompleted) -> list[Effect]:
    durable = state.durable
    task.result = TaskResult(blobs=dict(event.blobs), figures=event.figures)
    task.result_digest = _result_digest(event)
    task.failures.clear()
    effects: list[Effect] = []
    for lease in [durable.leases[fence] for fence in task.leases]:
        release(state, lease, event.now_ms)
        if lease.node != event.node:
            effects.append(Revoke(node=lease.node, fence=lease.fence, reason="another node's result came first"))
        elif isinstance(lease, TaskLease) and lease.fence == event.fence:
            note_task(durable, task, event.now_ms - lease.granted_ms)
    for run_id in task.runs:
        run = durable.runs[run_id]
        if run.open_tasks.pop(event.task, 0) is None:
            run.num_tasks_done += 1
            durable.queues.leave(run_id, task)
        effects.append(AdvancePlan(run=run_id))
    return effects


def _result_digest(event: TaskCompleted) -> Digest:
    return digest_json({"blobs": dict(event.blobs), "figures": event.figures})
