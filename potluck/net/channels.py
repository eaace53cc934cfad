"""Channels and servers with the settings that were measured, and clear words when a connection fails."""

from __future__ import annotations

import os
import socket

# Read when gRPC is first imported; without it every failed handshake writes to stderr. Daemons set it in `__main__`.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio

from potluck.errors import ResourceError, UsageError
from potluck.net.address import is_loopback, join_host_port, split_host_port
from potluck.net.identity import Identity
from potluck.net.tls import COORDINATOR_NAME, INSECURE_AGENT, KeyedCertificate

Options = list[tuple[str, Any]]

MAX_MESSAGE_BYTES = 1 << 20
"""All that is larger is a blob."""
MAX_STREAMS = 1024
KEEPALIVE_PERIOD_MS = 10_000
KEEPALIVE_TIMEOUT_MS = 5_000
MAX_METADATA_BYTES = 16 << 10


def client_options(server_name: str = COORDINATOR_NAME) -> Options:
    """Options of every client channel; the target name is always overridden, so no address change breaks TLS."""
    return [
        *_common_options(),
        # Without a cap the delay grows to two minutes; a lower floor than the queue of a slow link never reconnects.
        ("grpc.initial_reconnect_backoff_ms", 250),
        ("grpc.min_reconnect_backoff_ms", 10_000),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        # Half a minute by default: so long nobody would find a coordinator whose name means another address now.
        ("grpc.dns_min_time_between_resolutions_ms", 5_000),
        ("grpc.enable_http_proxy", 0),
        ("grpc.ssl_target_name_override", server_name),
        ("grpc.default_authority", server_name),
    ]


def server_options() -> Options:
    return [
        *_common_options(),
        # At most the client's period, or the server answers its pings with GOAWAY.
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        # With port sharing a second server on a taken port starts without a word.
        ("grpc.so_reuseport", 0),
        # Of one connection; `guard.MAX_CALLS` refuses sooner, with a reason.
        ("grpc.max_concurrent_streams", MAX_STREAMS),
    ]


def open_channel(
    identity: Identity, *, target: str | None = None, server_name: str = COORDINATOR_NAME
) -> grpc.aio.Channel:
    """A channel to the coordinator (or `target`, host:port) as this identity. Call it inside the event loop."""
    target = target or identity.control_target
    if identity.insecure:
        _refuse_remote(target)
        return grpc.aio.insecure_channel(target, options=_insecure_options(identity, server_name))
    return grpc.aio.secure_channel(target, client_credentials(identity), options=client_options(server_name))


def open_sync_channel(
    identity: Identity, *, target: str | None = None, server_name: str = COORDINATOR_NAME
) -> grpc.Channel:
    """As `open_channel`, for programs without an event loop."""
    target = target or identity.control_target
    if identity.insecure:
        _refuse_remote(target)
        return grpc.insecure_channel(target, options=_insecure_options(identity, server_name))
    return grpc.secure_channel(target, client_credentials(identity), options=client_options(server_name))


def client_credentials(identity: Identity) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        root_certificates=identity.ca_pem,
        private_key=identity.key_pem,
        certificate_chain=identity.certificate_pem,
    )


def server_credentials(certificate: KeyedCertificate, *, client_ca_pem: bytes | None) -> grpc.ServerCredentials:
    """Mutual TLS where `client_ca_pem` is given; plain server TLS (enrolment) where it is None."""
    return grpc.ssl_server_credentials(
        [(certificate.key_pem, certificate.certificate_pem)],
        root_certificates=client_ca_pem,
        require_client_auth=client_ca_pem is not None,
    )


def router_credentials(identity: Identity) -> grpc.ServerCredentials | None:
    """A router serves with the certificate it enrolled with; None when insecure."""
    if identity.insecure:
        return None
    keyed = KeyedCertificate(key_pem=identity.key_pem, certificate_pem=identity.certificate_pem)
    return server_credentials(keyed, client_ca_pem=identity.ca_pem)


def new_server(interceptors: Sequence[grpc.aio.ServerInterceptor[Any, Any]] = ()) -> grpc.aio.Server:
    """A server with our options. Call it inside the event loop, add services, then `bind` and start."""
    return grpc.aio.server(interceptors=list(interceptors), options=server_options())


def bind(server: grpc.aio.Server, host: str, port: int, credentials: grpc.ServerCredentials | None) -> int:
    """Binds a server; returns the port, chosen by the system when 0 was asked for.

    Raises:
        ResourceError: ``resource.port-taken``, or ``resource.bad-address``: it is none of this machine's.
        UsageError: ``usage.insecure-not-loopback``: without credentials only loopback may be bound.
    """
    address = join_host_port(host, port)
    if credentials is None:
        _refuse_remote(address)
    try:
        if credentials is None:
            bound = server.add_insecure_port(address)
        else:
            bound = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise _cannot_listen(host, address, str(error)) from None
    if bound == 0:
        raise _cannot_listen(host, address, "the system refused it")
    return bound


def _cannot_listen(host: str, address: str, why: str) -> ResourceError:
    bare = host.strip("[]")
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(bare, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(where)
    except (OSError, UnicodeError) as error:
        return ResourceError(
            "resource.bad-address",
            f"cannot listen on {address}: {bare!r} cannot be used as an address here: {error}",
            "give an address of this machine with --host, or 0.0.0.0 for all of them",
        )
    return _port_taken(address, why)


def _port_taken(address: str, why: str) -> ResourceError:
    return ResourceError(
        "resource.port-taken",
        f"cannot listen on {address}: {why}",
        "stop the program that uses the port, or choose another with --port (0 takes any free one)",
    )


def _refuse_remote(target: str) -> None:
    host, _ = split_host_port(target)
    if not is_loopback(host):
        raise UsageError(
            "usage.insecure-not-loopback",
            f"--insecure was given, but {target} is not a loopback address",
            "use 127.0.0.1, or leave --insecure away",
        )


def _insecure_options(identity: Identity, server_name: str) -> Options:
    agent = f"{INSECURE_AGENT}{identity.role}/{identity.node_id}"
    return [*client_options(server_name), ("grpc.primary_user_agent", agent)]


def _common_options() -> Options:
    return [
        ("grpc.keepalive_time_ms", KEEPALIVE_PERIOD_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        # The ping itself waits for this one (default 60 s), whatever the keep-alive timeout says.
        ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ]
