"""A coordinator that dies over its snapshots, or finds them damaged: real processes, and nothing is lost."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.world import Job, Outcome, begin, deaths, dies_at, outcome, place, wait_killed
from tests.integration.harness import Cluster, Daemon

BEFORE_REPLY = "coordinator.after-journal-before-reply"
MID_SNAPSHOT = "coordinator.mid-snapshot"
OFTEN = ("--snapshot-rows", "5")


def replays(daemon: Daemon) -> list[str]:
    """What each start of this daemon said of its replay."""
    return [line for line in daemon.log.read_text(encoding="utf-8").splitlines() if " replayed " in line]


def test_a_coordinator_killed_in_the_middle_of_snapshots_and_after_them_changes_nothing(
    job: Job, undisturbed: Outcome, tmp_path: Path, crash_log: Path
) -> None:
    moments = [f"{MID_SNAPSHOT}:2", f"{BEFORE_REPLY}.CommitAccepted:4", f"{MID_SNAPSHOT}:3", f"{BEFORE_REPLY}:9"]
    with Cluster(tmp_path / "c") as cluster:
        coordinator = cluster.start_coordinator(*OFTEN)
        assert coordinator.stop() == 0
        coordinator = cluster.start_coordinator(*OFTEN, **dies_at(moments[0], crash_log))
        cluster.start_node("a")
        run = begin(cluster, job)
        for following in moments[1:]:
            wait_killed(coordinator)
            coordinator = cluster.start_coordinator(*OFTEN, **dies_at(following, crash_log))
        wait_killed(coordinator)
        coordinator = cluster.start_coordinator(*OFTEN)
        assert outcome(cluster, run) == undisturbed
        begun = replays(coordinator)
    assert deaths(crash_log) == [place(moment) for moment in moments]
    assert "rows=0 snapshot=none" in begun[0]
    assert all("snapshot=0" in line for line in begun[1:]), begun


def test_damaged_snapshots_are_passed_over_with_a_reason_and_the_journal_is_replayed(
    job: Job, undisturbed: Outcome, tmp_path: Path
) -> None:
    with Cluster(tmp_path / "c") as cluster:
        coordinator = cluster.start_coordinator(*OFTEN)
        cluster.start_node("a")
        run = begin(cluster, job)
        cluster.wait_until(run, lambda info: any(lineage.head_step for lineage in info.lineages))
        coordinator.kill()
        snapshots = sorted((cluster.home / "snapshots").glob("*.jsonl"))
        assert snapshots
        for path in snapshots:
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
        coordinator = cluster.start_coordinator(*OFTEN)
        assert outcome(cluster, run) == undisturbed
        said = coordinator.log.read_text(encoding="utf-8")
        assert said.count("snapshot-passed-over") == len(snapshots)
        assert "snapshot=none" in replays(coordinator)[-1]
