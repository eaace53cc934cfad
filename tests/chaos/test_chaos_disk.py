"""A disk that is full: the coordinator ends and says so, and goes on once there is room."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from potluck.errors import ResourceError
from tests.chaos.world import Job, Outcome, begin, outcome
from tests.integration.harness import Cluster

SIZE = "16m"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A cluster's folder whose coordinator has a small file system of its own; it takes root to make one."""
    home = tmp_path / "c" / "coordinator"
    home.mkdir(parents=True)
    mounting = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(home)]
    if os.geteuid() != 0 or subprocess.run(mounting, capture_output=True, check=False).returncode:
        pytest.skip("it takes root to mount a small file system")
    try:
        yield tmp_path / "c"
    finally:
        subprocess.run(["umount", str(home)], check=True)


def fill(ballast: Path) -> None:
    with ballast.open("wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError:
                return


def test_a_full_disk_ends_the_coordinator_and_room_lets_it_go_on(
    job: Job, undisturbed: Outcome, small_disk: Path
) -> None:
    with Cluster(small_disk) as cluster:
        coordinator = cluster.start_coordinator()
        cluster.start_node("a")
        run = begin(cluster, job)
        cluster.wait_until(run, lambda info: info.tasks_done >= 1)
        ballast = cluster.home / "ballast"
        fill(ballast)
        assert coordinator.popen.wait(timeout=60) == ResourceError.exit_code
        assert "[resource.disk-full]" in coordinator.tail()
        assert "fix: " in coordinator.tail()
        ballast.unlink()
        cluster.start_coordinator()
        assert outcome(cluster, run) == undisturbed


def test_a_run_that_the_quota_stopped_goes_on_when_it_is_started_again_with_a_larger_one(
    job: Job, undisturbed: Outcome, tmp_path: Path
) -> None:
    with Cluster(tmp_path) as cluster:
        coordinator = cluster.start_coordinator("--quota-bytes", "700000")
        cluster.start_node("a")
        run = begin(cluster, job)
        info = cluster.wait_ended(run)
        assert info.state == "failed"
        assert "--quota-bytes" in info.reason or "bytes are taken" in info.reason
        assert coordinator.stop() == 0
        cluster.start_coordinator()
        assert cluster.start_run(job.spec) == run
        assert outcome(cluster, run) == undisturbed
