"""SIGTERM once drains, twice ends at once; neither leaves a process behind or a state that cannot go on."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.world import Job, Outcome, assert_group_gone, begin, outcome, stop_twice
from tests.integration.harness import Cluster

AT_ONCE = 130


def test_a_run_goes_on_after_its_only_node_was_asked_to_end_once_and_twice(
    job: Job, undisturbed: Outcome, tmp_path: Path
) -> None:
    with Cluster(tmp_path) as cluster:
        cluster.start_coordinator()
        node = cluster.start_node("a")
        run = begin(cluster, job)
        cluster.wait_until(run, lambda info: info.tasks_done >= 1)
        assert node.stop() == 0
        assert_group_gone(node)
        node = cluster.start_node("a")
        cluster.wait_until(run, lambda info: info.tasks_done >= 3)
        assert stop_twice(node) == AT_ONCE
        assert_group_gone(node)
        cluster.start_node("a")
        assert outcome(cluster, run) == undisturbed


def test_a_run_goes_on_after_its_coordinator_was_asked_to_end_once_and_twice(
    job: Job, undisturbed: Outcome, tmp_path: Path
) -> None:
    with Cluster(tmp_path) as cluster:
        coordinator = cluster.start_coordinator()
        cluster.start_node("a")
        run = begin(cluster, job)
        cluster.wait_until(run, lambda info: info.tasks_done >= 1)
        assert coordinator.stop() == 0
        assert "draining" in coordinator.tail()
        assert_group_gone(coordinator)
        coordinator = cluster.start_coordinator()
        cluster.wait_until(run, lambda info: info.tasks_done >= 4)
        assert stop_twice(coordinator) == 0
        assert_group_gone(coordinator)
        cluster.start_coordinator()
        assert outcome(cluster, run) == undisturbed
        assert "Traceback" not in cluster.tails()


def test_a_router_ends_once_and_twice_and_comes_back_as_itself(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster:
        cluster.start_coordinator()
        first = cluster.start_router("r")
        assert first.stop() == 0
        assert_group_gone(first)
        second = cluster.start_router("r")
        assert stop_twice(second) == AT_ONCE
        assert_group_gone(second)
        third = cluster.start_router("r")
    assert first.ready["node_id"] == second.ready["node_id"] == third.ready["node_id"]
