"""A cluster whose daemons live in namespaces: coordinator and routers in one, each node in its own."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from coordinator.core.events import Event, LeaseLapsed
from coordinator.journal import SqliteJournal
from coordinator.wire_events import decode_event
from potluck.net.identity import Identity
from potluck.v1 import admin_pb2
from tests.integration.harness import CALL_S, INVITE_MS, Cluster, Daemon
from tests.netns.doorway import Doorway
from tests.netns.spaces import Shape, Spaces

HUB = "hub"
HUB_ADDRESS = "10.77.0.1"
FIRST_NODE = 10
PATIENCE_S = 100.0
LOOK_S = 0.02
"""How often a state is looked at; what is measured is as coarse."""


class Fleet(Cluster):
    """Leave it, and no process is left; its namespaces go with their `Spaces`."""

    def __init__(self, folder: Path, spaces: Spaces) -> None:
        super().__init__(folder)
        self.spaces = spaces
        self.made: dict[str, str] = {}
        """By which means each machine was made so."""
        self._doorways: dict[str, Doorway] = {}
        self.add_machine(HUB, HUB_ADDRESS)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        for doorway in self._doorways.values():
            doorway.close()

    def add_machine(self, name: str, address: str = "", *, shape: Shape | None = None) -> None:
        """One that can only dial, but for the hub."""
        address = address or f"10.77.0.{FIRST_NODE + len(self.made)}"
        self.made[name] = self.spaces.add(name, address, only_dials=name != HUB, shape=shape)

    def start_hub(self, *arguments: str, advertise: str = "") -> Daemon:
        """The coordinator, listening on every address of its machine, as it does unless told otherwise."""
        said = ["--advertise", advertise] if advertise else []
        daemon = self.start_coordinator("--host", "0.0.0.0", *said, *arguments)
        for kind in ("control", "data"):
            dial = partial(socket.create_connection, ("127.0.0.1", daemon.ready[kind]), CALL_S)
            self._doorways[kind] = Doorway(partial(self.spaces.inside, HUB, dial))
        return daemon

    def start_hub_router(self, *, advertise: str = HUB_ADDRESS) -> Daemon:
        return self.start_router("router", "--host", "0.0.0.0", "--advertise", advertise)

    def launcher(self, name: str) -> list[str]:
        machine = HUB if name in ("coordinator", "router") else name
        return ["ip", "netns", "exec", self.spaces.namespace(machine), *super().launcher(name)]

    @property
    def admin(self) -> Identity:
        control, data = (self._doorways[kind].port for kind in ("control", "data"))
        return replace(super().admin, host="127.0.0.1", control_port=control, data_port=data)

    # --- what is to be seen -------------------------------------------------------------------------

    def nodes(self) -> dict[str, admin_pb2.NodeInfo]:
        with self.client() as client:
            return {node.name: node for node in client.list_nodes().nodes}

    def wait_state(self, name: str, wanted: Callable[[str], bool]) -> float:
        """Seconds until the coordinator says so of the node."""
        began = time.monotonic()
        with self.client() as client:
            while time.monotonic() - began < PATIENCE_S:
                states = {node.name: node.state for node in client.list_nodes().nodes}
                if wanted(states[name]):
                    return time.monotonic() - began
                time.sleep(LOOK_S)
        raise AssertionError(f"{name} is {states[name]}{self.tails()}")

    def ask(self, machine: str, router: str, text: str) -> dict[str, Any]:
        """What a client on that machine, which joins for it, gets for an answer."""
        with self.client() as client:
            (join,) = client.invite(count=1, expires_ms=INVITE_MS, role="client")
        command = [*self.launcher(machine), "tests.netns.visitor", join, router, text]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        assert done.returncode == 0, done.stderr + self.tails()
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def command(self, machine: str, *arguments: str) -> str:
        """What a person's command says on that machine."""
        command = [*self.launcher(machine), "potluck.cli", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        assert done.returncode == 0, done.stdout + done.stderr + self.tails()
        return done.stdout

    def events(self) -> list[Event]:
        """The journal; its coordinator must have ended."""
        journal = SqliteJournal(self.home / "journal.db")
        try:
            return [decode_event(row) for row in journal.read_all()]
        finally:
            journal.close()

    def lapses(self) -> list[str]:
        """Why leases ended before their work did; the coordinator must have ended."""
        return [event.reason for event in self.events() if isinstance(event, LeaseLapsed)]


def works(info: admin_pb2.RunInfo, name: str) -> bool:
    return any(lineage.node.endswith(f"-{name}") for lineage in info.lineages)


def is_live(state: str) -> bool:
    return state == "live"


def is_missed(state: str) -> bool:
    return state != "live"


def listening(daemon: Daemon) -> set[int]:
    """TCP ports that anything in the daemon's namespace listens on, apart from loopback."""
    ports = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{daemon.popen.pid}/net/{table}").read_text().splitlines()[1:]:
            local, _, state = line.split()[1:4]
            address, port = local.split(":")
            if state == "0A" and address not in ("0100007F", "00000000000000000000000001000000"):
                ports.add(int(port, 16))
    return ports


def say(what: str, **figures: object) -> None:
    """For people who run this with -s."""
    words = "  ".join(
        f"{key}={value:.2f}" if isinstance(value, float) else f"{key}={value}" for key, value in figures.items()
    )
    sys.stdout.write(f"\n{what}: {words}\n")
