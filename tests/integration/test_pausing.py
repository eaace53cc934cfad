"""`potluck run pause|resume` and `potluck drain` against real daemons: nothing moves, and then all of it ends well."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from potluck.cli import main
from tests.chaos.world import begin, outcome, tiny_job
from tests.integration.harness import Cluster


def said(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_run_rests_while_it_is_paused_or_its_node_is_drained_and_ends_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "job").mkdir()
    job = tiny_job(tmp_path / "job")
    home = ["--home", str(tmp_path)]
    with Cluster(tmp_path / "logs") as cluster:
        cluster.home = tmp_path / "coordinator"
        cluster.start_coordinator()
        cluster.start_node("a")
        assert said(capsys, "drain", "a", *home)["drained"]
        run = begin(cluster, job)
        assert said(capsys, "run", "status", *home)["tasks"]["done"] == 0
        assert said(capsys, "nodes", *home)["nodes"][0]["drained"]
        said(capsys, "drain", "a", "--undo", *home)
        cluster.wait_until(run, lambda info: info.tasks_done >= 2)
        assert said(capsys, "run", "pause", *home) == {"run": run, "paused": True}
        cluster.wait_until(run, lambda info: not any(line.node for line in info.lineages))
        assert said(capsys, "run", "status", *home)["paused"]
        assert said(capsys, "run", "resume", *home) == {"run": run, "paused": False}
        outcome(cluster, run)


@pytest.mark.parametrize(
    ("words", "error_id"),
    [(["drain", "nobody"], "refused.no-such-node"), (["run", "pause", "nothing"], "refused.no-such-run")],
)
def test_what_is_not_there_is_named(
    words: list[str], error_id: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Cluster(tmp_path / "logs") as cluster:
        cluster.home = tmp_path / "coordinator"
        cluster.start_coordinator()
        assert main([*words, "--json", "--home", str(tmp_path)]) == 4
    assert json.loads(capsys.readouterr().out)["error"]["id"] == error_id
