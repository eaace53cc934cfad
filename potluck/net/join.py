"""Joining: one string says where the coordinator is, how to know it, and that we may come in.

``potluck1:<host>:<enrolment port>:<SHA-256 of its certificate>:<token>``. The joiner fetches the certificate,
compares, and only then sends its token, to that certificate alone. ``insecure`` in place of the fingerprint
means plain TCP on loopback.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import socket
import ssl
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc

from potluck.errors import JoinError
from potluck.ids import NodeId
from potluck.net.address import is_loopback, join_host_port, split_host_port
from potluck.net.blobs.curve import CurveKeys, new_curve_keys
from potluck.net.channels import client_options
from potluck.net.diagnose import dial_error
from potluck.net.guard import rpc_errors
from potluck.net.identity import ASKING_FILE, ROLES, Identity, write_private
from potluck.net.tls import COORDINATOR_NAME, new_key_and_csr
from potluck.v1 import common_pb2, node_pb2, node_pb2_grpc

SCHEME = "potluck1"
INSECURE = "insecure"
FETCH_TIMEOUT_S = 20.0
ENROL_TIMEOUT_S = 20.0
TOKEN_BYTES = 24
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_TOKEN = re.compile(r"[A-Za-z0-9_-]{8,128}")
_HOST = re.compile(r"[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.%a-z0-9]+\]")
_SHAPE_FIX = "copy the whole string that `potluck up` or `potluck invite` printed; it starts with potluck1:"


@dataclass(frozen=True, kw_only=True)
class JoinString:
    host: str
    port: int
    """Of the enrolment server (base + 1)."""
    fingerprint: str
    """SHA-256 of the enrolment certificate's DER in hexadecimal, or ``insecure``."""
    token: str

    def format(self) -> str:
        return f"{SCHEME}:{join_host_port(self.host, self.port)}:{self.fingerprint}:{self.token}"

    @property
    def insecure(self) -> bool:
        return self.fingerprint == INSECURE

    @staticmethod
    def parse(text: str) -> JoinString:
        """Reads a join string; surrounding blanks do not matter.

        Raises:
            JoinError: ``join.malformed``; the message names the part that is wrong, never the token.
        """
        scheme, _, rest = text.strip().partition(":")
        if scheme != SCHEME:
            raise JoinError("join.malformed", f"a join string starts with {SCHEME}:, not {scheme[:20]!r}", _SHAPE_FIX)
        parts = rest.rsplit(":", 2)
        if len(parts) != 3:
            raise JoinError("join.malformed", "the join string lacks its fingerprint or its token", _SHAPE_FIX)
        target, fingerprint, token = parts
        try:
            host, port = split_host_port(target)
        except ValueError:
            raise JoinError("join.malformed", f"{target!r} is not host:port", _SHAPE_FIX) from None
        bracketed = target.rpartition(":")[0]
        if not _HOST.fullmatch(bracketed) or not 0 < port < 65536:
            raise JoinError("join.malformed", f"{target!r} is not host:port", _SHAPE_FIX)
        if fingerprint != INSECURE and not _FINGERPRINT.fullmatch(fingerprint):
            raise JoinError("join.malformed", "the fingerprint is not 64 hexadecimal digits", _SHAPE_FIX)
        if not _TOKEN.fullmatch(token):
            raise JoinError("join.malformed", "the token is cut off or has foreign characters", _SHAPE_FIX)
        parsed = JoinString(host=host, port=port, fingerprint=fingerprint, token=token)
        if parsed.format() != text.strip():
            raise JoinError("join.malformed", f"{target!r} is not written as host:port", _SHAPE_FIX)
        return parsed


def new_token() -> str:
    return secrets.token_urlsafe(TOKEN_BYTES)


@dataclass(frozen=True, kw_only=True)
class _Asking:
    """What an enrolment is asked for with. Holds private keys."""

    token_digest: str
    key_pem: str
    csr_pem: str
    curve_public: str
    curve_secret: str


