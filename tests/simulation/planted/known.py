"""Bugs planted by the simulator's own author. Each passes the unit tests; the checkers must find it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from coordinator.core import leases, liveness, machine, work
from coordinator.core.effects import Answer, Effect, NothingToDo
from coordinator.core.events import CheckpointCommitted, PlanAdvanced
from coordinator.core.pace import note_commit
from coordinator.core.requests import keep_answer
from coordinator.core.state import DurableState, Lease, Lineage, State, TrainLease
from expert_node import effects as do
from expert_node.machine import Fetching
from expert_node.machine import Machine as NodeMachine
from potluck.ids import Fence, NodeId
from tests.simulation.planted.bug import Bug, replaced


def _lapse_one(state: State, held: Iterable[Lease], reason: str, now_ms: int) -> list[Effect]:
    """Of several leases that are over, one a tick is noticed."""
    return _LAPSES(state, held, reason, now_ms)[:1]


def _hear_nothing(state: State, node: NodeId, now_ms: int) -> None:
    """A request for work is no sign of life: what a suspect is granted lapses at the next tick."""


def _keep_grants_only(
    durable: DurableState, node: NodeId, verb: str, request_id: int, mark: str, answer: Answer
) -> None:
    """A "nothing to do" is not kept: asked again, the same request may be granted."""
    if not isinstance(answer, NothingToDo):
        keep_answer(durable, node, verb, request_id, mark, answer)


def _lose_unless_fetching(self: NodeMachine, message: str) -> list[do.Effect]:
    """A lease that is lost while its inputs are on their way is trained on all the same."""
    return [] if isinstance(self.work, Fetching) else _LOSE(self, message)


def _pace_until_heard(state: State, lineage: Lineage, event: CheckpointCommitted) -> list[Effect]:
    """A commit's time is that of the last heartbeat before it: nobody hears those when the journal is replayed."""
    heard_ms = state.ephemeral.last_heard_ms.get(event.node, event.now_ms)
    own = state.durable.leases.get(event.fence)
    effects = _RELIEVE(state, lineage, event)
    if isinstance(own, TrainLease) and own.fence in lineage.leases and own.node == event.node:
        note_commit(state.durable, lineage, own, heard_ms)
    return effects


def _extend_the_first(state: State, node: NodeId, fence: Fence, now_ms: int) -> bool:
    """Only the older of two leases is kept up by its node's signs of life."""
    lease = state.durable.leases.get(fence)
    work = state.durable.holder(lease) if lease is not None else None
    if work is not None and next(iter(work.leases)) != fence:
        return False
    return _EXTEND(state, node, fence, now_ms)


def _deaf_while_paused(state: State, event: PlanAdvanced) -> list[Effect]:
    """What the plan of a paused run wants is not taken in."""
    run = state.durable.runs.get(event.run)
    return [] if run is not None and run.paused else _ADVANCED(state, event)


_LAPSES = liveness._lapses
_EXTEND = liveness._extend
_RELIEVE = work._relieve_others
_ADVANCED = machine.on_plan_advanced
_LOSE = NodeMachine._lose


def _bug(description: str, owner: object, name: str, value: object) -> Bug:
    return Bug(description=description, plant=lambda: replaced(owner, name, value))


BUGS: Mapping[str, Bug] = {
    "one-lapse-a-tick": _bug("Of leases that are over, one a tick lapses.", liveness, "_lapses", _lapse_one),
    "asking-is-no-sign-of-life": _bug(
        "A suspect that asks for work stays one, and loses what it is given.", leases, "hear", _hear_nothing
    ),
    "nothing-to-do-is-not-kept": _bug(
        "The same request for a lease, repeated, may be answered differently.", leases, "keep_answer", _keep_grants_only
    ),
    "pace-until-last-heard": _bug(
        "A node's pace is measured up to its last heartbeat instead of its commit.",
        work,
        "_relieve_others",
        _pace_until_heard,
    ),
    "only-the-first-is-renewed": _bug(
        "The second lease of a lineage or task is not extended by renewals.", liveness, "_extend", _extend_the_first
    ),
    "deaf-while-paused": _bug(
        "What a paused run's plan wants is dropped, and not asked for again.",
        machine,
        "on_plan_advanced",
        _deaf_while_paused,
    ),
    "lost-while-fetching": _bug(
        "A node begins to work under a lease that it was told is lost.", NodeMachine, "_lose", _lose_unless_fetching
    ),
}
