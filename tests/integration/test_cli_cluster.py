"""The commands of a person with real daemons on loopback, all ports ephemeral."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from potluck.net.identity import Identity
from potluck.net.join import enrol
from potluck.net.version import make_hello

TIMEOUT_S = 100


def potluck(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "potluck.cli", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, stdin=subprocess.DEVNULL
    )


def answer(*arguments: str) -> dict[str, Any]:
    done = potluck(*arguments, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    value = json.loads(done.stdout)
    assert isinstance(value, dict)
    return value


def processes_of(home: Path) -> list[psutil.Process]:
    """Everything that names this home on its command line."""
    return [p for p in psutil.process_iter(["cmdline"]) if any(str(home) in word for word in p.info["cmdline"] or [])]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    potluck("down", "--home", str(tmp_path), "--now")
    assert not processes_of(tmp_path)


def test_a_coordinator_a_node_and_a_router_come_up_and_go_down(home: Path) -> None:
    up = answer("up", "--home", str(home), "--host", "127.0.0.1", "--port", "0", "--detach")
    assert up["join"].startswith("potluck1:127.0.0.1:")
    assert psutil.pid_exists(up["pid"])

    answer("join", "--home", str(home), "--name", "first", "--detach")
    where = ("--home", str(home), "--host", "127.0.0.1", "--port", "0")
    router = answer("router", *where, "--count-domains", "--noise", "0.5", "--detach")
    assert router["address"].startswith("127.0.0.1:")
    assert "counting-requests-by-domain noise=0.5" in (home / "router" / "daemon.log").read_text()

    nodes = answer("nodes", "--home", str(home))["nodes"]
    assert {(node["name"], node["role"], node["state"]) for node in nodes if node["role"] == "node"} == {
        ("first", "node", "live")
    }
    assert len(answer("invite", "--home", str(home), "--count", "3")["join"]) == 3
    assert answer("run", "list", "--home", str(home)) == {"runs": []}

    again = potluck("up", "--home", str(home), "--detach")
    assert again.returncode == 4
    assert "refused.already-running" in again.stderr

    stopped = answer("down", "--home", str(home))["stopped"]
    assert [entry["kind"] for entry in stopped] == ["expert_node", "router", "coordinator"]
    assert not processes_of(home)


def test_a_join_string_works_once_and_says_so(home: Path) -> None:
    up = answer("up", "--home", str(home), "--host", "127.0.0.1", "--port", "0", "--detach")
    answer("join", up["join"], "--home", str(home), "--detach")
    second = potluck("join", up["join"], "--home", str(home / "other"), "--detach")
    potluck("down", "--home", str(home / "other"), "--now")
    assert second.returncode == 2
    assert "[join." in second.stderr


def test_a_taken_port_is_named(home: Path) -> None:
    up = answer("up", "--home", str(home), "--host", "127.0.0.1", "--port", "0", "--detach")
    port = str(up["control"])
    second = potluck("up", "--home", str(home / "other"), "--host", "127.0.0.1", "--port", port, "--detach")
    assert second.returncode == 5
    assert "resource." in second.stderr


def test_ctrl_c_in_the_foreground_drains_and_leaves_nothing(home: Path) -> None:
    arguments = ["up", "--home", str(home), "--host", "127.0.0.1", "--port", "0", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "potluck.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["join"]
        # A terminal sends Ctrl+C to the whole foreground group.
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, said
    assert not processes_of(home)
    assert not (home / "coordinator" / "daemon.json").exists()


def test_sigterm_to_the_foreground_reaches_the_daemon(home: Path) -> None:
    arguments = ["up", "--home", str(home), "--host", "127.0.0.1", "--port", "0", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "potluck.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, said
    assert not processes_of(home)


def test_a_pid_that_was_given_to_somebody_else_is_left_alone(home: Path) -> None:
    bystander = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with bystander:
        folder = home / "node"
        folder.mkdir()
        record = {"kind": "expert_node", "pid": bystander.pid, "started_unix": 1.0, "ready": {}}
        (folder / "daemon.json").write_text(json.dumps(record))
        assert answer("down", "--home", str(home)) == {"stopped": []}
        assert bystander.poll() is None
        bystander.kill()


def test_a_node_that_was_put_out_ends_and_is_not_let_in_again(home: Path) -> None:
    answer("up", "--home", str(home), "--host", "127.0.0.1", "--port", "0", "--detach")
    node = answer("join", "--home", str(home), "--name", "first", "--detach")
    left = psutil.Process(node["pid"])
    assert answer("nodes", "--home", str(home), "--revoke", node["node_id"]) == {"revoked": node["node_id"]}
    psutil.wait_procs([left], timeout=TIMEOUT_S)
    assert not left.is_running()
    assert answer("nodes", "--home", str(home))["nodes"] == []
    again = potluck("join", "--home", str(home), "--detach")
    assert again.returncode in (2, 4)
    assert "revoked" in again.stderr
    unknown = potluck("nodes", "--home", str(home), "--revoke", "n9-nobody")
    assert unknown.returncode == 4
    assert "[refused.no-such-node]" in unknown.stderr


def test_a_node_and_a_router_follow_a_coordinator_that_was_restored_on_other_ports(home: Path) -> None:
    old, new, member = home / "old", home / "new", home / "member"
    where = ("--host", "127.0.0.1", "--port", "0", "--detach")
    up = answer("up", "--home", str(old), *where)
    answer("join", up["join"], "--home", str(member), "--detach")
    (invited,) = answer("invite", "--home", str(old), "--role", "router")["join"]
    answer("router", invited, "--home", str(member), *where)
    answer("backup", "--home", str(old), str(home / "backup.tar"))
    late = answer("invite", "--home", str(old))["join"][0]
    enrol(late, name="late", hello=make_hello(boot_id="")).save(home / "late" / "node" / "identity")
    for each in (member, old):
        answer("down", "--home", str(each))

    answer("restore", str(home / "backup.tar"), "--home", str(new))
    moved = answer("up", "--home", str(new), *where)
    address = f"127.0.0.1:{moved['control']}"
    assert moved["control"] != up["control"]
    lost = potluck("join", "--home", str(member), "--coordinator", f"127.0.0.1:{up['control']}", "--detach")
    assert (lost.returncode, "[net.refused]" in lost.stderr) == (3, True)
    answer("join", "--home", str(member), "--coordinator", address, "--detach")
    answer("router", "--home", str(member), "--coordinator", address, *where)
    nodes = answer("nodes", "--home", str(new))["nodes"]
    assert [(node["role"], node["state"]) for node in nodes] == [("node", "live"), ("router", "live")]
    # Who joined after the backup was taken is nobody there.
    unknown = potluck("join", "--home", str(home / "late"), "--coordinator", address, "--detach")
    assert unknown.returncode == 2
    assert "[join.unknown-here]" in unknown.stderr
    # The address is kept: without --coordinator it comes back to where it was last.
    assert Identity.load(member / "node" / "identity").control_target == address
    for each in (member, new):
        answer("down", "--home", str(each))
