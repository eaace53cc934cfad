"""`potluck doctor` beside real daemons."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from potluck import cli
from potluck.net.identity import Identity
from tests.integration.harness import Cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A root folder as `--home` has it: coordinator/ and node/."""
    with Cluster(tmp_path_factory.mktemp("root")) as cluster:
        cluster.start_coordinator()
        cluster.start_node("node")
        yield cluster


def examined(capsys: pytest.CaptureFixture[str], code: int, *arguments: str) -> dict[str, dict[str, Any]]:
    capsys.readouterr()
    assert cli.main(["doctor", "--json", *arguments]) == code
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] == (code == 0)
    return {check["name"]: check for check in told["checks"]}


def test_all_is_well_with_a_coordinator_and_a_node(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    checks = examined(capsys, 0, "--home", str(cluster.folder))
    connection = ["control port", "enrolment", "version", "clock", "enrolment port", "data port", "its certificate"]
    for name in [*connection, "node session", "node certificate", "admin certificate", "journal", "blobs", "nodes"]:
        assert checks[name]["state"] == "ok", checks[name]
    assert cli.main(["doctor", "--home", str(cluster.folder)]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_a_node_that_looks_for_its_coordinator_in_the_wrong_place_is_told_so(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = Identity.load(cluster.folder / "node" / "identity")
    dataclasses.replace(kept, control_port=1).save(tmp_path / "node" / "identity")
    checks = examined(capsys, 1, "--home", str(tmp_path))
    assert checks["control port"]["state"] == "fail"
    assert "127.0.0.1:1" in checks["control port"]["found"]
    assert "node session" not in checks
    there = examined(capsys, 0, "--home", str(tmp_path), "--coordinator", f"127.0.0.1:{kept.control_port}")
    assert there["control port"]["state"] == "ok"


def test_an_identity_that_cannot_be_read_or_that_others_can_read_is_named(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = Identity.load(cluster.folder / "node" / "identity")
    kept.save(tmp_path / "node" / "identity")
    (tmp_path / "node" / "identity" / "identity.json").chmod(0o644)
    assert examined(capsys, 0, "--home", str(tmp_path))["private keys"]["state"] == "warn"
    (tmp_path / "node" / "identity" / "identity.json").write_text("{")
    assert examined(capsys, 1, "--home", str(tmp_path))["identity"]["state"] == "fail"


def test_a_machine_that_has_not_joined_yet_can_ask_whether_it_could(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checks = examined(capsys, 1, "--home", str(tmp_path), "--coordinator", "127.0.0.1:1")
    assert [checks[f"{name} port"]["state"] for name in ("control", "enrolment", "data")] == ["fail"] * 3
    assert examined(capsys, 0, "--home", str(tmp_path))["coordinator"]["state"] == "ok"
    assert cli.main(["doctor", "--home", str(tmp_path), "--coordinator", "host:port"]) == 2
    assert "[usage.bad-address]" in capsys.readouterr().err


def test_a_damaged_journal_is_found_while_nobody_uses_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Cluster(tmp_path) as cluster:
        cluster.start_coordinator().stop()
    checks = examined(capsys, 1, "--home", str(tmp_path))
    assert "whole" in checks["journal"]["found"]
    assert checks["ports"]["state"] == "ok"
    (tmp_path / "coordinator" / "journal.db").write_bytes(b"no database" * 1000)
    checks = examined(capsys, 1, "--home", str(tmp_path))
    assert (checks["journal"]["state"], "potluck restore" in checks["journal"]["fix"]) == ("fail", True)
