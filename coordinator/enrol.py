"""Letting people in: invitations with single-use tokens, and EnrolService, which spends them on certificates."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import grpc.aio

from coordinator import wire
from coordinator.core.effects import Done
from coordinator.core.events import InviteIssued, PeerEnrolled
from coordinator.core.state import Invite, PeerFacts, State
from coordinator.peers import AccessList
from coordinator.runtime import Runtime
from potluck.crashpoints import crash_here
from potluck.errors import JoinError, UsageError
from potluck.ids import Digest, NodeId, digest_bytes
from potluck.net.identity import ROLES
from potluck.net.join import new_token
from potluck.net.tls import CertificateAuthority
from potluck.net.version import check_version
from potluck.telemetry import logger
from potluck.v1 import node_pb2, node_pb2_grpc

MAX_INVITES = 1000
"""At once."""
MAX_EXPIRES_MS = 366 * 86_400_000
DEFAULT_EXPIRES_MS = 86_400_000
MAX_NAME = 32
_Z85_KEY = re.compile(r"[0-9A-Za-z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
MID_ENROL = "coordinator.mid-enrol"
_ASK_AGAIN = "ask for a new join string: potluck invite"

log = logger("coordinator.enrol")


async def issue_tokens(runtime: Runtime, *, count: int, expires_ms: int, role: str) -> list[str]:
    """New single-use tokens; the journal keeps their digests only.

    Raises:
        UsageError: ``usage.bad-request``.
    """
    for name, value, ok, allowed in (
        ("count", count, 1 <= count <= MAX_INVITES, f"1 to {MAX_INVITES}"),
        ("expires_ms", expires_ms, 1 <= expires_ms <= MAX_EXPIRES_MS, "more than 0, at most a year"),
        ("role", role, role in ROLES, ", ".join(ROLES)),
    ):
        if not ok:
            raise UsageError("usage.bad-request", f"{name} = {value!r}", f"allowed: {allowed}")
    tokens = [new_token() for _ in range(count)]
    expires_unix_ms = runtime.unix_ms() + expires_ms
    events = (
        InviteIssued(
            now_ms=runtime.now_ms(), token_digest=token_digest(token), role=role, expires_unix_ms=expires_unix_ms
        )
        for token in tokens
    )
    await asyncio.gather(*(runtime.submit(event) for event in events))
    log.fact("invited", count=count, role=role)
    return tokens


def token_digest(token: str) -> Digest:
    return digest_bytes(token.encode())


class Enrolment:
    """Spends tokens. One at a time, for each takes the next number for its id."""

    def __init__(self, *, runtime: Runtime, authority: CertificateAuthority, access: AccessList) -> None:
        self._runtime = runtime
        self._authority = authority
        self._access = access
        self._one = asyncio.Lock()

    async def enrol(
        self, *, token: str, csr_pem: bytes, curve_public_key: str, name: str, wanted_role: str = ""
    ) -> tuple[PeerEnrolled, bytes]:
        """Spends a token: who the peer is from now on, and its certificate.

        Asked again with the key that spent it, it gives the same peer a certificate again: the first answer may
        be lost, with the joiner or with us.

        Args:
            wanted_role: what the joiner is; an invitation for another role stays unspent. Empty: any.

        Raises:
            JoinError: ``join.unknown-token``, ``join.token-spent``, ``join.token-expired``, ``join.wrong-role``,
                ``join.bad-request``.
        """
        if not _Z85_KEY.fullmatch(curve_public_key):
            raise JoinError("join.bad-request", "the data-plane key is not 40 characters of Z85", "use equal versions")
        digest = token_digest(token)
        async with self._one:
            invite, number, owner = await self._runtime.read(lambda state: _look(state, digest, curve_public_key))
            again = owner is not None and invite is not None and invite.spent_by == owner.node and not owner.revoked
            role = self._check(invite, wanted_role, again=again)
            if owner is not None and not again:
                raise JoinError("join.bad-request", "the data-plane key belongs to another peer", "join with a new key")
            node = owner.node if owner is not None else NodeId(f"{role[0]}{number}-{_slug(name)}")
            certificate_pem = self._authority.issue(csr_pem, node_id=node, role=role)
            event = PeerEnrolled(
                now_ms=self._runtime.now_ms(),
                node=node,
                role=role,
                name=_shown(name) or node,
                curve_public_key=curve_public_key,
                token_digest=digest,
            )
            if not again:
                answer = await self._runtime.submit(event)
                if not isinstance(answer, Done):
                    raise wire.refusal(answer)
                await self._runtime.read(self._access.refresh)
            crash_here(MID_ENROL)
        log.fact("enrolled", node=node, role=role, again=again)
        return event, certificate_pem

    def _check(self, invite: Invite | None, wanted_role: str, *, again: bool) -> str:
        """The role an invitation gives, if it still holds. A refused token leaves no trace in the journal."""
        if invite is None:
            raise JoinError("join.unknown-token", "no invitation has this token", _ASK_AGAIN)
        if invite.spent_by is not None and not again:
            raise JoinError("join.token-spent", "this invitation has been used", _ASK_AGAIN)
        if self._runtime.unix_ms() > invite.expires_unix_ms:
            raise JoinError("join.token-expired", "this invitation has expired", _ASK_AGAIN)
        if wanted_role and wanted_role != invite.role:
            what = f"this invitation is for a {invite.role}, not a {wanted_role}; it has not been used up"
            raise JoinError("join.wrong-role", what, f"ask for another: potluck invite --role {_shown(wanted_role)}")
        return invite.role


class EnrolService(node_pb2_grpc.EnrolServiceServicer):
    def __init__(self, *, enrolment: Enrolment, ca_pem: bytes, curve_server_key: str, ports: tuple[int, int]) -> None:
        """`ports`: control and data."""
        self._enrolment = enrolment
        self._ca_pem = ca_pem
        self._curve_server_key = curve_server_key
        self._control_port, self._data_port = ports

    async def Enrol(
        self, request: node_pb2.EnrolRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> node_pb2.EnrolResponse:
        check_version(request.hello.version)
        peer, certificate_pem = await self._enrolment.enrol(
            token=request.token,
            csr_pem=request.csr_pem,
            curve_public_key=request.curve_public_key,
            name=request.name or request.hello.hostname,
            wanted_role=request.wanted_role,
        )
        return node_pb2.EnrolResponse(
            node_id=peer.node,
            role=peer.role,
            certificate_pem=certificate_pem,
            ca_pem=self._ca_pem,
            curve_server_key=self._curve_server_key,
            control_port=self._control_port,
            data_port=self._data_port,
        )


def _look(state: State, digest: Digest, curve_public_key: str) -> tuple[Invite | None, int, PeerFacts | None]:
    """The invitation, the number of the next peer, and whose key it is, if it is somebody's already."""
    peers = state.durable.peers
    owner = next((peer for peer in peers.values() if peer.curve_public_key == curve_public_key), None)
    return state.durable.invites.get(digest), len(peers) + 1, owner


def _shown(name: str) -> str:
    """A wished name as it may stand in a terminal."""
    return "".join(letter for letter in name if letter.isprintable())[:MAX_NAME].strip()


def _slug(name: str) -> str:
    """Letters, digits and dashes of a wished name: it goes into certificates, file names and terminals."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:MAX_NAME].strip("-") or "unnamed"
