"""Who is there: sessions, heartbeats, silence. Ephemeral throughout: a lapse it notices is asked into the journal."""

from __future__ import annotations

from collections.abc import Iterable

from coordinator.core.effects import Effect, Record, RenewAnswer, Reply, Revoke, SendDrain, Wake
from coordinator.core.events import (
    HeartbeatReceived,
    LeaseLapsed,
    LeaseRenewed,
    ServingReported,
    SessionClosed,
    SessionOpened,
    TimePassed,
)
from coordinator.core.spares import Openings
from coordinator.core.state import NO_FENCE, Lease, Lineage, Session, State
from potluck.ids import Fence, NodeId


def on_time_passed(state: State, event: TimePassed) -> list[Effect]:
    """Suspects the silent, lets leases run out, repeats wake-ups."""
    ephemeral = state.ephemeral
    for node, session in ephemeral.sessions.items():
        silent_ms = event.now_ms - ephemeral.last_heard_ms[node]
        if session.opened.role == "node" and silent_ms > patience_ms(state, node):
            ephemeral.suspects.setdefault(node, "silent")
    over = [fence for fence, deadline in ephemeral.deadlines_ms.items() if event.now_ms >= deadline]
    lapses = _lapses(state, _held_by_suspects(state), "suspect", event.now_ms)
    lapses += _lapses(state, (state.durable.leases[fence] for fence in over), "expired", event.now_ms)
    return [*lapses, *wake_idle(state)]


def on_session_opened(state: State, event: SessionOpened) -> list[Effect]:
    ephemeral = state.ephemeral
    before = ephemeral.sessions.get(event.node)
    same_process = before is not None and before.opened.boot_id == event.boot_id
    if not same_process:
        ephemeral.forget_node(event.node)
    num_open = before.num_open + 1 if before is not None and same_process else 1
    ephemeral.sessions[event.node] = Session(opened=event, num_open=num_open)
    hear(state, event.node, event.now_ms)
    for sent in (ephemeral.sent_serve, ephemeral.sent_routers, ephemeral.sent_views):
        sent.pop(event.node, None)
    if event.role == "router" and event.router_address:
        ephemeral.router_addresses[event.node] = event.router_address
    if event.role == "node" and state.durable.draining:
        return [SendDrain(node=event.node, reason="the coordinator is draining")]
    return []


def on_session_closed(state: State, event: SessionClosed) -> list[Effect]:
    """A loss makes the node a suspect at once; its work may be granted anew."""
    ephemeral = state.ephemeral
    session = ephemeral.sessions.get(event.node)
    if session is None or session.opened.boot_id != event.boot_id:
        return []
    session.num_open -= 1
    if session.num_open > 0:
        return []
    address = ephemeral.router_addresses.get(event.node)
    heard_ms = ephemeral.last_heard_ms[event.node]
    ephemeral.forget_node(event.node)
    # People ask since when a node is away.
    ephemeral.last_heard_ms[event.node] = heard_ms
    if address is not None and not event.orderly:
        # A router serves without its coordinator: nodes stay attached until it says goodbye.
        ephemeral.router_addresses[event.node] = address
    if session.opened.role != "node":
        return []
    if not event.orderly:
        ephemeral.suspects[event.node] = "its session broke"
    reason = "left" if event.orderly else "suspect"
    return _lapses(state, state.durable.leases_of(event.node), reason, event.now_ms)


def on_heartbeat_received(state: State, event: HeartbeatReceived) -> list[Effect]:
    _note_gap(state, event.node, event.now_ms)
    hear(state, event.node, event.now_ms)
    state.ephemeral.heartbeats[event.node] = event
    if event.fence == NO_FENCE or _extend(state, event.node, event.fence, event.now_ms):
        return []
    return _tell_former_holder(state, event.node, event.fence)


def on_lease_renewed(state: State, event: LeaseRenewed) -> list[Effect]:
    hear(state, event.node, event.now_ms)
    if _extend(state, event.node, event.fence, event.now_ms):
        return [Reply(answer=RenewAnswer(renewed=True, reason=""))]
    reason = "the lease has lapsed; a commit on the current head is still taken"
    return [Reply(answer=RenewAnswer(renewed=False, reason=reason))]


