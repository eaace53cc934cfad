"""Daemons that cannot start, or may not come in: each says why, under an id that stays, and what to do."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from potluck.client import AdminClient
from potluck.errors import JoinError, NotReachable, ResourceError
from potluck.net.identity import Identity
from potluck.net.join import JoinString, enrol
from potluck.net.version import make_hello
from tests.chaos.world import Refusal, refused
from tests.integration.harness import Cluster

OTHER_VERSION = "9.9.0"


def node(home: Path, *arguments: str, environment: dict[str, str] | None = None) -> Refusal:
    return refused("expert_node", "--home", str(home), "--name", "n", *arguments, environment=environment)


def router(home: Path, *arguments: str, environment: dict[str, str] | None = None) -> Refusal:
    where = ["--host", "127.0.0.1", "--port", "0"]
    return refused("router", "--home", str(home), *where, *arguments, environment=environment)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("refusals")) as cluster:
        cluster.start_coordinator()
        yield cluster


@pytest.fixture(scope="module")
def other_version(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a daemon that takes itself for another release."""
    folder = tmp_path_factory.mktemp("other-version")
    info = folder / f"potluck-{OTHER_VERSION}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: potluck\nVersion: {OTHER_VERSION}\n")
    path = os.environ.get("PYTHONPATH", "")
    return {"PYTHONPATH": f"{folder}{os.pathsep}{path}" if path else str(folder)}


def test_a_join_string_works_once(cluster: Cluster, tmp_path: Path) -> None:
    join = cluster.invite("node")
    assert router(tmp_path / "r", "--join", join).says("join.wrong-role")
    enrol(join, name="first", hello=make_hello(boot_id="first"))  # the refusal has not used it up
    second = node(tmp_path / "n", "--join", join)
    assert second.exit_code == JoinError.exit_code
    assert second.says("join.token-spent")


def test_a_stale_join_string_says_that_it_has_expired(cluster: Cluster, tmp_path: Path) -> None:
    with cluster.client() as client:
        (join,) = client.invite(count=1, expires_ms=1, role="node")
    refusal = node(tmp_path, "--join", join)
    assert refusal.exit_code == JoinError.exit_code
    assert refusal.says("join.token-expired")


def test_a_join_string_with_a_part_missing_or_changed_says_so(cluster: Cluster, tmp_path: Path) -> None:
    join = cluster.invite("node")
    parsed = JoinString.parse(join)
    assert node(tmp_path, "--join", join.rpartition(":")[0]).says("join.malformed")
    assert node(tmp_path, "--join", f"{join[:-4]}aaaa").says("join.unknown-token")
    assert node(tmp_path, "--join", join.replace(parsed.fingerprint, "0" * 64)).says("join.wrong-fingerprint")


def test_a_node_that_finds_nobody_says_so(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        join = f"potluck1:127.0.0.1:{unused.getsockname()[1]}:{'0' * 64}:{'a' * 32}"
        refusal = node(tmp_path, "--join", join)
    assert refusal.exit_code == NotReachable.exit_code
    assert refusal.says("net.refused")
    assert node(tmp_path).says("join.no-identity")


def test_a_node_of_another_version_is_not_let_in(
    cluster: Cluster, other_version: dict[str, str], tmp_path: Path
) -> None:
    join = cluster.invite("node")
    refusal = node(tmp_path, "--join", join, environment=other_version)
    assert refusal.exit_code == JoinError.exit_code
    assert refusal.says("join.version")
    assert OTHER_VERSION in refusal.text


def test_a_node_that_was_upgraded_alone_is_told_so_when_it_comes_back(
    cluster: Cluster, other_version: dict[str, str]
) -> None:
    daemon = cluster.start_node("upgraded")
    assert daemon.stop() == 0
    refusal = node(daemon.home, environment=other_version)
    assert refusal.exit_code == JoinError.exit_code
    assert refusal.says("join.version")


def test_a_router_that_was_upgraded_alone_serves_on_and_says_why_it_is_alone(
    cluster: Cluster, other_version: dict[str, str]
) -> None:
    daemon = cluster.start_router("upgraded-r")
    assert daemon.stop() == 0
    command = [sys.executable, "-m", "router", "--home", str(daemon.home), "--host", "127.0.0.1", "--port", "0"]
    environment = {**os.environ, **other_version}
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as again:
        assert again.stdout is not None
        assert again.stderr is not None
        assert '"ready"' in again.stdout.readline()
        assert any("error_id=join.version" in line for line in again.stderr)
        again.terminate()
        again.communicate(timeout=60)
    assert again.returncode == 0


def test_a_node_of_another_coordinator_at_the_same_address_is_told_so(cluster: Cluster, tmp_path: Path) -> None:
    stranger = cluster.start_node("stranger")
    assert stranger.stop() == 0
    home = tmp_path / "stranger"
    shutil.copytree(stranger.home, home)
    with Cluster(tmp_path / "other") as other:
        other.start_coordinator()
        identity = Identity.load(home / "identity")
        here = Identity.load(other.home / "admin" / "identity")
        (home / "identity").rename(home / "before")
        moved = {"control_port": here.control_port, "data_port": here.data_port}
        type(identity)(**{**vars(identity), **moved}).save(home / "identity")
        refusal = node(home)
    assert refusal.exit_code == JoinError.exit_code
    assert refusal.says("join.other-authority")


def test_a_home_has_one_daemon(cluster: Cluster) -> None:
    here = cluster.start_node("taken")
    assert node(here.home).says("resource.home-in-use")
    again = cluster.start_router("taken-r")
    assert router(again.home).says("resource.home-in-use")
    second = refused("coordinator", "--home", str(cluster.home), "--host", "127.0.0.1", "--port", "0")
    assert second.exit_code == ResourceError.exit_code
    assert second.says("resource.locked")
    with AdminClient(cluster.admin) as client:
        assert client.list_nodes().nodes


@pytest.mark.parametrize("offset", [0, 1, 2], ids=["control", "enrolment", "data"])
def test_a_port_that_is_taken_is_named(offset: int, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        base = str(port - offset)
        refusal = refused("coordinator", "--home", str(tmp_path), "--host", "127.0.0.1", "--port", base)
    assert refusal.exit_code == ResourceError.exit_code
    assert refusal.says("resource.port-taken")
    assert str(port) in refusal.text


def test_a_router_whose_port_is_taken_says_so(cluster: Cluster, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        join = cluster.invite("router")
        refusal = refused("router", "--home", str(tmp_path), "--host", "127.0.0.1", "--port", port, "--join", join)
    assert refusal.exit_code == ResourceError.exit_code
    assert refusal.says("resource.port-taken")
