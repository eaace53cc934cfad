"""What a run waits for, as people are told."""

from __future__ import annotations

import pytest

from coordinator.core.events import DrainRequested, HeartbeatReceived, NodeDrained, PeerRevoked, RunCancelled
from coordinator.core.queries import run_info
from potluck.ids import Fence, RunId
from tests.unit.test_core_leases import RUN, A, B, Bench, lineage, task
from tests.unit.test_core_pausing import enrol, say

OTHER = RunId("run-2")


@pytest.fixture
def bench() -> Bench:
    return Bench()


def waits(bench: Bench, run: RunId = RUN) -> tuple[str, ...]:
    return run_info(bench.machine.state, run).waits


def test_without_any_node_a_run_says_so(bench: Bench) -> None:
    bench.plan(lineage())
    assert waits(bench) == ("a node: none has joined",)


def test_nodes_that_are_away_are_named_with_how_long_they_have_been(bench: Bench) -> None:
    enrol(bench, A, B)
    bench.open(A)
    bench.plan(lineage())
    bench.ask(A)
    missing = "node-b's name has not been seen since the coordinator started"
    assert waits(bench)[0] == f"nodes: 1 of 2 are here; {missing}"
    bench.open(B)
    bench.beat(B)
    assert not waits(bench)[0].startswith("nodes:")
    for _ in range(14):
        bench.tick(1_000)
        bench.beat(A)
    assert waits(bench)[0] == "nodes: 1 of 2 are here; node-b's name was last seen 14 s ago"
    say(bench, NodeDrained, node=B)
    assert waits(bench)[0] == "nodes: 1 of 2 are here; node-b's name is drained"
    say(bench, PeerRevoked, node=B)
    assert not waits(bench)[0].startswith("nodes:"), "nobody waits for a node that was put out"


def test_work_too_large_for_every_node_is_named_with_both_numbers(bench: Bench) -> None:
    bench.open(A)
    bench.plan(lineage(memory=3_100_000_000), task("small"))
    bench.ask(A, free_memory_bytes=2_000_000_000)
    assert waits(bench)[0] == "3.1 GB of memory for expert l0: no node has more than 2.0 GB free"


def test_where_every_node_is_busy_with_others_it_says_with_which_run_and_else_what_is_in_hand(bench: Bench) -> None:
    bench.submit(OTHER)
    bench.plan(lineage("l0"), lineage("l1"), lineage("l2"), run=OTHER)
    for node in (A, B):
        bench.open(node)
        bench.ask(node)
    bench.plan(task("score 1"), task("score 2"))
    assert waits(bench) == ("a node for score 1, score 2: all are busy, 2 with run run-2",)
    assert waits(bench, OTHER) == ("expert l0 (on node-a), expert l1 (on node-b)",)


def test_a_node_that_is_idle_and_does_not_ask_is_named(bench: Bench) -> None:
    enrol(bench, A)
    bench.open(A)
    bench.plan(task("score"))
    assert waits(bench) == ("a node for score: node-a's name has not asked yet",)


def test_work_that_failed_says_where_why_and_how_often(bench: Bench) -> None:
    bench.open(A)
    bench.plan(task("score"))
    bench.give_back(A, bench.ask(A).fence, "resource.disk-full")
    assert waits(bench)[0] == "another attempt at score: [resource.disk-full] on node-a, 1 of 3 attempts"


def test_when_all_work_is_in_hand_the_longest_is_named_with_the_time_left_at_its_holders_pace(bench: Bench) -> None:
    bench.plan(lineage("l0"), lineage("l1", flops=2.0))
    grants = {}
    for node in (A, B):
        bench.open(node)
        grants[node] = bench.ask(node)
    assert waits(bench) == ("expert l1 (on node-a), expert l0 (on node-b)",)
    bench.tick(2_000)
    for node, step in ((A, 1), (B, 2)):
        beat = {"node": node, "fence": Fence(grants[node].fence), "activity": "training", "step": step}
        bench.feed(HeartbeatReceived(now_ms=bench.now_ms, **beat))  # type: ignore[arg-type]
    assert waits(bench) == ("expert l1 (on node-a, 22 s left), expert l0 (on node-b, 10 s left)",)


def test_a_plan_that_is_being_worked_out_is_waited_for(bench: Bench) -> None:
    bench.open(A)
    assert waits(bench) == ("the coordinator to see what comes next",)


def test_a_run_that_has_ended_waits_for_nothing_and_one_of_an_ending_coordinator_for_its_return(bench: Bench) -> None:
    bench.plan(lineage())
    say(bench, DrainRequested)
    assert waits(bench) == ("the coordinator to be back: it is ending and gives out no work",)
    say(bench, RunCancelled, run=RUN)
    assert waits(bench) == ()
