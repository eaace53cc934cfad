"""Real daemons as processes: a coordinator, nodes and routers on free loopback ports under one temporary folder.

    with Cluster(tmp_path) as cluster:
        cluster.start_coordinator()
        cluster.start_node("a")
        run = cluster.start_run(spec, name="small")
        info = cluster.wait_ended(run)

Nothing is timed: a daemon is up when its ready line has been read, a run is over when the coordinator says
so. Whatever was started is ended by pid and process group when the cluster is left, and what the daemons
wrote to stderr stays in `FOLDER/logs`.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc

from potluck.client import AdminClient
from potluck.ids import Digest
from potluck.net.blobs.client import BlobClient
from potluck.net.blobs.store import BlobStore
from potluck.net.channels import open_sync_channel
from potluck.net.identity import Identity
from potluck.specs.run import RunSpec
from potluck.v1 import admin_pb2, admin_pb2_grpc

READY_S = 60.0
"""A node is ready after it has enrolled; loading its interpreter and gRPC takes seconds on a busy machine."""
END_S = 20.0
CALL_S = 30.0
INVITE_MS = 3_600_000
TAIL_CHARACTERS = 4_000


class Daemon:
    """One process, the leader of its own process group."""

    def __init__(self, name: str, command: list[str], home: Path, log: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self.home = home
        self.log = log
        self.ready: Mapping[str, Any] = {}
        with log.open("ab") as errors:
            self.popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, **environment},
                start_new_session=True,
                bufsize=0,
            )

    def wait_ready(self) -> Mapping[str, Any]:
        """Reads the one JSON line that a daemon prints when it is up."""
        assert self.popen.stdout is not None
        line = b""
        while not line.endswith(b"\n"):
            readable, _, _ = select.select([self.popen.stdout], [], [], READY_S)
            piece = self.popen.stdout.read(1) if readable else b""
            assert piece, f"{self.name} said nothing of being ready:\n{self.tail()}"
            line += piece
        self.ready = json.loads(line)
        assert self.ready["event"] == "ready", self.ready
        return self.ready

    def signal(self, number: int) -> None:
        self.popen.send_signal(number)

    def wait_ended(self) -> int:
        """The exit code; negative for a signal."""
        return self.popen.wait(timeout=END_S)

    def stop(self) -> int:
        """Asks it to end in good order; returns the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait_ended()

    def kill(self) -> None:
        """SIGKILL for the daemon alone: its children must notice by themselves."""
        self.signal(signal.SIGKILL)
        self.wait_ended()

    def end_group(self) -> None:
        """Ends the daemon, and everything that it started and that is still there."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
            try:
                self.popen.wait(timeout=END_S)
            except subprocess.TimeoutExpired:
                pass
        try:
            os.killpg(self.popen.pid, signal.SIGKILL)  # the group outlives its leader while a child lives
        except ProcessLookupError:
            pass
        self.popen.wait()
        if self.popen.stdout is not None:
            self.popen.stdout.close()

    def tail(self) -> str:
        """The end of what it wrote to stderr."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-TAIL_CHARACTERS:]


