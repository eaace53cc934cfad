"""Finding a coordinator that has moved to another address.

Certificates name who somebody is, never where: a coordinator restored elsewhere has the same authority, so an
identity that was enrolled once is good there too, and only the address in it must change.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import grpc

from potluck.errors import JoinError, NotReachable, PotluckError, UsageError
from potluck.net.address import split_host_port
from potluck.net.channels import open_sync_channel
from potluck.net.diagnose import diagnose_sync
from potluck.net.guard import error_from_rpc
from potluck.net.identity import Identity
from potluck.telemetry import logger
from potluck.v1 import node_pb2, node_pb2_grpc

GREET_TIMEOUT_S = 10.0

log = logger("potluck.net.moving")


def greet(identity: Identity, *, target: str | None = None) -> node_pb2.GreetResponse:
    """Asks the coordinator who it is and who we are there; changes nothing.

    Raises:
        NotReachable, JoinError: why it could not be asked.
    """
    try:
        with open_sync_channel(identity, target=target) as channel:
            answer: node_pb2.GreetResponse = node_pb2_grpc.NodeServiceStub(channel).Greet(
                node_pb2.GreetRequest(), timeout=GREET_TIMEOUT_S
            )
            return answer
    except grpc.RpcError as rpc:
        error = error_from_rpc(rpc)
        if isinstance(error, NotReachable):
            error = diagnose_sync(identity, target=target)
        raise error from None


def with_ports_of_now(identity: Identity, folder: Path) -> Identity:
    """The identity with the data port that its coordinator has now, kept in `folder` if it is another.

    A coordinator that was started anew may have other ports than when the identity was made. One that does not
    answer changes nothing: the daemon goes on trying.
    """
    try:
        data_port = greet(identity).data_port
    except PotluckError as error:
        log.fact("not-greeted", coordinator=identity.control_target, error_id=error.error_id)
        return identity
    if data_port == identity.data_port:
        return identity
    log.fact("data-port-changed", before=identity.data_port, now=data_port)
    found = replace(identity, data_port=data_port)
    found.save(folder)
    return found


def find_again(identity: Identity, target: str) -> Identity:
    """The identity with the address of its coordinator, which listens at `target` (its control port) now.

    Raises:
        UsageError: ``usage.bad-address``.
        JoinError: ``join.unknown-here``: its journal has never let this identity in, for a backup older than
            that was restored; ``join.other-authority``: another coordinator listens there; and as `greet` does.
        NotReachable: nobody answers there.
    """
    try:
        host, port = split_host_port(target)
    except ValueError:
        host, port = "", 0
    if not host or not 0 < port < 65536:
        raise UsageError("usage.bad-address", f"{target!r} is not HOST:PORT", "give the coordinator's base port")
    answer = greet(identity, target=target)
    if not answer.known:
        raise JoinError(
            "join.unknown-here",
            f"the coordinator at {target} does not know {identity.node_id}: it joined after the backup was taken",
            "ask for a join string (potluck invite) and join from a new --home",
        )
    return replace(identity, host=host, control_port=port, data_port=answer.data_port)
