"""Whoever dies between an enrolment's question and its kept answer: the same join string ends it."""

from __future__ import annotations

import signal
from pathlib import Path

from potluck.errors import NotReachable
from tests.chaos.world import deaths, dies_at, journal_rows, refused, wait_killed
from tests.integration.harness import Cluster

AT_HUB, AT_NODE = "coordinator.mid-enrol", "node.mid-enrol"


def test_a_join_string_is_not_lost_with_a_death_on_either_side_in_the_middle_of_an_enrolment(
    tmp_path: Path, crash_log: Path
) -> None:
    with Cluster(tmp_path / "c") as cluster:
        assert cluster.start_coordinator().stop() == 0  # the administrator enrols at the first start
        coordinator = cluster.start_coordinator(**dies_at(AT_HUB, crash_log))
        join = cluster.invite("node")
        command = ("expert_node", "--home", str(cluster.folder / "n"), "--name", "n", "--join", join)
        unanswered = refused(*command)
        wait_killed(coordinator)
        assert unanswered.exit_code == NotReachable.exit_code
        coordinator = cluster.start_coordinator()
        assert refused(*command, environment=dies_at(AT_NODE, crash_log)).exit_code == -signal.SIGKILL

        node = cluster.start_node("n", "--join", join)
        other = refused("expert_node", "--home", str(cluster.folder / "other"), "--join", join)
        assert other.says("join.token-spent")
        with cluster.client() as client:
            assert [info.node for info in client.list_nodes().nodes] == [node.ready["node_id"]]
        assert [daemon.stop() for daemon in (node, coordinator)] == [0, 0]
    assert deaths(crash_log) == [AT_HUB, AT_NODE]
    enrolled = [row for row in journal_rows(cluster.home) if "PeerEnrolled" in row]
    assert len(enrolled) == 2, enrolled  # the administrator, and one node
