"""Which of this machine's addresses others can reach, and how host and port are written together."""

from __future__ import annotations

import ipaddress
import socket

import psutil

PROBE_ADDRESS = ("192.0.2.1", 9)
"""TEST-NET-1 (RFC 5737). A connected UDP socket sends nothing; it only asks the routing table."""


def reachable_address() -> str:
    """The source address of the default route, else the first address that is not loopback, else 127.0.0.1."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(PROBE_ADDRESS)
            found = str(probe.getsockname()[0])
        except OSError:
            found = ""
    if found and not is_loopback(found) and found != "0.0.0.0":
        return found
    for addresses in psutil.net_if_addrs().values():
        for address in addresses:
            if address.family == socket.AF_INET and not is_loopback(address.address):
                return str(address.address)
    return "127.0.0.1"


def is_loopback(host: str) -> bool:
    """True for ``localhost`` and loopback addresses; other names are not looked up and count as remote."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def join_host_port(host: str, port: int) -> str:
    """``host:port``, with brackets around an IPv6 address."""
    bare = host.strip("[]")
    return f"[{bare}]:{port}" if ":" in bare else f"{bare}:{port}"


def split_host_port(target: str) -> tuple[str, int]:
    """The inverse of `join_host_port`; ValueError if there is no port."""
    host, separator, port = target.rpartition(":")
    if not separator or not host:
        raise ValueError(f"{target!r} is not host:port")
    return host.strip("[]"), int(port)
