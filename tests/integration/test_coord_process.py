"""The coordinator as a process: its ready line, its signals, its exit codes, its named deaths."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from potluck.errors import NotReachable
from potluck.ids import Digest
from potluck.net.blobs.client import BlobClient
from potluck.net.blobs.store import BlobStore
from potluck.net.channels import open_sync_channel
from potluck.net.identity import Identity
from potluck.net.join import enrol
from potluck.net.version import make_hello
from potluck.v1 import admin_pb2, admin_pb2_grpc, node_pb2, node_pb2_grpc

DEADLINE_S = 30.0


class Process:
    def __init__(self, home: Path, *arguments: str, **environment: str) -> None:
        command = [sys.executable, "-m", "coordinator", "--home", str(home), "--host", "127.0.0.1"]
        self.home = home
        self.popen = subprocess.Popen(
            [*command, *(arguments or ("--port", "0"))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )

    def ready(self) -> dict[str, Any]:
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()
        assert line, self.popen.communicate()[1]
        return dict(json.loads(line))

    def end(self) -> tuple[int, str]:
        _, errors = self.popen.communicate(timeout=DEADLINE_S)
        return self.popen.returncode, errors

    def admin(self) -> Identity:
        return Identity.load(self.home / "admin" / "identity")


@contextlib.contextmanager
def process(home: Path, *arguments: str, **environment: str) -> Iterator[Process]:
    started = Process(home, *arguments, **environment)
    try:
        yield started
    finally:
        if started.popen.poll() is None:
            started.popen.kill()
        started.popen.communicate()


def invite(admin: Identity) -> str:
    with open_sync_channel(admin) as channel:
        stub: Any = admin_pb2_grpc.AdminServiceStub(channel)
        return str(stub.Invite(admin_pb2.InviteRequest(), timeout=DEADLINE_S).join_strings[0])


def acquire(identity: Identity, request_id: int) -> node_pb2.AcquireLeaseResponse:
    request = node_pb2.AcquireLeaseRequest(request_id=request_id, boot_id="boot", free_memory_bytes=1)
    with open_sync_channel(identity) as channel:
        stub: Any = node_pb2_grpc.NodeServiceStub(channel)
        answer: node_pb2.AcquireLeaseResponse = stub.AcquireLease(request, timeout=DEADLINE_S)
    return answer


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_ends_with_exit_code_0(number: signal.Signals, tmp_path: Path) -> None:
    with process(tmp_path) as p:
        ready = p.ready()
        assert ready["event"] == "ready"
        assert ready["join"].startswith("potluck1:127.0.0.1:")
        assert {"control", "enrol", "data", "home"} <= ready.keys()
        p.popen.send_signal(number)
        code, errors = p.end()
    assert (code, "draining" in errors, "Traceback" in errors) == (0, True, False)


def test_an_administrator_can_shut_it_down(tmp_path: Path) -> None:
    with process(tmp_path) as p:
        p.ready()
        with open_sync_channel(p.admin()) as channel:
            stub: Any = admin_pb2_grpc.AdminServiceStub(channel)
            assert "drain" in stub.Shutdown(admin_pb2.ShutdownRequest(), timeout=DEADLINE_S).message
        assert p.end()[0] == 0


def test_a_taken_port_ends_with_exit_code_5_and_says_what_to_do(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with process(tmp_path, "--port", str(taken.getsockname()[1])) as p:
            code, errors = p.end()
    assert code == 5
    assert "[resource.port-taken]" in errors
    assert "fix: " in errors
    assert "Traceback" not in errors


def test_a_second_coordinator_on_the_home_ends_with_exit_code_5(tmp_path: Path) -> None:
    with process(tmp_path) as first:
        first.ready()
        with process(tmp_path) as second:
            code, errors = second.end()
    assert code == 5
    assert "[resource.locked]" in errors


def test_insecure_beyond_loopback_ends_with_exit_code_2(tmp_path: Path) -> None:
    with process(tmp_path, "--host", "0.0.0.0", "--insecure", "--port", "0") as p:
        code, errors = p.end()
    assert code == 2
    assert "[usage.insecure-not-loopback]" in errors


def test_what_was_journalled_before_a_death_is_answered_alike_after_it(tmp_path: Path) -> None:
    """The death between journal and reply: the caller hears nothing, asks again, and it was done once."""
    with process(tmp_path) as p:
        p.ready()
        identity = enrol(invite(p.admin()), name="box", hello=make_hello(boot_id="boot"))
        p.popen.send_signal(signal.SIGTERM)
        assert p.end()[0] == 0
    log = tmp_path / "crashes"
    crash = {"POTLUCK_CRASH_AT": "coordinator.after-journal-before-reply", "POTLUCK_CRASH_LOG": str(log)}
    with process(tmp_path, **crash) as p:
        p.ready()
        with pytest.raises(grpc.RpcError):
            acquire(identity, 1)
        assert p.end()[0] == -signal.SIGKILL
    assert log.read_text() == "coordinator.after-journal-before-reply\n"
    with process(tmp_path) as p:
        ready = p.ready()
        assert ready["join"] is None
        assert ready["control"] == identity.control_port
        assert acquire(identity, 1).none.reason
        assert acquire(identity, 2).none.reason


def test_a_blob_is_whole_or_absent_after_a_death_in_the_middle_of_a_put(tmp_path: Path) -> None:
    home = tmp_path / "c"
    payload = tmp_path / "payload"
    payload.write_bytes(b"blob" * 100_000)
    digest = Digest(hashlib.sha256(payload.read_bytes()).hexdigest())
    with process(home, POTLUCK_CRASH_AT="coordinator.mid-put") as p:
        p.ready()
        admin = p.admin()
        with BlobClient(admin, BlobStore(tmp_path / "a"), give_up_after_ms=2_000) as blobs:
            putting = blobs.put(digest, payload, "weights")
            assert p.end()[0] == -signal.SIGKILL
            with pytest.raises(NotReachable):
                putting.result(timeout=DEADLINE_S)
    assert not BlobStore(home / "blobs").has(digest)
    with process(home) as p:
        p.ready()
        with BlobClient(p.admin(), BlobStore(tmp_path / "b")) as blobs:
            assert blobs.put(digest, payload, "weights").result(timeout=DEADLINE_S) == digest
        p.popen.send_signal(signal.SIGTERM)
        assert p.end()[0] == 0
    assert BlobStore(home / "blobs").verify(digest)
    assert json.loads((home / "bytes.json").read_text())["weights"] > 0
