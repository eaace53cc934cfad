"""More moments to die at: half a checkpoint, a delivery not yet told, half a task, the power of the whole box."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from potluck.v1 import admin_pb2
from tests.chaos.power import tear_last_group
from tests.chaos.world import (
    Job,
    Outcome,
    begin,
    children_of,
    deaths,
    dies_at,
    journal_rows,
    outcome,
    place,
    wait_killed,
)
from tests.integration.harness import Cluster

BEFORE_REPLY = "coordinator.after-journal-before-reply"
MID_CHECKPOINT = "node.mid-checkpoint"
MID_COMMIT, MID_COMPLETE = "node.mid-delivery.FinishedCommit", "node.mid-delivery.FinishedTask"
MID_ASSIGN = "node.mid-task.assign"


def trains(info: admin_pb2.RunInfo) -> bool:
    return any(lineage.node for lineage in info.lineages)


@pytest.mark.parametrize(
    "moments",
    [
        [f"{MID_COMPLETE}:2", f"{MID_CHECKPOINT}:2", f"{MID_COMMIT}:1", f"{MID_ASSIGN}:1"],
        pytest.param([f"{MID_CHECKPOINT}:{n}" for n in (1, 3, 5)], marks=pytest.mark.long),
        pytest.param([f"{MID_COMMIT}:{n}" for n in (1, 2, 4, 6)], marks=pytest.mark.long),
        pytest.param([f"{MID_COMPLETE}:{n}" for n in (1, 2, 3, 4)], marks=pytest.mark.long),
        pytest.param(
            [f"node.mid-task.{kind}:1" for kind in ("fit", "tokenise", "score", "assign", "assign", "eval")],
            marks=pytest.mark.long,
        ),
    ],
    ids=["one of each", "mid-checkpoint", "mid-commit", "mid-completion", "mid-task"],
)
def test_the_only_node_killed_over_and_over_changes_nothing(
    moments: list[str], job: Job, undisturbed: Outcome, tmp_path: Path, crash_log: Path
) -> None:
    with Cluster(tmp_path / "c") as cluster:
        cluster.start_coordinator()
        node = cluster.start_node("a", **dies_at(moments[0], crash_log))
        run = begin(cluster, job)
        for following in moments[1:]:
            wait_killed(node)
            node = cluster.start_node("a", **dies_at(following, crash_log))
        wait_killed(node)
        cluster.start_node("a")
        assert outcome(cluster, run) == undisturbed
    assert deaths(crash_log) == [place(moment) for moment in moments]


def test_a_worker_killed_alone_costs_its_lease_and_nothing_else(job: Job, undisturbed: Outcome, tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster:
        cluster.start_coordinator()
        node = cluster.start_node("a")
        run = begin(cluster, job)
        cluster.wait_until(run, trains)
        (worker,) = children_of(node)
        worker.kill()
        assert outcome(cluster, run) == undisturbed
        assert node.popen.poll() is None
        assert {"worker-died", "worker-ended"} & set(node.log.read_text().split())


@pytest.mark.parametrize(
    "moment",
    [
        "CommitAccepted:3",
        pytest.param("TrainGranted:2", marks=pytest.mark.long),
        pytest.param("TaskAccepted:3", marks=pytest.mark.long),
        pytest.param("TaskGranted:4", marks=pytest.mark.long),
    ],
)
def test_the_power_of_coordinator_and_node_fails_and_the_journal_loses_what_nobody_had_been_told(
    moment: str, job: Job, undisturbed: Outcome, tmp_path: Path, crash_log: Path
) -> None:
    with Cluster(tmp_path / "c") as cluster:
        assert cluster.start_coordinator().stop() == 0
        coordinator = cluster.start_coordinator(**dies_at(f"{BEFORE_REPLY}.{moment}", crash_log))
        node = cluster.start_node("a")
        run = begin(cluster, job)
        wait_killed(coordinator)
        node.kill()
        assert tear_last_group(cluster.home, tmp_path) > 0
        cluster.start_coordinator()
        cluster.start_node("a")
        assert outcome(cluster, run) == undisturbed
    assert deaths(crash_log) == [f"{BEFORE_REPLY}.{place(moment)}"]


def test_the_only_node_frozen_until_its_lease_has_lapsed_changes_nothing(
    job: Job, undisturbed: Outcome, tmp_path: Path
) -> None:
    with Cluster(tmp_path) as cluster:
        coordinator = cluster.start_coordinator()
        node = cluster.start_node("a")
        run = begin(cluster, job)
        cluster.wait_until(run, trains)
        children = children_of(node)
        node.signal(signal.SIGSTOP)
        for child in children:
            child.suspend()
        try:
            cluster.wait_until(run, lambda info: not trains(info))
        finally:
            for child in children:
                child.resume()
            node.signal(signal.SIGCONT)
        assert outcome(cluster, run) == undisturbed
        assert [daemon.stop() for daemon in (node, coordinator)] == [0, 0]
    lapsed = [row for row in journal_rows(cluster.home) if "LeaseLapsed" in row]
    assert lapsed
    assert all('"suspect"' in row for row in lapsed)
