"""Bugs planted by the simulator's own author. Each passes the unit tests; the checkers must find it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from coordinator.core import leases, liveness
from coordinator.core.effects import Answer, Effect, NothingToDo
from coordinator.core.requests import keep_answer
from coordinator.core.state import DurableState, Lease, State
from expert_node import effects as do
from expert_node.machine import Fetching
from expert_node.machine import Machine as NodeMachine
from potluck.ids import NodeId
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


_LAPSES = liveness._lapses
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
    "lost-while-fetching": _bug(
        "A node begins to work under a lease that it was told is lost.", NodeMachine, "_lose", _lose_unless_fetching
    ),
}
