"""SIGKILL at named moments: whatever dies, the run ends as if nothing had happened."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from potluck.errors import NotReachable
from tests.chaos.world import (
    Job,
    Outcome,
    assert_gone,
    begin,
    children_of,
    deaths,
    dies_at,
    journal_rows,
    outcome,
    place,
    wait_killed,
)
from tests.integration.harness import Cluster, Daemon

BEFORE_REPLY = "coordinator.after-journal-before-reply"
MID_PUT = "coordinator.mid-put"
MID_STEP = "node.mid-step"


@pytest.mark.parametrize("step", [2, pytest.param(7, marks=pytest.mark.long)])
def test_a_node_killed_in_mid_step_changes_no_checkpoint(
    step: int, job: Job, undisturbed: Outcome, tmp_path: Path, crash_log: Path
) -> None:
    with Cluster(tmp_path / "c") as cluster:
        coordinator = cluster.start_coordinator()
        other = cluster.start_node("a")
        node = cluster.start_node("b", **dies_at(f"{MID_STEP}:{step}", crash_log))
        run = begin(cluster, job)
        wait_killed(node)
        back = cluster.start_node("b")
        assert outcome(cluster, run) == undisturbed
        assert [daemon.stop() for daemon in (back, other, coordinator)] == [0, 0, 0]
    assert deaths(crash_log) == [MID_STEP]
    # Its work was free again at once: nobody waited for a lease to run out.
    assert not [row for row in journal_rows(cluster.home) if '"expired"' in row]


def test_the_others_do_the_work_of_a_node_that_never_comes_back(
    job: Job, undisturbed: Outcome, tmp_path: Path, crash_log: Path
) -> None:
    with Cluster(tmp_path / "c") as cluster:
        coordinator = cluster.start_coordinator()
        other = cluster.start_node("a")
        node = cluster.start_node("b", **dies_at(f"{MID_STEP}:3", crash_log))
        run = begin(cluster, job)
        wait_killed(node)
        assert_gone(children_of(node))
        assert outcome(cluster, run) == undisturbed
        assert [daemon.stop() for daemon in (other, coordinator)] == [0, 0]
    assert deaths(crash_log) == [MID_STEP]
    lapses = [row for row in journal_rows(cluster.home) if "LeaseLapsed" in row]
    assert lapses
    assert all('"suspect"' in row for row in lapses)


@pytest.mark.parametrize(
    "moments",
    [
        # One life after the other ends with another answer on its lips.
        [
            f"{BEFORE_REPLY}.{reply}"
            for reply in ("TaskGranted:2", "TaskAccepted:2", "TrainGranted:2", "CommitAccepted:1", "CommitAccepted:4")
        ],
        pytest.param(
            [f"{BEFORE_REPLY}.NothingToDo:1", f"{BEFORE_REPLY}:9", f"{BEFORE_REPLY}:23"], marks=pytest.mark.long
        ),
        [f"{MID_PUT}:1", f"{MID_PUT}:3", f"{MID_PUT}:8"],
    ],
    ids=["with grants and commits", "with other answers", "in the middle of puts"],
)
def test_a_coordinator_killed_over_and_over_changes_nothing(
    moments: list[str], job: Job, undisturbed: Outcome, tmp_path: Path, crash_log: Path
) -> None:
    with Cluster(tmp_path / "c") as cluster:
        first = cluster.start_coordinator()
        cluster.start_node("a")
        cluster.start_node("b")
        cluster.put_corpus(job.files)
        assert first.stop() == 0
        coordinator = cluster.start_coordinator(**dies_at(moments[0], crash_log))
        run = cluster.start_run(job.spec)
        for following in moments[1:]:
            wait_killed(coordinator)
            coordinator = cluster.start_coordinator(**dies_at(following, crash_log))
        wait_killed(coordinator)
        cluster.start_coordinator()
        assert outcome(cluster, run) == undisturbed
    assert deaths(crash_log) == [place(moment) for moment in moments]


def test_a_run_whose_start_was_not_answered_is_started_once(job: Job, tmp_path: Path, crash_log: Path) -> None:
    moment = f"{BEFORE_REPLY}.RunAccepted:1"
    with Cluster(tmp_path / "c") as cluster:
        coordinator = cluster.start_coordinator(**dies_at(moment, crash_log))
        cluster.put_corpus(job.files)
        with cluster.client() as client, pytest.raises(NotReachable):
            client.start_run(job.spec.to_json(), name="run", request_id="1")
        wait_killed(coordinator)
        cluster.start_coordinator()
        with cluster.client() as client:
            assert client.start_run(job.spec.to_json(), name="run", request_id="1").state == "started"
            assert client.start_run(job.spec.to_json(), name="run", request_id="2").state == "resumed"
            assert [run.run for run in client.list_runs().runs] == [job.spec.id]
    assert deaths(crash_log) == [place(moment)]


def test_a_coordinator_and_both_nodes_killed_in_one_run_change_nothing(
    job: Job, undisturbed: Outcome, tmp_path: Path, crash_log: Path
) -> None:
    commit = f"{BEFORE_REPLY}.CommitAccepted:3"
    with Cluster(tmp_path / "c") as cluster:
        coordinator = cluster.start_coordinator(**dies_at(commit, crash_log))
        nodes = [cluster.start_node(name, **dies_at(f"{MID_STEP}:12", crash_log)) for name in ("a", "b")]
        run = begin(cluster, job)
        # Beside the nodes: whoever dies first, the others need what comes back to reach their own moment.
        with ThreadPoolExecutor(1) as pool:
            revived = pool.submit(_revive, cluster, coordinator)
            for node in nodes:
                wait_killed(node)
            for node in nodes:
                cluster.start_node(node.name)
            revived.result()
        assert outcome(cluster, run) == undisturbed
    assert sorted(deaths(crash_log)) == [place(commit), MID_STEP, MID_STEP]


def _revive(cluster: Cluster, coordinator: Daemon) -> None:
    wait_killed(coordinator)
    cluster.start_coordinator()


@pytest.mark.long
@pytest.mark.parametrize("seed", range(6))
def test_deaths_at_random_moments_change_nothing(
    seed: int, job: Job, undisturbed: Outcome, tmp_path: Path, crash_log: Path
) -> None:
    rng = random.Random(seed)
    moments = [rng.choice((f"{BEFORE_REPLY}:{rng.randint(4, 20)}", f"{MID_PUT}:{rng.randint(1, 6)}")) for _ in range(4)]
    with Cluster(tmp_path / "c") as cluster:
        first = cluster.start_coordinator()
        cluster.start_node("a")
        node = cluster.start_node("b", **dies_at(f"{MID_STEP}:{rng.randint(1, 9)}", crash_log))
        cluster.put_corpus(job.files)
        assert first.stop() == 0
        coordinator = cluster.start_coordinator(**dies_at(moments[0], crash_log))
        run = cluster.start_run(job.spec)
        for following in moments[1:]:
            wait_killed(coordinator)
            coordinator = cluster.start_coordinator(**dies_at(following, crash_log))
        wait_killed(coordinator)
        cluster.start_coordinator()
        if node.popen.poll() is not None:
            cluster.start_node("b")
        assert outcome(cluster, run) == undisturbed
    happened = deaths(crash_log)
    assert [name for name in happened if name != MID_STEP] == [place(moment) for moment in moments]
