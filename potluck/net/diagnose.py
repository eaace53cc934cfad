"""Why a connection failed.

gRPC says UNAVAILABLE for nearly everything; one TLS handshake by hand tells the causes apart.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import socket
import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cryptography import x509

from potluck.errors import JoinError, NotReachable, PotluckError
from potluck.net.address import split_host_port
from potluck.net.identity import Identity
from potluck.net.tls import COORDINATOR_NAME

PROBE_TIMEOUT_S = 5.0
SETTLE_TIMEOUT_S = 0.5
"""A server that refuses our certificate closes right after the handshake; one that accepts it says HTTP/2 settings."""
OTHER_AUTHORITY, EXPIRED, NOT_YET_VALID, WRONG_NAME = 20, 10, 9, 62
SELF_SIGNED = (18, 19)


async def diagnose(
    identity: Identity, *, target: str | None = None, server_name: str = COORDINATOR_NAME
) -> PotluckError:
    """Probes a peer that answered UNAVAILABLE and returns (does not raise) the error that names the cause.

    Ids: ``net.refused``, ``net.timeout``, ``net.no-such-host``, ``net.unreachable``, ``net.not-tls``,
    ``join.other-authority``, ``join.server-expired``, ``join.clock``, ``join.wrong-server``,
    ``join.certificate-expired``, ``join.certificate-refused``.
    """
    return await asyncio.to_thread(diagnose_sync, identity, target=target, server_name=server_name)


def diagnose_sync(
    identity: Identity, *, target: str | None = None, server_name: str = COORDINATOR_NAME
) -> PotluckError:
    """`diagnose` for programs without an event loop."""
    target = target or identity.control_target
    host, port = split_host_port(target)
    try:
        with socket.create_connection((host, port), timeout=PROBE_TIMEOUT_S) as raw:
            if identity.insecure:
                return _plain_but_silent(target)
            return _shake_hands(identity, raw, target, server_name)
    except OSError as error:
        return dial_error(target, error)


def dial_error(target: str, error: OSError) -> NotReachable:
    """The error of a TCP connection that could not be made."""
    if isinstance(error, ConnectionRefusedError):
        return NotReachable(
            "net.refused", f"nothing listens on {target}", "check that the daemon runs there and that the port is right"
        )
    if isinstance(error, socket.gaierror):
        return NotReachable("net.no-such-host", f"{target}: the host name is not known", "check the host name")
    if isinstance(error, TimeoutError):
        return NotReachable(
            "net.timeout", f"{target} does not answer", "check the address, and that no firewall drops the connection"
        )
    return NotReachable("net.unreachable", f"{target}: {error}", "check the address and the network")


def _plain_but_silent(target: str) -> NotReachable:
    return NotReachable(
        "net.unreachable",
        f"{target} accepts connections but does not speak plain gRPC",
        "start both sides with --insecure or neither",
    )


def _shake_hands(identity: Identity, raw: socket.socket, target: str, server_name: str) -> PotluckError:
    with _client_context(identity) as context:
        try:
            # Python leaves a socket open whose wrapping fails, as it does when the peer has gone or shakes hands
            # badly: whether the peer is there is asked first, and the handshake comes apart.
            raw.getpeername()
            with context.wrap_socket(raw, server_hostname=server_name, do_handshake_on_connect=False) as tls:
                tls.do_handshake()
                tls.settimeout(SETTLE_TIMEOUT_S)
                return _after_handshake(identity, tls, target)
        except ssl.SSLCertVerificationError as error:
            return _verification_error(target, error)
        except ssl.SSLError as error:
            if error.reason == "WRONG_VERSION_NUMBER":
                return NotReachable(
                    "net.not-tls", f"{target} does not speak TLS", "check the port; is the other side --insecure?"
                )
            return _our_certificate(identity, target, str(error))
        except OSError as error:
            return NotReachable("net.not-tls", f"{target} broke off the TLS handshake: {error}", "check the port")


def _after_handshake(identity: Identity, tls: ssl.SSLSocket, target: str) -> PotluckError:
    try:
        answer = tls.recv(1)
    except TimeoutError:
        answer = b"-"
    except (ssl.SSLError, ConnectionError) as error:
        return _our_certificate(identity, target, str(error))
    if not answer:
        return _our_certificate(identity, target, "the connection was closed after the handshake")
    return NotReachable("net.unreachable", f"{target} answers now, but the call before this check failed", "try again")


def _verification_error(target: str, error: ssl.SSLCertVerificationError) -> JoinError:
    code = error.verify_code
    if code == OTHER_AUTHORITY or code in SELF_SIGNED:
        return JoinError(
            "join.other-authority",
            f"{target} is not the coordinator this machine joined: its certificate has another authority",
            "join the new coordinator with a fresh join string",
        )
    if code == EXPIRED:
        return JoinError(
            "join.server-expired", f"the certificate of {target} has expired", "restart that daemon; check both clocks"
        )
    if code == NOT_YET_VALID:
        return JoinError(
            "join.clock", f"the certificate of {target} is not valid yet", "set the clocks of both machines right"
        )
    if code == WRONG_NAME:
        return JoinError(
            "join.wrong-server",
            f"{target} is another kind of potluck server",
            "check the port: base, or +3 for a router",
        )
    return JoinError("join.other-authority", f"{target}: {error.verify_message}", "join again with a fresh join string")


def _our_certificate(identity: Identity, target: str, why: str) -> JoinError:
    not_after = x509.load_pem_x509_certificate(identity.certificate_pem).not_valid_after_utc
    if not_after < datetime.datetime.now(datetime.UTC):
        return JoinError(
            "join.certificate-expired",
            f"this machine's certificate expired on {not_after:%Y-%m-%d}",
            "ask for a join string (potluck invite) and join again",
        )
    return JoinError(
        "join.certificate-refused",
        f"{target} refused this machine's certificate ({why})",
        "join again with a fresh join string (potluck invite)",
    )


@contextlib.contextmanager
def _client_context(identity: Identity) -> Iterator[ssl.SSLContext]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=identity.ca_pem.decode())
    context.set_alpn_protocols(["h2"])
    # The ssl module reads keys from files only; the folder is private and gone at once.
    with tempfile.TemporaryDirectory(prefix="potluck-") as folder:
        path = Path(folder) / "identity.pem"
        path.touch(mode=0o600)
        path.write_bytes(identity.key_pem + identity.certificate_pem)
        context.load_cert_chain(path)
        yield context