def on_serving_reported(state: State, event: ServingReported) -> list[Effect]:
    hear(state, event.node, event.now_ms)
    state.ephemeral.serving[event.node] = event.slots
    return []


def wake_idle(state: State) -> list[Effect]:
    """Calls nodes that were told there is nothing to do and could do something now, one for each thing to do."""
    ephemeral = state.ephemeral
    if state.durable.draining or not ephemeral.idle:
        return []
    latest_ms = ephemeral.now_ms - state.settings.wake_again_ms
    here = [(node, woken_ms) for node, woken_ms in ephemeral.idle.items() if node in ephemeral.sessions]
    asleep = [node for node, woken_ms in here if woken_ms <= latest_ms]
    if not asleep:
        return []
    openings = Openings(state.durable, asleep, ephemeral.now_ms, state.settings)
    effects: list[Effect] = []
    # Those that were called and have not asked yet are on their way to something: nobody else need run for it.
    for node in openings.takers(but=len(here) - len(asleep)):
        ephemeral.idle[node] = ephemeral.now_ms
        effects.append(Wake(node=node))
    return effects


def is_live(state: State, node: NodeId) -> bool:
    return node in state.ephemeral.sessions and not state.durable.is_revoked(node)


def patience_ms(state: State, node: NodeId) -> int:
    """Silence after which a node is suspected: less for one that was steady lately. Nobody is before a dozen beats."""
    settings = state.settings
    gap_ms = state.ephemeral.longest_gap_ms.get(node, settings.suspect_ms)
    if gap_ms > settings.steady_gap_ms:
        return settings.suspect_ms
    return min(settings.suspect_steady_ms, settings.suspect_ms)


def hear(state: State, node: NodeId, now_ms: int) -> None:
    """A sign of life clears a suspicion."""
    state.ephemeral.suspects.pop(node, None)
    if node in state.ephemeral.sessions:
        state.ephemeral.last_heard_ms[node] = now_ms


def _note_gap(state: State, node: NodeId, now_ms: int) -> None:
    ephemeral = state.ephemeral
    if node in ephemeral.sessions:
        faded_ms = ephemeral.longest_gap_ms.get(node, state.settings.suspect_ms) * 9 // 10
        ephemeral.longest_gap_ms[node] = max(faded_ms, now_ms - ephemeral.last_heard_ms[node])


def _extend(state: State, node: NodeId, fence: Fence, now_ms: int) -> bool:
    lease = state.durable.leases.get(fence)
    if lease is None or lease.node != node:
        return False
    state.ephemeral.deadlines_ms[fence] = now_ms + state.settings.lease_ms
    return True


def _held_by_suspects(state: State) -> list[Lease]:
    return [lease for lease in state.durable.leases.values() if lease.node in state.ephemeral.suspects]


def _lapses(state: State, leases: Iterable[Lease], reason: str, now_ms: int) -> list[Effect]:
    """Asks for each lapse once; the fact comes back as an event and ends the lease."""
    effects: list[Effect] = []
    for lease in leases:
        if lease.fence not in state.ephemeral.lapses_asked:
            state.ephemeral.lapses_asked[lease.fence] = None
            effects.append(Record(event=LeaseLapsed(now_ms=now_ms, fence=lease.fence, reason=reason)))
    return effects


def _tell_former_holder(state: State, node: NodeId, fence: Fence) -> list[Effect]:
    """Stops a node that works on under a dead lease, but only if its work has become useless."""
    lease = state.ephemeral.former.get(fence)
    if lease is None or lease.node != node:
        return []
    work = state.durable.holder(lease)
    if work is not None and work.runs:
        done = work.head_step >= work.wanted.known_steps if isinstance(work, Lineage) else work.result is not None
        if not done and not work.leases:
            return []
        reason = "done already" if done else "another node has taken over"
    else:
        reason = "no run wants this work any more"
    del state.ephemeral.former[fence]
    return [Revoke(node=node, fence=fence, reason=reason)]
