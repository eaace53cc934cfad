"""The router's program beside the coordinator's: joining, being found, coming back, leaving."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from potluck.client import AdminClient, RouterClient
from potluck.errors import JoinError, NotReachable, UsageError
from potluck.net.identity import Identity


@contextmanager
def daemon(*arguments: str, log: Path) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, Any]]]:
    """A daemon that has said ready; stopped at the end if it still runs."""
    with log.open("ab") as errors:
        process = subprocess.Popen([sys.executable, "-m", *arguments], stdout=subprocess.PIPE, stderr=errors)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, log.read_text()
        yield process, json.loads(line)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(30)
        process.stdout.close()


@contextmanager
def coordinator(home: Path) -> Iterator[AdminClient]:
    arguments = ("coordinator", "--home", str(home / "coordinator"), "--host", "127.0.0.1", "--port", "0")
    with daemon(*arguments, log=home / "coordinator.log"), AdminClient.connect(home) as admin:
        yield admin


def wait_for_router(admin: AdminClient, state: str) -> Any:
    while True:
        for node in admin.list_nodes().nodes:
            if node.role == "router" and node.state == state:
                return node


def test_a_router_joins_is_found_leaves_in_good_order_and_comes_back(tmp_path: Path) -> None:
    router = (
        "router",
        "--home",
        str(tmp_path / "router"),
        "--host",
        "127.0.0.1",
        "--port",
        "0",
        "--http",
        "--patience",
        "0",
    )
    log = tmp_path / "router.log"
    with coordinator(tmp_path) as admin:
        (join,) = admin.invite(count=1, expires_ms=60_000, role="router")
        with daemon(*router, "--join", join, log=log) as (process, ready):
            (node,) = [node for node in admin.list_nodes().nodes if node.role == "router"]
            assert node.state == "live"
            assert node.address == ready["address"] == f"127.0.0.1:{ready['port']}"
            assert node.node == ready["node_id"]
            assert ready["http_port"] > 0
            with RouterClient.connect(tmp_path) as client, pytest.raises(NotReachable) as caught:
                client.route("hello")
            assert caught.value.error_id == "net.no-view"
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        wait_for_router(admin, "gone")
    # Without the coordinator it starts too, with the certificate it has.
    with daemon(*router, log=log) as (process, again):
        assert again["node_id"] == ready["node_id"]
        identity = Identity.load(tmp_path / "coordinator" / "admin" / "identity")
        with RouterClient(identity, again["address"]) as client, pytest.raises(NotReachable):
            client.route("hello")


def test_counting_is_said_once_at_the_start_and_noise_without_counts_is_refused(tmp_path: Path) -> None:
    where = ("router", "--home", str(tmp_path / "router"), "--host", "127.0.0.1", "--port", "0")
    log = tmp_path / "router.log"
    with coordinator(tmp_path) as admin:
        (join,) = admin.invite(count=1, expires_ms=60_000, role="router")
        with daemon(*where, "--join", join, "--count-domains", "--noise", "0.5", log=log):
            pass
    assert log.read_text().count("counting-requests-by-domain noise=0.5") == 1
    for more in (["--noise", "1"], ["--count-domains", "--noise", "0"]):
        command = [sys.executable, "-m", *where, *more]
        refused = subprocess.run(command, capture_output=True, timeout=60, check=False)
        assert refused.returncode == UsageError.exit_code
        assert b"usage.bad-noise" in refused.stderr


def test_a_node_s_join_string_makes_no_router(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "router", "--home", str(tmp_path / "router"), "--port", "0"]
    with coordinator(tmp_path) as admin:
        (join,) = admin.invite(count=1, expires_ms=60_000, role="node")
        wrong = subprocess.run([*command, "--join", join], capture_output=True, timeout=60, check=False)
    nothing = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert (wrong.returncode, nothing.returncode) == (JoinError.exit_code, JoinError.exit_code)
    assert b"join.wrong-role" in wrong.stderr
    assert b"join.no-identity" in nothing.stderr
