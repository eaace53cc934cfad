"""What a run waits for, in words: nodes that are away, memory that nobody has, nodes that are busy, work under way."""

from __future__ import annotations

from collections.abc import Iterator

from coordinator.core.policy import waiting
from coordinator.core.settings import CoreSettings
from coordinator.core.state import Lease, Lineage, PeerFacts, Run, State, Task, TrainLease
from coordinator.core.values import Running
from potluck.formatting import human_bytes, human_seconds
from potluck.ids import NodeId, short

MAX_NAMED = 3
"""Nodes or pieces of work that one line names; the rest are counted."""


def waits_of(state: State, run: Run) -> tuple[str, ...]:
    """Lines for people, the most general first; none for a run that has ended."""
    if not isinstance(run.status, Running):
        return ()
    if state.durable.draining:
        return ("the coordinator to be back: it is ending and gives out no work",)
    if run.paused:
        return ("`run resume`: it is paused",)
    return tuple(_lines(state, run))


def _lines(state: State, run: Run) -> Iterator[str]:
    yield from _missing_nodes(state)
    open_works = list(waiting(state.durable, run))
    for work in open_works[:MAX_NAMED]:
        if work.failures:
            yield _failure(state, work, state.settings)
    here = _workers(state)
    fitting = [work for work in open_works if _fits_somewhere(state, work, here)]
    too_large = [work for work in open_works if work not in fitting]
    if here and too_large:
        largest = max((work.wanted for work in too_large), key=lambda wanted: wanted.memory_bytes)
        most = human_bytes(max(_free_bytes(state, node) for node in here))
        yield f"{human_bytes(largest.memory_bytes)} of memory for {largest.label}: no node has more than {most} free"
    in_hand = _in_hand(state, run)
    if here and fitting and not in_hand:
        yield f"a node for {_named([work.wanted.label for work in fitting])}: {_who_is_busy(state, here)}"
    if in_hand or not open_works:
        yield _under_way(state, in_hand)


def _missing_nodes(state: State) -> Iterator[str]:
    """Says nothing while every node that ever joined, and was not put out, is there to work."""
    enrolled = [peer for peer in state.durable.peers.values() if peer.role == "node" and not peer.revoked]
    here = _workers(state)
    away = [f"{peer.name} {why}" for peer in enrolled if (why := _why_away(state, peer))]
    if not enrolled and not here:
        yield "a node: none has joined"
    elif away:
        yield f"nodes: {len(here)} of {len(here) + len(away)} are here; {_named(away)}"


def _why_away(state: State, peer: PeerFacts) -> str:
    ephemeral, node = state.ephemeral, peer.node
    if peer.drained:
        return "is drained"
    if node in ephemeral.sessions and node not in ephemeral.suspects:
        return ""
    heard_ms = ephemeral.last_heard_ms.get(node)
    if heard_ms is None:
        return "has not been seen since the coordinator started"
    return f"was last seen {human_seconds(max(0, ephemeral.now_ms - heard_ms) / 1000)} ago"


def _workers(state: State) -> list[NodeId]:
    """Nodes that could be given work now."""
    ephemeral = state.ephemeral
    return [
        node
        for node, session in ephemeral.sessions.items()
        if session.opened.role == "node"
        and node not in ephemeral.suspects
        and not state.durable.is_drained(node)
        and not state.durable.is_revoked(node)
    ]


def _fits_somewhere(state: State, work: Lineage | Task, here: list[NodeId]) -> bool:
    """A node that has not asked yet may be large enough."""
    return any(node not in state.durable.nodes or work.wanted.memory_bytes <= _free_bytes(state, node) for node in here)


def _free_bytes(state: State, node: NodeId) -> int:
    facts = state.durable.nodes.get(node)
    return facts.free_memory_bytes if facts is not None else 0


def _who_is_busy(state: State, here: list[NodeId]) -> str:
    leases = {node: state.durable.leases_of(node) for node in here}
    idle = [node for node in here if not leases[node]]
    if idle:
        return f"{_named([_name(state, node) for node in idle])} has not asked yet"
    held: dict[str, int] = {}
    for node in here:
        holder = state.durable.runs.get(leases[node][0].run)
        whose = f"run {holder.name}" if holder is not None else "another run"
        held[whose] = held.get(whose, 0) + 1
    busy = ", ".join(f"{count} with {whose}" for whose, count in held.items())
    return f"all are busy, {busy}"


def _failure(state: State, work: Lineage | Task, settings: CoreSettings) -> str:
    last = work.failures[-1]
    tries = f"{len(work.failures)} of {settings.max_failures} attempts"
    return f"another attempt at {work.wanted.label}: [{last.error_id}] on {_name(state, last.node)}, {tries}"


def _in_hand(state: State, run: Run) -> list[tuple[Lineage | Task, Lease]]:
    """The run's work that some node has."""
    works: list[Lineage | Task] = [state.durable.lineages[lineage] for lineage in run.lineages]
    works += [state.durable.tasks[task] for task in run.open_tasks]
    return [(work, state.durable.leases[next(iter(work.leases))]) for work in works if work.leases]


def _under_way(state: State, held: list[tuple[Lineage | Task, Lease]]) -> str:
    if not held:
        return "the coordinator to see what comes next"
    timed = [(_left_ms(state, work, lease), work, lease) for work, lease in held]
    timed.sort(key=lambda each: (each[0], _remaining_flops(each[1])), reverse=True)
    return _named([_in_work(state, work, lease, left_ms) for left_ms, work, lease in timed])


def _in_work(state: State, work: Lineage | Task, lease: Lease, left_ms: float) -> str:
    left = f", {human_seconds(left_ms / 1000)} left" if left_ms else ""
    return f"{work.wanted.label} (on {_name(state, lease.node)}{left})"


def _remaining_flops(work: Lineage | Task) -> float:
    return work.remaining_flops if isinstance(work, Lineage) else 0.0


def _left_ms(state: State, work: Lineage | Task, lease: Lease) -> float:
    """Until a lineage's last step, by its holder's pace in this lease or else in the ones before; 0 if not known."""
    if isinstance(work, Task) or not isinstance(lease, TrainLease):
        return 0.0
    beat = state.ephemeral.heartbeats.get(lease.node)
    step = beat.step if beat is not None and beat.fence == lease.fence else 0
    steps_left = work.wanted.total_steps - max(step, work.head_step)
    pace = state.durable.paces.get(lease.node, {}).get(work.wanted.role)
    if 0 <= lease.measured_step < step:
        return steps_left * (state.ephemeral.now_ms - lease.measured_ms) / (step - lease.measured_step)
    return steps_left * pace.of_step(work.wanted.flops_per_step) if pace is not None else 0.0


def _name(state: State, node: NodeId) -> str:
    peer = state.durable.peers.get(node)
    return peer.name if peer is not None else short(node)


def _named(items: list[str]) -> str:
    more = len(items) - MAX_NAMED
    return ", ".join(items[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
