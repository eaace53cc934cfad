"""What lies in a coordinator's home, and whom it waits for."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from potluck.doctor.check import Check, fail, ok, warn
from potluck.formatting import human_bytes
from potluck.ids import digest_file, is_digest, short

if TYPE_CHECKING:
    from potluck.v1 import admin_pb2

SAMPLE_BLOBS = 64
SAMPLE_BYTES = 1 << 30
RESTORE = "restore it from a backup (potluck restore)"


def check_blobs(folder: Path) -> Check:
    """Hashes blobs spread evenly over the store, up to a number and a size."""
    places = sorted(path for path in folder.glob("[0-9a-f][0-9a-f]/*") if is_digest(path.name))
    chosen = places[:: max(1, len(places) // SAMPLE_BLOBS)]
    read, damaged, seen = 0, [], 0
    for place in chosen:
        try:
            size = place.stat().st_size
            if read + size > SAMPLE_BYTES and seen:
                continue
            good = digest_file(place) == place.name
        except FileNotFoundError:
            continue  # collected meanwhile
        read, seen = read + size, seen + 1
        if not good:
            damaged.append(short(place.name))
    found = f"{seen} of {len(places)} blobs read ({human_bytes(read)})"
    if damaged:
        fix = f"the disk under {folder} alters files: check it; {RESTORE}"
        return fail("blobs", f"{found}; other bytes than their digest says: {', '.join(damaged)}", fix)
    return ok("blobs", f"{found}, all whole")


def check_private(files: Sequence[Path]) -> list[Check]:
    """Names those files with private keys that others than their owner may read; says nothing of the rest."""
    open_to_others = [path for path in files if path.is_file() and path.stat().st_mode & 0o077]
    return [
        warn("private keys", f"{path} may be read by others than its owner", f"chmod 600 {path}")
        for path in open_to_others
    ]


def check_ports_free(ports: Sequence[int]) -> Check:
    """Of a coordinator that is not running: whether it could start where it was."""
    taken = [port for port in ports if not _is_free(port)]
    if taken:
        shown = ", ".join(map(str, taken))
        fix = "stop the program that listens there, or start with another --port"
        return warn("ports", f"no coordinator runs, but something listens on {shown}", fix)
    return ok("ports", f"no coordinator runs; {', '.join(map(str, ports))} are free")


def check_present(nodes: Sequence[admin_pb2.NodeInfo]) -> Check:
    """Which nodes are here, and which we wait for."""
    found = whom_we_wait_for(nodes)
    if not any(node.role == "node" for node in nodes):
        return warn("nodes", "no node has joined yet", "potluck invite, then potluck join on another machine")
    if all(node.state == "live" for node in nodes):
        return ok("nodes", found)
    return warn("nodes", found, "start them, or put those out that will not come back: potluck nodes --revoke NODE")


def whom_we_wait_for(nodes: Sequence[admin_pb2.NodeInfo]) -> str:
    """`2 of 3 nodes are here; n3-x last heard 14 s ago`. Routers are counted only if one is away."""
    parts: list[str] = []
    for role in ("node", "router"):
        ours = [node for node in nodes if node.role == role]
        away = [node for node in ours if node.state != "live"]
        if away or (role == "node" and ours):
            parts.append(f"{len(ours) - len(away)} of {len(ours)} {role}s are here")
            parts += [f"{node.node} {_silence(node)}" for node in away]
    return "; ".join(parts)


def _silence(node: admin_pb2.NodeInfo) -> str:
    if not node.silent_ms:
        return "not heard since the coordinator started"
    return f"last heard {node.silent_ms / 1000:.0f} s ago"


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))
        except OSError:
            return False
        return True
