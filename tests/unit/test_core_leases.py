"""Leases and results: who gets what, when it ends, what a late commit is worth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from coordinator.core.effects import (
    Answer,
    CommitAccepted,
    CommitRefused,
    Denied,
    Effect,
    NoteDivergence,
    NothingToDo,
    Record,
    RenewAnswer,
    Reply,
    Revoke,
    SendDrain,
    TaskAccepted,
    TaskGranted,
    TaskRefused,
    TrainGranted,
    Wake,
)
from coordinator.core.events import (
    CheckpointCommitted,
    CoordinatorResumed,
    DrainRequested,
    Event,
    HeartbeatReceived,
    LeaseLapsed,
    LeaseRenewed,
    LeaseRequested,
    LeaseReturned,
    PlanAdvanced,
    RunCancelled,
    RunSubmitted,
    SessionClosed,
    SessionOpened,
    TaskCompleted,
    TimePassed,
)
from coordinator.core.invariants import check
from coordinator.core.machine import Machine
from coordinator.core.queries import run_info
from coordinator.core.values import LineageWanted, Running, TaskWanted
from potluck.ids import NO_DIGEST, Digest, Fence, LineageId, NodeId, RunId, TaskId

RUN = RunId("run-1")
A, B = NodeId("node-a"), NodeId("node-b")


def lineage(
    name: str = "l0", *, segments: int = 1, rank: int = 0, flops: float = 1.0, memory: int = 0
) -> LineageWanted:
    """Three segments of four steps in all, of which `segments` are known; commits every two steps."""
    return LineageWanted(
        id=LineageId(name),
        recipe_json=name,
        segments_json=tuple(f"{name}/{k}" for k in range(segments)),
        profile_json="{}",
        total_steps=12,
        known_steps=4 * segments,
        commit_every=2,
        flops_per_step=flops,
        memory_bytes=memory,
        role="expert",
        label=f"expert {name}",
        rank=rank,
    )


def task(name: str, *, rank: int = 1, inputs: tuple[str, ...] = (), memory: int = 0) -> TaskWanted:
    named = tuple((f"input-{i}", Digest(digest)) for i, digest in enumerate(inputs))
    return TaskWanted(
        id=TaskId(name), kind="score", params_json="{}", inputs=named, label=name, rank=rank, memory_bytes=memory
    )


class Bench:
    """A machine with one run; every event is checked against the invariants."""

    def __init__(self) -> None:
        self.machine = Machine()
        self.now_ms = 0
        self.next_id = 0
        self.effects: list[Effect] = []
        self.feed(CoordinatorResumed(now_ms=0, boot_id="c"))
        self.submit(RUN)

    def feed(self, event: Event) -> Answer | None:
        self.effects = self.machine.handle(event)
        assert check(self.machine.state) == []
        first = self.effects[0] if self.effects else None
        return first.answer if isinstance(first, Reply) else None

    def submit(self, run: RunId, priority: int = 0) -> Answer | None:
        return self.feed(
            RunSubmitted(
                now_ms=self.now_ms,
                unix_ms=0,
                request_id=f"r{self.now_ms}",
                run=run,
                spec_json="{}",
                corpus_json="{}",
                name=run,
                priority=priority,
            )
        )

    def plan(self, *works: LineageWanted | TaskWanted, run: RunId = RUN) -> None:
        self.feed(
            PlanAdvanced(
                now_ms=self.now_ms,
                run=run,
                lineages=tuple(one for one in works if isinstance(one, LineageWanted)),
                tasks=tuple(one for one in works if isinstance(one, TaskWanted)),
                publish=(),
                stage="testing",
                outcome=Running(),
            )
        )

    def ask(self, node: NodeId = A, **fields: Any) -> Any:
        self.next_id += 1
        values = {"request_id": self.next_id, "boot_id": "b", "free_memory_bytes": 1 << 30, **fields}
        return self.feed(LeaseRequested(now_ms=self.now_ms, node=node, **values))

    def commit(self, node: NodeId, grant: TrainGranted, start: int, end: int, parent: str = "", child: str = "") -> Any:
        self.next_id += 1
        return self.feed(
            CheckpointCommitted(
                now_ms=self.now_ms,
                node=node,
                request_id=self.next_id,
                fence=grant.fence,
                lineage=grant.lineage.id,
                parent=Digest(parent) if parent else NO_DIGEST,
                start_step=start,
                end_step=end,
                child=Digest(child or f"c{end}"),
                weights=Digest(f"w{end}"),
                optimizer=Digest(f"o{end}"),
                figures={},
            )
        )

    def complete(self, node: NodeId, grant: TaskGranted, blob: str = "x") -> Any:
        self.next_id += 1
        return self.feed(
            TaskCompleted(
                now_ms=self.now_ms,
                node=node,
                request_id=self.next_id,
                fence=grant.fence,
                task=grant.task.id,
                blobs=(("column", Digest(blob)),),
                figures={},
            )
        )

    def give_back(self, node: NodeId, fence: Fence, error_id: str = "") -> None:
        event = LeaseReturned(
            now_ms=self.now_ms, node=node, request_id=0, fence=fence, error_id=error_id, message="it broke"
        )
        self.feed(event)

    def open(self, node: NodeId, role: str = "node", boot: str = "b") -> None:
        fields = {"version": "0", "hostname": "h", "cores": 1, "memory_bytes": 1}
        self.feed(SessionOpened(now_ms=self.now_ms, node=node, role=role, boot_id=boot, **fields))  # type: ignore[arg-type]

    def beat(self, node: NodeId, fence: Fence = Fence(0)) -> None:
        self.feed(HeartbeatReceived(now_ms=self.now_ms, node=node, fence=fence, activity="training"))

    def tick(self, by_ms: int) -> list[LeaseLapsed]:
        """Time passes; lapses that the machine asks for are journalled at once."""
        self.now_ms += by_ms
        self.feed(TimePassed(now_ms=self.now_ms))
        return self.journal()

    def journal(self) -> list[LeaseLapsed]:
        lapses = [e.event for e in self.effects if isinstance(e, Record) and isinstance(e.event, LeaseLapsed)]
        for lapse in lapses:
            self.feed(lapse)
        return lapses


@pytest.fixture
def bench() -> Bench:
    return Bench()


# --- requests ---------------------------------------------------------------------------------


def test_the_same_request_gets_the_same_answer_and_no_second_lease(bench: Bench) -> None:
    bench.plan(task("t0"), task("t1"))
    first = bench.ask(A, request_id=5)
    assert bench.ask(A, request_id=5) == first
    assert len(bench.machine.durable.leases) == 1


def test_an_older_request_is_denied_and_changes_nothing(bench: Bench) -> None:
    bench.plan(task("t0"), task("t1"))
    granted = bench.ask(A, request_id=5)
    answer = bench.ask(A, request_id=4)
    assert isinstance(answer, Denied)
    assert answer.error_id == "refused.stale-request"
    assert list(bench.machine.durable.leases) == [granted.fence]


def test_a_new_process_of_a_node_frees_what_the_old_one_held_and_the_old_one_is_denied(bench: Bench) -> None:
    bench.plan(lineage())
    old = bench.ask(A, request_id=7)
    new = bench.ask(A, request_id=1, boot_id="b2")
    assert isinstance(new, TrainGranted)
    assert new.fence > old.fence
    assert bench.ask(A, request_id=8).error_id == "refused.old-process"


def test_a_repeated_commit_is_answered_alike_after_the_head_moved_on(bench: Bench) -> None:
    bench.plan(lineage(segments=2))
    grant = bench.ask(A)
    first = bench.commit(A, grant, 0, 2)
    bench.next_id -= 1
    assert bench.commit(A, grant, 0, 2) == first
    bench.commit(A, grant, 2, 4, "c2")
    assert isinstance(bench.commit(A, grant, 0, 2), CommitAccepted), "it lies in the chain"


# --- commits ----------------------------------------------------------------------------------


def test_a_stale_fence_wins_while_its_parent_is_the_head_and_is_sent_for_a_new_lease(bench: Bench) -> None:
    bench.plan(lineage())
    grant = bench.ask(A)
    assert [lapse.reason for lapse in bench.tick(30_000)] == ["expired"]
    assert bench.commit(A, grant, 0, 2) == CommitAccepted(head_step=2, head=Digest("c2"), yield_lease=True)


def test_a_commit_is_refused_once_the_head_has_moved_and_told_where_it_is(bench: Bench) -> None:
    bench.plan(lineage())
    late = bench.ask(A)
    bench.tick(30_000)
    holder = bench.ask(B)
    bench.commit(B, holder, 0, 2, child="other")
    answer = bench.commit(A, late, 0, 2)
    assert isinstance(answer, CommitRefused)
    assert (answer.head_step, answer.head) == (2, "other")


def test_a_commit_at_the_right_step_on_another_parent_is_refused(bench: Bench) -> None:
    bench.plan(lineage())
    grant = bench.ask(A)
    bench.commit(A, grant, 0, 2)
    assert isinstance(bench.commit(A, grant, 2, 4, "another c2"), CommitRefused)


def test_the_equal_commit_of_two_holders_is_accepted_from_both_and_stands_once(bench: Bench) -> None:
    bench.plan(lineage())
    late = bench.ask(A)
    bench.tick(30_000)
    holder = bench.ask(B)
    assert bench.commit(A, late, 0, 2).yield_lease
    assert not bench.commit(B, holder, 0, 2).yield_lease
    assert len(bench.machine.durable.lineages[LineageId("l0")].commits) == 1


@pytest.mark.parametrize(("start", "end"), [(0, 5), (0, 0), (2, 4)])
def test_steps_beyond_what_is_known_or_off_the_head_are_refused(bench: Bench, start: int, end: int) -> None:
    bench.plan(lineage())
    grant = bench.ask(A)
    assert isinstance(bench.commit(A, grant, start, end), CommitRefused)
    assert not bench.machine.durable.leases, "a refused holder starts anew from the head"


def test_the_lease_ends_with_its_target_and_a_new_segment_makes_a_new_one(bench: Bench) -> None:
    bench.plan(lineage())
    grant = bench.ask(A)
    assert bench.commit(A, grant, 0, 4).yield_lease
    assert isinstance(bench.ask(A), NothingToDo)
    bench.plan(lineage(segments=2))
    again = bench.ask(A)
    assert (again.head_step, again.target_step, again.weights) == (4, 8, "w4")


def test_a_cancelled_run_takes_its_work_back_and_a_resumed_one_goes_on_from_the_head(bench: Bench) -> None:
    bench.plan(lineage())
    grant = bench.ask(A)
    bench.commit(A, grant, 0, 2)
    bench.feed(RunCancelled(now_ms=1, run=RUN))
    assert Revoke(node=A, fence=grant.fence, reason="no run wants this work any more") in bench.effects
    assert isinstance(bench.commit(A, grant, 2, 4, "c2"), CommitRefused)
    bench.now_ms = 2
    assert getattr(bench.submit(RUN), "state", "") == "resumed"
    bench.plan(lineage())
    assert bench.ask(A).head_step == 2


# --- tasks ------------------------------------------------------------------------------------


def test_the_first_result_of_a_task_stands_and_another_one_is_noted(bench: Bench) -> None:
    bench.plan(task("t0"))
    slow = bench.ask(A)
    bench.tick(30_000)
    quick = bench.ask(B)
    assert bench.complete(B, quick, "x") == TaskAccepted()
    assert bench.complete(A, slow, "y") == TaskAccepted(divergent=True)
    assert NoteDivergence(task=TaskId("t0"), node=A) in bench.effects
    result = bench.machine.results_of(RUN).task(TaskId("t0"))
    assert result is not None
    assert result.blobs == {"column": "x"}


def test_a_result_under_a_dead_lease_is_taken_and_the_new_holder_is_stopped(bench: Bench) -> None:
    bench.plan(task("t0"))
    slow = bench.ask(A)
    bench.tick(30_000)
    holder = bench.ask(B)
    assert bench.complete(A, slow) == TaskAccepted()
    assert [(e.node, e.fence) for e in bench.effects if isinstance(e, Revoke)] == [(B, holder.fence)]


def test_a_task_that_no_run_wants_any_more_is_refused_and_its_holder_revoked(bench: Bench) -> None:
    bench.plan(task("t0"))
    grant = bench.ask(A)
    bench.plan(task("t1"))
    assert any(isinstance(e, Revoke) and e.fence == grant.fence for e in bench.effects)
    assert isinstance(bench.complete(A, grant), TaskRefused)


def test_three_failed_attempts_fail_the_run_with_the_last_error_and_a_label(bench: Bench) -> None:
    bench.plan(task("score chunk 4 with router 0"))
    for node in (A, B, A):
        bench.give_back(node, bench.ask(node).fence, "resource.memory")
    info = run_info(bench.machine.state, RUN)
    assert (info.state, info.error_id) == ("failed", "resource.memory")
    assert "score chunk 4 with router 0: it broke" in info.reason


def test_work_that_failed_on_a_node_goes_to_it_last_and_good_order_costs_nothing(bench: Bench) -> None:
    bench.plan(task("t0"), task("t1"))
    bench.give_back(A, bench.ask(A).fence, "data.digest-mismatch")
    assert bench.ask(A).task.id == "t1"
    for _ in range(5):
        bench.give_back(A, bench.ask(A).fence)
    assert run_info(bench.machine.state, RUN).state == "running"


def test_a_commit_forgets_the_failures_before_it(bench: Bench) -> None:
    bench.plan(lineage())
    for _ in range(2):
        bench.give_back(A, bench.ask(A).fence, "bug.worker")
    bench.commit(A, bench.ask(A), 0, 2)
    bench.give_back(A, bench.ask(A).fence, "bug.worker")
    assert run_info(bench.machine.state, RUN).state == "running"


# --- lapses -----------------------------------------------------------------------------------


def test_heartbeats_and_renewals_that_carry_the_fence_extend_the_term(bench: Bench) -> None:
    bench.plan(lineage())
    bench.open(A)
    grant = bench.ask(A)
    for _ in range(20):
        assert bench.tick(4_000) == []
        bench.beat(A, grant.fence)
    assert bench.feed(LeaseRenewed(now_ms=bench.now_ms, node=A, fence=grant.fence)) == RenewAnswer(
        renewed=True, reason=""
    )


def test_five_seconds_of_silence_let_the_work_go_to_another_node_and_are_asked_for_once(bench: Bench) -> None:
    bench.plan(lineage())
    bench.open(A)
    grant = bench.ask(A)
    bench.now_ms = 5_001
    bench.feed(TimePassed(now_ms=5_001))
    lapse = LeaseLapsed(now_ms=5_001, fence=grant.fence, reason="suspect")
    assert bench.effects == [Record(event=lapse)]
    bench.feed(TimePassed(now_ms=5_100))
    assert bench.effects == []
    bench.feed(lapse)
    assert isinstance(bench.ask(B), TrainGranted)


@pytest.mark.parametrize(("orderly", "reason"), [(False, "suspect"), (True, "left")])
def test_a_closed_session_lets_the_lease_go_at_once(bench: Bench, orderly: bool, reason: str) -> None:
    bench.plan(lineage())
    bench.open(A)
    bench.ask(A)
    bench.feed(SessionClosed(now_ms=1, node=A, boot_id="b", orderly=orderly))
    assert [lapse.reason for lapse in bench.journal()] == [reason]


def test_the_late_end_of_an_old_stream_or_process_harms_nobody(bench: Bench) -> None:
    bench.plan(lineage())
    bench.open(A)
    bench.open(A)
    bench.ask(A)
    bench.feed(SessionClosed(now_ms=1, node=A, boot_id="b", orderly=False))
    assert bench.effects == []
    bench.feed(SessionClosed(now_ms=1, node=A, boot_id="before", orderly=False))
    assert bench.effects == []


def test_a_restart_gives_every_lease_its_whole_term_again(bench: Bench) -> None:
    bench.plan(lineage())
    bench.ask(A)
    bench.feed(CoordinatorResumed(now_ms=900_000, boot_id="c2"))
    bench.now_ms = 900_000
    assert bench.tick(29_999) == []
    assert len(bench.tick(1)) == 1


def test_a_node_that_works_on_under_a_dead_lease_is_stopped_only_if_it_is_useless(bench: Bench) -> None:
    bench.plan(lineage())
    grant = bench.ask(A)
    bench.tick(30_000)
    bench.beat(A, grant.fence)
    assert bench.effects == []
    bench.ask(B)
    bench.beat(A, grant.fence)
    assert bench.effects == [Revoke(node=A, fence=grant.fence, reason="another node has taken over")]
    bench.beat(A, grant.fence)
    assert bench.effects == []


def test_idle_nodes_are_woken_when_work_appears_and_only_as_many_as_there_is_work(bench: Bench) -> None:
    for node in (A, B):
        bench.open(node)
        assert isinstance(bench.ask(node), NothingToDo)
    bench.plan(task("t0"))
    assert [e for e in bench.effects if isinstance(e, Wake)] == [Wake(node=A)]
    bench.now_ms += 2_000
    bench.feed(TimePassed(now_ms=bench.now_ms))
    assert Wake(node=A) in bench.effects, "a lost wake-up is repeated"


def test_draining_stops_grants_tells_nodes_and_ends_leases_at_the_next_commit(bench: Bench) -> None:
    bench.plan(lineage(), task("t0"))
    bench.open(A)
    grant = bench.ask(A)
    bench.feed(DrainRequested(now_ms=1))
    assert [e.node for e in bench.effects if isinstance(e, SendDrain)] == [A]
    assert isinstance(bench.ask(B), NothingToDo)
    assert bench.commit(A, grant, 0, 2).yield_lease
    bench.feed(CoordinatorResumed(now_ms=2, boot_id="c2"))
    assert isinstance(bench.ask(B), TaskGranted | TrainGranted)


# --- what is held is seen ---------------------------------------------------------------------


def _moved_head(machine: Machine) -> None:
    machine.durable.lineages[LineageId("l0")].commits.pop(0)


def _second_lease(machine: Machine) -> None:
    lease = next(iter(machine.durable.leases.values()))
    machine.durable.leases[Fence(99)] = lease


def _lost_deadline(machine: Machine) -> None:
    machine.ephemeral.deadlines_ms.clear()


def _too_far(machine: Machine) -> None:
    one = machine.durable.lineages[LineageId("l0")]
    one.wanted = lineage(segments=0)


def _forgotten_want(machine: Machine) -> None:
    machine.durable.lineages[LineageId("l0")].runs.clear()


@pytest.mark.parametrize(
    ("plant", "found"),
    [
        (_moved_head, "I1"),
        (_too_far, "I2"),
        (_second_lease, "I3"),
        (_forgotten_want, "I4"),
        (_lost_deadline, "I9"),
    ],
)
def test_planted_mistakes_are_found(bench: Bench, plant: Callable[[Machine], None], found: str) -> None:
    bench.plan(lineage(segments=2))
    grant = bench.ask(A)
    bench.commit(A, grant, 0, 2)
    bench.commit(A, grant, 2, 4, "c2")
    plant(bench.machine)
    assert any(problem.startswith(found) for problem in check(bench.machine.state))
