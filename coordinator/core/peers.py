"""Who may take part: invitations, enrolments, revocations."""

from __future__ import annotations

from dataclasses import replace

from coordinator.core.effects import Answer, Denied, Done, Effect, Reply, Revoke
from coordinator.core.events import InviteIssued, PeerEnrolled, PeerRevoked
from coordinator.core.release import release
from coordinator.core.state import Invite, PeerFacts, State


def on_invite_issued(state: State, event: InviteIssued) -> list[Effect]:
    """Said again, it leaves a token that was spent since as it is."""
    invite = Invite(role=event.role, expires_unix_ms=event.expires_unix_ms, spent_by=None)
    state.durable.invites.setdefault(event.token_digest, invite)
    return [Reply(answer=Done())]


def on_peer_enrolled(state: State, event: PeerEnrolled) -> list[Effect]:
    """Spends the token, once: said again, it changes nothing of the peer. The shell has looked at the expiry before."""
    return [Reply(answer=_enrol(state, event))]


def on_peer_revoked(state: State, event: PeerRevoked) -> list[Effect]:
    """From here on nothing the peer says is believed; what it held is granted anew."""
    durable = state.durable
    peer = durable.peers.get(event.node)
    if peer is None:
        return [Reply(answer=Denied(error_id="refused.no-such-node", reason=f"no node {event.node} has enrolled"))]
    durable.peers[event.node] = replace(peer, revoked=True)
    durable.nodes.pop(event.node, None)
    durable.requests.pop(event.node, None)
    durable.paces.pop(event.node, None)
    effects: list[Effect] = [Reply(answer=Done())]
    for lease in durable.leases_of(event.node):
        release(state, lease, event.now_ms)
        effects.append(Revoke(node=event.node, fence=lease.fence, reason="this node was revoked"))
    state.ephemeral.forget_node(event.node)
    return effects


def _enrol(state: State, event: PeerEnrolled) -> Answer:
    durable = state.durable
    invite = durable.invites.get(event.token_digest)
    if invite is None:
        return Denied(error_id="join.unknown-token", reason="no invitation has this token")
    if invite.role != event.role:
        return Denied(error_id="join.wrong-role", reason=f"the invitation is for a {invite.role}, not a {event.role}")
    if invite.spent_by is not None and invite.spent_by != event.node:
        return Denied(error_id="join.token-spent", reason="this invitation has been used")
    before = durable.peers.get(event.node)
    if before is not None and before.revoked:
        return Denied(error_id="refused.revoked", reason=f"node {event.node} was revoked")
    if before is not None and invite.spent_by == event.node:
        return Done()
    durable.invites[event.token_digest] = replace(invite, spent_by=event.node)
    durable.peers[event.node] = PeerFacts(
        node=event.node,
        role=event.role,
        name=event.name,
        curve_public_key=event.curve_public_key,
        revoked=False,
    )
    return Done()
