"""Runs that are paused and nodes that are drained: everything stops at the next commit, and goes on when it may."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator.core.effects import CommitAccepted, Denied, Done, NothingToDo, Reply, TaskAccepted, Wake
from coordinator.core.events import (
    CoordinatorResumed,
    Event,
    InviteIssued,
    NodeDrained,
    NodeRestored,
    PeerEnrolled,
    PeerRevoked,
    RunCancelled,
    RunPaused,
    RunResumed,
)
from coordinator.core.queries import find_node, node_infos, run_info
from potluck.ids import Digest, NodeId, RunId
from tests.unit.test_core_leases import RUN, A, B, Bench, lineage, task

OTHER = RunId("run-2")


@pytest.fixture
def bench() -> Bench:
    return Bench()


def say(bench: Bench, kind: type, **fields: Any) -> Any:
    event: Event = kind(now_ms=bench.now_ms, **fields)
    return bench.feed(event)


def enrol(bench: Bench, *nodes: NodeId) -> None:
    for node in nodes:
        say(bench, InviteIssued, token_digest=Digest(node), role="node", expires_unix_ms=1)
        fields = {"role": "node", "name": f"{node}'s name", "curve_public_key": node, "token_digest": Digest(node)}
        say(bench, PeerEnrolled, node=node, **fields)


def test_a_training_of_a_paused_run_yields_at_its_next_commit_and_goes_on_from_there(bench: Bench) -> None:
    bench.plan(lineage())
    grant = bench.ask(A)
    assert say(bench, RunPaused, run=RUN) == Done()
    answer = bench.commit(A, grant, 0, 2)
    assert isinstance(answer, CommitAccepted)
    assert answer.yield_lease
    assert bench.ask(A) == NothingToDo(reason="every run is paused")
    say(bench, RunResumed, run=RUN)
    assert (bench.ask(A).head_step, bench.ask(B)) == (2, NothingToDo(reason="everything there is to do is being done"))


def test_a_task_of_a_paused_run_is_done_to_its_end_and_its_plan_goes_on(bench: Bench) -> None:
    bench.plan(task("t1"), task("t2"))
    grant = bench.ask(A)
    say(bench, RunPaused, run=RUN)
    assert bench.complete(A, grant) == TaskAccepted()
    assert [type(effect).__name__ for effect in bench.effects] == ["Reply", "AdvancePlan"]
    assert isinstance(bench.ask(A), NothingToDo)


def test_a_paused_run_says_so_and_its_nodes_are_woken_when_it_goes_on(bench: Bench) -> None:
    bench.open(A)
    bench.plan(lineage())
    say(bench, RunPaused, run=RUN)
    bench.ask(A)
    bench.tick(4_000)
    assert not [effect for effect in bench.effects if isinstance(effect, Wake)]
    info = run_info(bench.machine.state, RUN)
    assert (info.state, info.paused, info.stage) == ("running", True, "testing")
    assert info.waits == ("`run resume`: it is paused",)
    say(bench, RunResumed, run=RUN)
    assert Wake(node=A) in bench.effects


def test_what_another_run_wants_too_is_done_for_that_one(bench: Bench) -> None:
    bench.plan(lineage())
    bench.submit(OTHER)
    bench.plan(lineage(), run=OTHER)
    say(bench, RunPaused, run=RUN)
    grant = bench.ask(A)
    assert not bench.commit(A, grant, 0, 2).yield_lease
    say(bench, RunPaused, run=OTHER)
    assert bench.commit(A, grant, 2, 4, parent="c2").yield_lease


def test_a_pause_outlives_a_restart_and_ends_when_the_spec_is_started_again(bench: Bench) -> None:
    bench.plan(lineage())
    say(bench, RunPaused, run=RUN)
    say(bench, CoordinatorResumed, boot_id="c2")
    assert isinstance(bench.ask(A), NothingToDo)
    bench.now_ms += 1
    bench.submit(RUN)
    assert bench.ask(A).lineage.id == "l0"


def test_a_run_that_has_ended_cannot_be_paused(bench: Bench) -> None:
    say(bench, RunCancelled, run=RUN)
    denied = say(bench, RunPaused, run=RUN), say(bench, RunPaused, run=OTHER)
    assert [one.error_id for one in denied if isinstance(one, Denied)] == ["refused.run-ended", "refused.no-such-run"]


def test_a_drained_node_trains_to_its_next_commit_and_gets_no_more(bench: Bench) -> None:
    enrol(bench, A, B)
    bench.plan(lineage("l0"), lineage("l1"))
    grant = bench.ask(A)
    assert say(bench, NodeDrained, node=A) == Done()
    assert bench.commit(A, grant, 0, 2).yield_lease
    assert "drained" in bench.ask(A).reason
    assert bench.ask(B).lineage.id == "l1"
    bench.open(A)
    assert [info.drained for info in node_infos(bench.machine.state)] == [True, False]


def test_a_drained_node_is_woken_only_when_it_is_restored(bench: Bench) -> None:
    enrol(bench, A)
    bench.open(A)
    bench.plan(task("t1"))
    say(bench, NodeDrained, node=A)
    bench.ask(A)
    bench.tick(4_000)
    assert not [effect for effect in bench.effects if isinstance(effect, Wake)]
    say(bench, NodeRestored, node=A)
    assert bench.effects == [Reply(answer=Done()), Wake(node=A)]
    assert bench.ask(A).task.id == "t1"


def test_only_a_node_that_is_trusted_can_be_drained(bench: Bench) -> None:
    enrol(bench, A)
    say(bench, PeerRevoked, node=A)
    denied = say(bench, NodeDrained, node=A), say(bench, NodeDrained, node=B)
    assert [one.error_id for one in denied if isinstance(one, Denied)] == ["refused.no-such-node"] * 2


def test_a_node_is_found_by_id_prefix_or_name_and_not_when_two_fit(bench: Bench) -> None:
    enrol(bench, A, B)
    state = bench.machine.state
    assert [find_node(state, text) for text in (A, "node-b", "node-a's name")] == [A, B, A]
    assert [find_node(state, text) for text in ("node", "", "c")] == [None, None, None]
