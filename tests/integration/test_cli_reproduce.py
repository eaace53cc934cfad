"""`potluck reproduce` with real daemons on loopback: whatever is killed, the same call goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coordinator.journal import SqliteJournal
from potluck.commands.daemons import running, stop_all
from potluck.commands.home import Home, admin_client
from potluck.commands.machine import num_cores
from potluck.report.svg import MAX_POINTS
from tests.integration.harness import Cluster
from tests.reference.languages import write_languages

TIMEOUT_S = 150
RATES = {"expert_flops_per_second": 1e9, "router_tokens_per_second": 1e4, "score_tokens_per_second": 1e4}
KEYS = {"lr=0.003 seed=0", "lr=0.01 seed=0", "lr=0.003 seed=1", "lr=0.01 seed=1", "contest"}


class Lab:
    """A study over a small text, and its command."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.out = folder / "out"
        self.home = Home(root=self.out / "home")
        self.data = folder / "text"
        self.data.mkdir()
        write_languages(self.data / "languages.jsonl", documents=60, seed=0)
        (self.out / "work").mkdir(parents=True)
        (self.out / "work" / f"rates-{num_cores()}.json").write_text(json.dumps(RATES))

    def command(self, *arguments: str) -> list[str]:
        where = ["--out", str(self.out), "--data", str(self.data), "--quick"]
        return [sys.executable, "-m", "tests.integration.small_study", "reproduce", "small", *where, *arguments]

    def start(self) -> subprocess.Popen[str]:
        command = self.command("--nodes", "1")
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def finish(self, *arguments: str) -> tuple[dict[str, Any], str]:
        """The JSON of a call that goes through, and what was said beside it."""
        done = subprocess.run(
            self.command(*arguments, "--json"), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout), done.stderr

    def daemons(self) -> list[Path]:
        return [folder for folder in self.home.daemon_folders() if running(folder) is not None]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    one = Lab(tmp_path)
    yield one
    stop_all(one.home.daemon_folders(), at_once=True)


def read_until(process: subprocess.Popen[str], words: str) -> str:
    assert process.stderr is not None
    said = ""
    while words not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    return said


def commits(home: Home) -> Counter[tuple[str, int]]:
    """How often each lineage's step was committed by a node, of a coordinator that has ended."""
    journal = SqliteJournal(home.coordinator / "journal.db")
    try:
        rows = [json.loads(row) for row in journal.read_all()]
    finally:
        journal.close()
    events = [row.get("event", row) for row in rows]
    return Counter(
        (event["lineage"], event["end_step"]) for event in events if "lineage" in event and "end_step" in event
    )


def test_whatever_is_interrupted_or_killed_the_same_call_goes_on_and_trains_nothing_twice(lab: Lab) -> None:
    with lab.start() as process:  # a person changes their mind
        read_until(process, "2 cells: 2 started")
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130
    assert "the runs go on" in rest
    with admin_client(lab.home) as client:
        assert len(client.list_runs().runs) == 2

    with lab.start() as process:  # both the command and the coordinator die
        read_until(process, "cells have ended")
        record = running(lab.home.coordinator)
        assert record is not None
        process.send_signal(signal.SIGKILL)
        os.kill(record.pid, signal.SIGKILL)
        process.communicate(timeout=TIMEOUT_S)
    report, _ = lab.finish("--nodes", "1")
    assert {cell["key"] for cell in report["cells"]} == KEYS
    assert {cell["state"] for cell in report["cells"]} == {"finished"}
    assert lab.daemons() == []
    counted = commits(lab.home)
    assert len({lineage for lineage, _ in counted}) == 4
    assert set(counted.values()) == {1}, counted
    (pair,) = next(cell for cell in report["cells"] if cell["key"] == "contest")["figures"]["headline"]["test"][
        "pairs"
    ].values()
    assert pair["low"] < pair["mean"] < pair["high"]
    assert report["claims"][0]["seeds"] == 2

    again, said = lab.finish("--nodes", "1")
    assert "nothing is trained" in said
    assert lab.daemons() == []
    assert again == report
    assert commits(lab.home) == counted
    page = (lab.out / "report.html").read_text(encoding="utf-8")
    assert "Search of the model" in page
    assert "http" not in page
    assert len(page) < 100 * MAX_POINTS


def test_a_running_coordinator_and_its_nodes_are_used_as_they_are(lab: Lab, tmp_path: Path) -> None:
    with Cluster(tmp_path / "theirs") as cluster:
        cluster.start_coordinator()
        cluster.start_node("a")
        report, said = lab.finish("--home", str(tmp_path / "theirs"))
        assert {cell["key"] for cell in report["cells"]} == KEYS
        assert "stopping" not in said
        assert not lab.home.root.exists()
        with cluster.client() as client:
            names = {info.name for info in client.list_runs().runs}
    assert names == {f"small/{key}" for key in KEYS}
    assert report["machine"]["nodes"].startswith("a (")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--home", "x", "--nodes", "2"), "usage.bad-arguments"),
        (("--nodes", "1000"), "usage.bad-value"),
        (("--standard",), "usage.bad-arguments"),
        (("--data", "nowhere"), "usage.no-data"),
    ],
)
def test_a_wrong_call_is_refused_before_anything_is_started(lab: Lab, arguments: tuple[str, ...], said: str) -> None:
    done = subprocess.run(lab.command(*arguments), capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert not lab.home.root.exists()
