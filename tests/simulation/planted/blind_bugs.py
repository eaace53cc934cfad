"""Five bugs, planted without sight of the checkers.

Each was chosen from the product's code, its unit and property tests and the design alone, and passes
all of those tests; what finds it, if anything does, was not written with it in mind.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from coordinator.core import leases, liveness, work
from coordinator.core.effects import AdvancePlan, Answer, Effect, NothingToDo, Revoke
from coordinator.core.events import CheckpointCommitted, TaskCompleted
from coordinator.core.pace import note_task
from coordinator.core.policy import Ask, ChosenLineage, NothingFits, choose
from coordinator.core.release import release
from coordinator.core.requests import keep_answer
from coordinator.core.state import DurableState, State, Task, TaskLease
from coordinator.core.values import TaskResult
from expert_node import effects as do
from expert_node import events as on
from expert_node.machine import MAX_OUTBOX, Machine
from potluck.ids import Digest, NodeId, digest_json
from tests.simulation.planted.bug import Bug, replaced


def _keeps_only_what_was_given(
    durable: DurableState, node: NodeId, verb: str, request_id: int, mark: str, answer: Answer
) -> None:
    # "Nothing was promised, so nothing need be kept: a retry may as well find the work that came since."
    if not isinstance(answer, NothingToDo):
        keep_answer(durable, node, verb, request_id, mark, answer)


def _yields_unless_already_ahead(state: State, event: CheckpointCommitted) -> bool:
    # "A node that has begun on its next steps would throw them away": but only the living know of heartbeats.
    beat = state.ephemeral.heartbeats.get(event.node)
    if beat is not None and beat.fence == event.fence and beat.activity == "training":
        return False
    facts = state.durable.nodes.get(event.node)
    ask = Ask(
        node=event.node,
        free_memory_bytes=facts.free_memory_bytes if facts else 0,
        held=frozenset(facts.held if facts else ()),
        now_ms=event.now_ms,
        keep=event.lineage,
    )
    choice = choose(state.durable, ask, state.settings)
    kept = isinstance(choice, ChosenLineage) and choice.lineage == event.lineage
    return not kept and not isinstance(choice, NothingFits)


def _advances_with_the_lease(state: State, task: Task, event: TaskCompleted) -> list[Effect]:
    durable = state.durable
    task.result = TaskResult(blobs=dict(event.blobs), figures=event.figures)
    task.result_digest = _result_digest(event)
    task.failures.clear()
    for run_id in task.runs:
        run = durable.runs[run_id]
        if run.open_tasks.pop(event.task, 0) is None:
            run.num_tasks_done += 1
    leases = [durable.leases[fence] for fence in task.leases]
    if not leases:
        return []  # "nothing to end": but the plans wait for the result all the same
    effects: list[Effect] = [AdvancePlan(run=run_id) for run_id in task.runs]
    for lease in leases:
        release(state, lease, event.now_ms)
        if lease.node != event.node:
            effects.insert(0, Revoke(node=lease.node, fence=lease.fence, reason="another node's result came first"))
        elif isinstance(lease, TaskLease) and lease.fence == event.fence:
            note_task(durable, task, event.now_ms - lease.granted_ms)
    return effects


def _result_digest(event: TaskCompleted) -> Digest:
    return digest_json({"blobs": dict(event.blobs), "figures": event.figures})


def _hears_without_forgiving(state: State, node: NodeId, now_ms: int) -> None:
    # "A new session clears a suspicion": a node that was silent and kept its stream never opens one.
    if node in state.ephemeral.sessions:
        state.ephemeral.last_heard_ms[node] = now_ms


@contextmanager
def _suspected_for_good() -> Iterator[None]:
    with (
        replaced(liveness, "hear", _hears_without_forgiving),
        replaced(leases, "hear", _hears_without_forgiving),
    ):
        yield


def _finished_under_the_lease_in_hand(self: Machine, event: on.CheckpointWritten | on.TaskFinished) -> list[do.Effect]:
    # "What an older lease brings is of no use": true of progress, not of finished work.
    finished = event.result if isinstance(event, on.TaskFinished) else event.commit
    if finished.fence != self.fence:
        return [do.DropEntry(entry=finished.entry, reason="the lease is gone")]
    self.outbox.append(finished)
    if isinstance(event, on.TaskFinished):
        return []
    ack = do.AckCheckpoint(fence=event.commit.fence, step=event.commit.end_step)
    if len(self.outbox) < MAX_OUTBOX:
        return [ack]
    self._held_acks.append(ack)
    return []


BUGS: dict[str, Bug] = {
    # Breaks "same request_id, same answer" (invariant 9): a late twin of the request can even take a lease
    # of which the node never hears.
    "nothing-is-not-kept": Bug(
        description="The answer that there is nothing to do is not kept, so the same request may get a lease later.",
        plant=lambda: replaced(leases, "keep_answer", _keeps_only_what_was_given),
    ),
    # Breaks "the durable events alone rebuild the durable state" (invariant 2): the replay ends a lease that
    # went on, and grants otherwise from there.
    "yield-looks-at-heartbeats": Bug(
        description="Whether a commit ends its lease for other work's sake depends on the node's last heartbeat.",
        plant=lambda: replaced(work, "_should_yield", _yields_unless_already_ahead),
    ),
    # Breaks "every result leads to another evaluation of the plan": if it was the last open one, the run
    # stands still until the coordinator restarts.
    "late-result-advances-nobody": Bug(
        description="A task's result advances no plan if the task's lease has ended and nobody holds a new one.",
        plant=lambda: replaced(work, "_take_result", _advances_with_the_lease),
    ),
    # Breaks "every heartbeat that carries its fence starts the term anew": leases of a node that is well end at
    # the next tick for ever, and two such nodes can take one task from each other without end.
    "once-suspect-always-suspect": Bug(
        description="A node that was silent too long stays a suspect until it opens a new session, whatever it says.",
        plant=_suspected_for_good,
    ),
    # Breaks "finished work is kept in the outbox until it is answered" and "its commit wins if its parent is still
    # the head": the node throws away what it finished, and all of it is done again.
    "finished-too-late-is-dropped": Bug(
        description="The node drops a commit or result that its worker finishes after the lease was lost.",
        plant=lambda: replaced(Machine, "_finished", _finished_under_the_lease_in_hand),
    ),
}
