"""A whole cluster on this machine: coordinator, expert nodes, perhaps a router, each a process in its own session."""

from __future__ import annotations

import json
import socket
from pathlib import Path

from potluck.commands.daemons import PidRecord, running, start, stop_all
from potluck.commands.enrolment import start_member
from potluck.commands.home import Home
from potluck.commands.output import Output
from potluck.errors import ResourceError

NUM_NODES = 4
HOST = "127.0.0.1"
FIRST_BASE_PORT = 7470
BASE_STEP = 10
NUM_BASES = 50
PORTS_OF_A_BASE = 5


def start_cluster(home: Home, output: Output, *, nodes: int = NUM_NODES, with_router: bool = True) -> None:
    """Starts what does not run yet. What stops half-way is finished by the next call.

    Raises:
        ResourceError: ``resource.port``: no free ports.
        PotluckError: what a daemon said when it could not start.
    """
    port = base_port(home)
    if running(home.coordinator) is None:
        with output.timed("starting the coordinator"):
            start("coordinator", home.coordinator, ["--host", HOST, "--port", str(port)], own_session=True)
    for index in range(1, nodes + 1):
        if running(home.node(index)) is None:
            arguments = ["--name", f"node-{index}"]
            start_member("expert_node", home.node(index), arguments, join="", home=home, detach=True, output=output)
    if with_router and running(home.router) is None:
        arguments = ["--host", HOST, "--port", str(port + 3), "--name", "router"]
        start_member("router", home.router, arguments, join="", home=home, detach=True, output=output)


def stop_cluster(home: Home, *, at_once: bool = False) -> list[PidRecord]:
    """Drains and ends exactly the daemons started under this home."""
    members = [folder for folder in home.daemon_folders() if folder != home.coordinator]
    return stop_all(members, at_once=at_once) + stop_all([home.coordinator], at_once=at_once)


def base_port(home: Home) -> int:
    """The base port of this demo, chosen once: what has joined comes back to the same ports.

    Raises:
        ResourceError: ``resource.port``.
    """
    path = home.root / "port.json"
    if path.is_file():
        return int(json.loads(path.read_text())["port"])
    for number in range(NUM_BASES):
        port = FIRST_BASE_PORT + number * BASE_STEP
        if all(_is_free(port + offset) for offset in range(PORTS_OF_A_BASE)):
            _write(path, port)
            return port
    last = FIRST_BASE_PORT + (NUM_BASES - 1) * BASE_STEP
    raise ResourceError("resource.port", f"no five free ports from {FIRST_BASE_PORT} to {last}", "free some")


def _write(path: Path, port: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"port": port}))


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True
