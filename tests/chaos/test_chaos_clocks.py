"""Wall clocks that disagree. Deadlines are monotonic; certificates and tokens alone know the date."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.chaos.clock import build, shifted
from tests.chaos.world import Job, Outcome, begin, outcome, refused
from tests.integration.harness import Cluster

HOUR_S = 3_600
YEAR_S = 366 * 86_400


@pytest.fixture
def library(tmp_path: Path) -> Path:
    made = build(tmp_path)
    asked = [sys.executable, "-c", "import time; print(time.time())"]
    said = subprocess.run(asked, env={**os.environ, **shifted(made, HOUR_S)}, capture_output=True, check=True).stdout
    assert HOUR_S / 2 < float(said) - time.time() < 2 * HOUR_S
    return made


def test_nodes_whose_clocks_are_an_hour_off_either_way_join_and_change_nothing(
    library: Path, job: Job, undisturbed: Outcome, tmp_path: Path
) -> None:
    with Cluster(tmp_path / "c") as cluster:
        coordinator = cluster.start_coordinator()
        ahead = cluster.start_node("a", **shifted(library, HOUR_S))
        behind = cluster.start_node("b", **shifted(library, -HOUR_S))
        run = begin(cluster, job)
        cluster.wait_until(run, lambda info: info.tasks_done >= 2)
        # In the middle of the run the coordinator's own clock is set back by an hour, as a battery that died does.
        assert coordinator.stop() == 0
        cluster.start_coordinator(**shifted(library, -HOUR_S))
        assert outcome(cluster, run) == undisturbed
        assert [daemon.stop() for daemon in (ahead, behind)] == [0, 0]
        assert "Traceback" not in cluster.tails()


def test_a_node_whose_clock_is_more_than_a_year_off_is_told_what_is_wrong(library: Path, tmp_path: Path) -> None:
    with Cluster(tmp_path / "c") as cluster:
        cluster.start_coordinator()
        assert cluster.start_node("a").stop() == 0
        late = refused("expert_node", "--home", str(cluster.folder / "a"), environment=shifted(library, 2 * YEAR_S))
    assert late.exit_code == 2
    assert "Traceback" not in late.text
    assert "fix: " in late.text
    assert "clock" in late.text