def enrol(
    join_string: str | JoinString,
    *,
    name: str,
    hello: common_pb2.Hello,
    wanted_role: str = "",
    folder: Path | None = None,
) -> Identity:
    """Joins a coordinator; blocks. Call it before the event loop or in a thread.

    A join string is good for one set of keys. So these are on disk before it is sent: whoever dies before the
    answer is kept, on either side, the same call with the same folder is answered as the first one was.

    Args:
        name: the display name wished for; the coordinator chooses the id.
        hello: who and what this program is.
        wanted_role: the role the invitation must give, or it is refused unspent; empty: any.
        folder: where the identity is going to be saved; None: a second call is another joiner.

    Raises:
        JoinError: ``join.malformed``, ``join.wrong-fingerprint``, or what the coordinator answers
            (``join.token-spent``, ``join.wrong-role`` and others).
        NotReachable: nobody there, or no answer in time.
    """
    parsed = JoinString.parse(join_string) if isinstance(join_string, str) else join_string
    target = join_host_port(parsed.host, parsed.port)
    asking = _asking(parsed.token, name, folder)
    request = node_pb2.EnrolRequest(
        token=parsed.token,
        csr_pem=asking.csr_pem.encode(),
        curve_public_key=asking.curve_public,
        hello=hello,
        name=name,
        wanted_role=wanted_role,
    )
    with _enrolment_channel(parsed, target) as channel, rpc_errors():
        # Without wait_for_ready: with it every cause reads "Deadline Exceeded".
        answer: node_pb2.EnrolResponse = node_pb2_grpc.EnrolServiceStub(channel).Enrol(request, timeout=ENROL_TIMEOUT_S)
    role = next((known for known in ROLES if known == answer.role), None)
    if role is None:
        raise JoinError("join.version", f"the coordinator gave the unknown role {answer.role!r}", "use equal versions")
    return Identity(
        node_id=NodeId(answer.node_id),
        role=role,
        key_pem=asking.key_pem.encode(),
        certificate_pem=answer.certificate_pem,
        ca_pem=answer.ca_pem,
        curve_public=asking.curve_public,
        curve_secret=asking.curve_secret,
        curve_server_key=answer.curve_server_key,
        host=parsed.host,
        control_port=answer.control_port,
        data_port=answer.data_port,
        insecure=parsed.insecure,
    )


def fetch_certificate(target: str) -> bytes:
    """The PEM certificate a TLS server shows, unverified: the caller compares its fingerprint.

    Raises:
        NotReachable: ``net.refused``, ``net.timeout``, ``net.no-such-host``, ``net.unreachable``.
        JoinError: ``join.not-tls``: something else listens there.
    """
    host, port = split_host_port(target)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with socket.create_connection((host, port), timeout=FETCH_TIMEOUT_S) as raw:
            try:
                with context.wrap_socket(raw, server_hostname=COORDINATOR_NAME) as tls:
                    der = tls.getpeercert(True)
            except (ssl.SSLError, ConnectionError) as error:
                raise JoinError("join.not-tls", f"{target} is no enrolment server: {error}", "check the port") from None
    except OSError as error:
        raise dial_error(target, error) from None
    assert der is not None
    return ssl.DER_cert_to_PEM_cert(der).encode()


def _asking(token: str, name: str, folder: Path | None) -> _Asking:
    """The keys that an earlier call with this token left in the folder, or new ones, kept there."""
    token_digest = hashlib.sha256(token.encode()).hexdigest()
    if folder is not None:
        try:
            kept = _Asking(**json.loads((folder / ASKING_FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            pass  # None, or one that cannot be read: it is asked anew.
        else:
            if kept.token_digest == token_digest:
                return kept
    key_pem, csr_pem = new_key_and_csr(name)
    curve: CurveKeys = new_curve_keys()
    asking = _Asking(
        token_digest=token_digest,
        key_pem=key_pem.decode(),
        csr_pem=csr_pem.decode(),
        curve_public=curve.public,
        curve_secret=curve.secret,
    )
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(folder / ASKING_FILE, json.dumps(asdict(asking)).encode())
    return asking


def _enrolment_channel(parsed: JoinString, target: str) -> grpc.Channel:
    if parsed.insecure:
        if not is_loopback(parsed.host):
            raise JoinError(
                "join.malformed", f"an insecure join string for {parsed.host}, which is not loopback", _SHAPE_FIX
            )
        return grpc.insecure_channel(target, options=client_options())
    certificate_pem = fetch_certificate(target)
    seen = hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate_pem.decode())).hexdigest()
    if not secrets.compare_digest(seen, parsed.fingerprint):
        raise JoinError(
            "join.wrong-fingerprint",
            f"{target} shows a certificate with fingerprint {seen[:16]}..., "
            f"the join string says {parsed.fingerprint[:16]}...",
            "get a fresh join string from the coordinator; if it stays so, somebody stands in between",
        )
    credentials = grpc.ssl_channel_credentials(root_certificates=certificate_pem)
    return grpc.secure_channel(target, credentials, options=client_options())