class Cluster:
    """The daemons of one test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "coordinator"
        self._logs = folder / "logs"
        self._logs.mkdir(parents=True)
        self.daemons: list[Daemon] = []
        self._requests = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Nodes first: a coordinator that drains waits for nodes that work.
        for daemon in reversed(self.daemons):
            daemon.end_group()

    # --- daemons -----------------------------------------------------------------------------------

    def start_coordinator(self, *arguments: str, **environment: str) -> Daemon:
        """Starts it, or starts it again on the same home; returns once it serves."""
        command = ["coordinator", "--home", str(self.home), "--host", "127.0.0.1", "--port", "0", *arguments]
        return self._start("coordinator", command, self.home, environment)

    def start_node(self, name: str, *arguments: str, **environment: str) -> Daemon:
        """Starts a node that joins, or one of this name that comes back; returns once it was welcomed."""
        home = self.folder / name
        join = [] if (home / "identity").exists() else ["--join", self.invite("node")]
        command = ["expert_node", "--home", str(home), "--name", name, *join, *arguments]
        return self._start(name, command, home, environment)

    def start_router(self, name: str, *arguments: str, **environment: str) -> Daemon:
        """Starts a router on a free port; its ready line holds the port."""
        home = self.folder / name
        join = [] if (home / "identity").exists() else ["--join", self.invite("router")]
        where = ["--host", "127.0.0.1", "--advertise", "127.0.0.1", "--port", "0"]
        command = ["router", "--home", str(home), "--name", name, *where, *join, *arguments]
        return self._start(name, command, home, environment)

    def _start(self, name: str, command: list[str], home: Path, environment: Mapping[str, str]) -> Daemon:
        daemon = Daemon(name, [*self.launcher(name), *command], home, self._logs / f"{name}.log", environment)
        self.daemons.append(daemon)
        daemon.wait_ready()
        return daemon

    def launcher(self, name: str) -> list[str]:
        """What runs a module as the daemon of this name."""
        return [sys.executable, "-m"]

    # --- what an administrator does ------------------------------------------------------------------

    @property
    def admin(self) -> Identity:
        return Identity.load(self.home / "admin" / "identity")

    def client(self) -> AdminClient:
        return AdminClient(self.admin)

    def invite(self, role: str) -> str:
        with self.client() as client:
            return client.invite(count=1, expires_ms=INVITE_MS, role=role)[0]

    def put_corpus(self, files: Mapping[Digest, Path]) -> None:
        """Puts every file of an ingested corpus over the data plane."""
        with BlobClient(self.admin, BlobStore(self.folder / "cache")) as blobs:
            for future in [blobs.put(digest, path, "corpus") for digest, path in files.items()]:
                future.result(timeout=CALL_S)

    def start_run(self, spec: RunSpec, *, name: str = "run") -> str:
        """Starts the run of a spec whose corpus has been put; its id."""
        self._requests += 1
        with self.client() as client:
            return client.start_run(spec.to_json(), name=name, request_id=f"{name}-{self._requests}").run

    def wait_ended(self, run: str, *, timeout_s: float = 100.0) -> admin_pb2.RunInfo:
        """Watches the run until it has ended; the last it was said to be.

        Raises:
            AssertionError: it has not ended after `timeout_s`; the daemons' last words are in the message.
        """
        return self.wait_until(run, lambda info: info.state != "running", timeout_s=timeout_s)

    def wait_until(
        self, run: str, reached: Callable[[admin_pb2.RunInfo], bool], *, timeout_s: float = 100.0
    ) -> admin_pb2.RunInfo:
        """Watches the run until `reached` says so of what it has become.

        Raises:
            AssertionError: it ended before, or `timeout_s` have passed; the daemons' last words are in the message.
        """
        info = admin_pb2.RunInfo()
        with open_sync_channel(self.admin) as channel:
            stub: Any = admin_pb2_grpc.AdminServiceStub(channel)
            said: Iterator[admin_pb2.RunInfo] = stub.WatchRun(admin_pb2.GetRunRequest(run=run), timeout=timeout_s)
            try:
                for info in said:
                    if reached(info):
                        return info  # the call ends with its channel
            except grpc.RpcError as error:
                why = f"{info.state} at {info.stage!r}: {error}"
                raise AssertionError(f"run {run[:12]} is {why}{self.tails()}") from None
        raise AssertionError(f"run {run[:12]} ended as {info.state}: {info.reason}{self.tails()}")

    def blobs(self) -> BlobStore:
        """The hub's blobs, read in place."""
        return BlobStore(self.home / "blobs")

    def tails(self) -> str:
        return "".join(f"\n--- {daemon.name}\n{daemon.tail()}" for daemon in self.daemons)
