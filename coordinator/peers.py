"""Who may talk now, as every thread may ask it: the data plane checks each message on a thread of its own."""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.core.state import State
from potluck.ids import NodeId

MAY_PUT = frozenset({"admin", "node"})
"""Roles that may send blobs; routers and clients only fetch."""


@dataclass(frozen=True, kw_only=True)
class _Known:
    role_by_key: dict[str, str]
    revoked: frozenset[NodeId]


class AccessList:
    """A snapshot of the enrolled peers, replaced as a whole on the loop's thread."""

    def __init__(self) -> None:
        self._known = _Known(role_by_key={}, revoked=frozenset())

    def refresh(self, state: State) -> None:
        peers = state.durable.peers.values()
        self._known = _Known(
            role_by_key={peer.curve_public_key: peer.role for peer in peers if not peer.revoked},
            revoked=frozenset(peer.node for peer in peers if peer.revoked),
        )

    def is_revoked(self, node: NodeId) -> bool:
        return node in self._known.revoked

    def is_allowed(self, curve_public_key: str) -> bool:
        return curve_public_key in self._known.role_by_key

    def is_bounded(self, curve_public_key: str) -> bool:
        """Whether what it sends and nothing names yet counts against it; an administrator's text does not."""
        return self._known.role_by_key.get(curve_public_key) != "admin"

    def may_put(self, curve_public_key: str) -> bool:
        return self._known.role_by_key.get(curve_public_key) in MAY_PUT
