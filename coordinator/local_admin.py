"""The identity of the local command line: an enrolled peer like others, written into the coordinator's home."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from coordinator.core.state import State
from coordinator.enrol import DEFAULT_EXPIRES_MS, Enrolment, issue_tokens
from coordinator.home import Keys
from coordinator.runtime import Runtime
from potluck.errors import JoinError
from potluck.net.blobs.curve import new_curve_keys
from potluck.net.identity import Identity
from potluck.net.tls import new_key_and_csr


@dataclass(frozen=True, kw_only=True)
class Reach:
    """Where this machine's own programs dial the coordinator."""

    host: str
    control_port: int
    data_port: int
    insecure: bool


async def renew_administrator(runtime: Runtime, enrolment: Enrolment, keys: Keys, folder: Path, reach: Reach) -> None:
    """Writes the identity anew at each start: the ports may be others, and the certificate has its year before it."""
    identity = await _known(runtime, folder) or await _enrolled(runtime, enrolment, keys, reach)
    key_pem, csr_pem = new_key_and_csr(identity.node_id)
    certificate_pem = keys.authority.issue(csr_pem, node_id=identity.node_id, role="admin")
    renewed = replace(
        identity,
        key_pem=key_pem,
        certificate_pem=certificate_pem,
        host=reach.host,
        control_port=reach.control_port,
        data_port=reach.data_port,
        insecure=reach.insecure,
    )
    renewed.save(folder)


async def _known(runtime: Runtime, folder: Path) -> Identity | None:
    try:
        identity = Identity.load(folder)
    except JoinError:
        return None
    return identity if await runtime.read(lambda state: _may_administer(state, identity)) else None


async def _enrolled(runtime: Runtime, enrolment: Enrolment, keys: Keys, reach: Reach) -> Identity:
    curve = new_curve_keys()
    key_pem, csr_pem = new_key_and_csr("admin")
    (token,) = await issue_tokens(runtime, count=1, expires_ms=DEFAULT_EXPIRES_MS, role="admin")
    peer, certificate_pem = await enrolment.enrol(
        token=token, csr_pem=csr_pem, curve_public_key=curve.public, name="admin"
    )
    return Identity(
        node_id=peer.node,
        role="admin",
        key_pem=key_pem,
        certificate_pem=certificate_pem,
        ca_pem=keys.authority.ca_pem,
        curve_public=curve.public,
        curve_secret=curve.secret,
        curve_server_key=keys.curve.public,
        host=reach.host,
        control_port=reach.control_port,
        data_port=reach.data_port,
        insecure=reach.insecure,
    )


def _may_administer(state: State, identity: Identity) -> bool:
    peer = state.durable.peers.get(identity.node_id)
    return peer is not None and not peer.revoked and peer.curve_public_key == identity.curve_public
