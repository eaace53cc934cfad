"""The order of work, and when a training makes room for it."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator.core.effects import CommitAccepted, NothingToDo, Reply, TaskGranted, TrainGranted
from coordinator.core.events import (
    CheckpointCommitted,
    CoordinatorResumed,
    LeaseRequested,
    LeaseReturned,
    PlanAdvanced,
    RunSubmitted,
    SessionOpened,
    TaskCompleted,
)
from coordinator.core.machine import Machine
from coordinator.core.queries import run_info
from coordinator.core.values import LineageWanted, Running, TaskWanted
from potluck.ids import Digest, LineageId, NodeId, RunId, TaskId

RUN = RunId("run-1")


def lineage(name: str, *, flops: float = 1.0, rank: int = 0, memory: int = 0) -> LineageWanted:
    """100 steps in one segment, committed every tenth."""
    return LineageWanted(
        id=LineageId(name),
        recipe_json=name,
        segments_json=(name,),
        profile_json="{}",
        total_steps=100,
        known_steps=100,
        commit_every=10,
        flops_per_step=flops,
        memory_bytes=memory,
        role="expert",
        label=name,
        rank=rank,
    )


def task(name: str, *, rank: int = 1, inputs: tuple[str, ...] = ()) -> TaskWanted:
    named = tuple((digest, Digest(digest)) for digest in inputs)
    return TaskWanted(id=TaskId(name), kind="score", params_json="{}", inputs=named, label=name, rank=rank)


class Queue:
    """A machine that is only asked who gets what."""

    def __init__(self) -> None:
        self.machine = Machine()
        self.now_ms = 0
        self.next_id = 0
        self.machine.handle(CoordinatorResumed(now_ms=0, boot_id="c"))

    def run(self, *works: LineageWanted | TaskWanted, run: RunId = RUN, priority: int = 0) -> None:
        if run not in self.machine.durable.runs:
            submitted = {"request_id": "r", "spec_json": "{}", "corpus_json": "{}", "name": run}
            self.machine.handle(RunSubmitted(now_ms=0, unix_ms=0, run=run, priority=priority, **submitted))
        self.machine.handle(
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

    def ask(self, node: str = "a", *, free: int = 1 << 30, held: tuple[str, ...] = ()) -> Any:
        self.next_id += 1
        event = LeaseRequested(
            now_ms=self.now_ms,
            node=NodeId(node),
            request_id=self.next_id,
            boot_id="b",
            free_memory_bytes=free,
            held=tuple(Digest(digest) for digest in held),
            host="machine",
        )
        return self._answer(event)

    def names(self, *nodes: str) -> list[str]:
        """What each node gets, by label; "" for nothing."""
        return [label(self.ask(node)) for node in nodes]

    def commit(self, node: str, grant: TrainGranted, end: int) -> CommitAccepted:
        self.next_id += 1
        chain = self.machine.durable.lineages[grant.lineage.id]
        event = CheckpointCommitted(
            now_ms=self.now_ms,
            node=NodeId(node),
            request_id=self.next_id,
            fence=grant.fence,
            lineage=grant.lineage.id,
            parent=chain.head,
            start_step=chain.head_step,
            end_step=end,
            child=Digest(f"{grant.lineage.id}@{end}"),
            weights=Digest(f"w-{grant.lineage.id}@{end}"),
            optimizer=Digest("o"),
            figures={},
        )
        answer = self._answer(event)
        assert isinstance(answer, CommitAccepted)
        return answer

    def _answer(self, event: Any) -> Any:
        reply = self.machine.handle(event)[0]
        assert isinstance(reply, Reply)
        return reply.answer


def label(answer: Any) -> str:
    if isinstance(answer, TrainGranted):
        return answer.lineage.label
    return answer.task.label if isinstance(answer, TaskGranted) else ""


@pytest.fixture
def queue() -> Queue:
    return Queue()


def test_classes_go_from_what_holds_lineages_up_to_what_can_wait(queue: Queue) -> None:
    queue.run(
        task("eval", rank=2),
        lineage("control", rank=1),
        task("score", rank=1),
        lineage("expert"),
        task("assign", rank=0),
    )
    assert queue.names(*"abcdef") == ["assign", "expert", "score", "control", "eval", ""]


def test_of_lineages_the_longest_remaining_goes_first(queue: Queue) -> None:
    works = [lineage(name, flops=flops) for name, flops in (("router", 0.1), ("e0", 1), ("e1", 1.1), ("dense", 4))]
    queue.run(*works)
    assert queue.names(*"abcd") == ["dense", "e1", "e0", "router"]


def test_of_nearly_equal_lineages_a_node_gets_the_one_whose_head_it_holds(queue: Queue) -> None:
    queue.run(lineage("l0", flops=1.0), lineage("l1", flops=0.99), lineage("l2", flops=0.5))
    grant = queue.ask("a")
    queue.commit("a", grant, 10)
    queue.machine.handle(
        LeaseReturned(now_ms=0, node=NodeId("a"), request_id=0, fence=grant.fence, error_id="", message="")
    )
    assert label(queue.ask("b")) == "l1"
    assert label(queue.ask("a", held=("w-l0@10",))) == "l0"


def test_of_tasks_a_node_gets_the_one_most_of_whose_inputs_it_holds(queue: Queue) -> None:
    queue.run(task("t0", inputs=("x",)), task("t1", inputs=("y", "z")), task("t2", inputs=("y", "q")))
    assert label(queue.ask("a", held=("y", "z"))) == "t1"
    assert label(queue.ask("b")) == "t0"


def test_an_ordinary_task_that_waited_a_minute_goes_before_lineages(queue: Queue) -> None:
    queue.run(task("probe", rank=1), task("purity", rank=2), *(lineage(f"l{i}") for i in range(3)))
    assert label(queue.ask("a")) == "l0"
    queue.now_ms = 60_000
    assert queue.names("b", "c") == ["probe", "l1"]


def test_work_goes_only_to_a_node_whose_memory_fits_it_and_the_run_says_so(queue: Queue) -> None:
    queue.run(lineage("large", memory=3 << 30))
    small = {"version": "", "hostname": "", "cores": 1, "memory_bytes": 1}
    queue.machine.handle(SessionOpened(now_ms=0, node=NodeId("a"), role="node", boot_id="b", **small))  # type: ignore[arg-type]
    answer = queue.ask("a", free=1 << 30)
    assert isinstance(answer, NothingToDo)
    assert "large needs 3221225472 bytes" in answer.reason
    (wait,) = run_info(queue.machine.state, RUN).waits
    assert wait == "3.2 GB of memory for large: no node has more than 1.1 GB free"
    assert label(queue.ask("b", free=4 << 30)) == "large"


# --- yielding ---------------------------------------------------------------------------------


def test_a_training_yields_at_a_commit_to_a_task_that_holds_lineages_up(queue: Queue) -> None:
    queue.run(lineage("dense"))
    grant = queue.ask("a")
    queue.run(lineage("dense"), task("score", rank=0), task("later", rank=2))
    assert not queue.commit("a", grant, 10).yield_lease, "an idle node is there sooner"
    queue.now_ms = 1_000
    assert queue.commit("a", grant, 20).yield_lease
    assert label(queue.ask("a")) == "score"


def test_a_training_yields_to_a_longer_one_but_not_to_an_equal_or_shorter_one(queue: Queue) -> None:
    queue.run(lineage("l0"), lineage("l1"))
    grant = queue.ask("a")
    queue.now_ms = 5_000
    assert not queue.commit("a", grant, 10).yield_lease, "nine tenths left is nearly as much"
    assert queue.commit("a", grant, 30).yield_lease
    assert label(queue.ask("a", held=("w-l0@30",))) == "l1"


def test_a_training_does_not_yield_to_work_that_does_not_fit_its_node(queue: Queue) -> None:
    queue.run(lineage("l0"))
    grant = queue.ask("a", free=1 << 20)
    queue.run(lineage("l0"), lineage("large", flops=100, memory=2 << 20))
    queue.now_ms = 5_000
    assert not queue.commit("a", grant, 10).yield_lease


def test_a_control_yields_to_an_expert_and_an_expert_never_to_a_control(queue: Queue) -> None:
    queue.run(lineage("control", rank=1))
    grant = queue.ask("a")
    queue.run(lineage("control", rank=1), lineage("expert", flops=0.01))
    queue.now_ms = 5_000
    assert queue.commit("a", grant, 10).yield_lease
    expert = queue.ask("a")
    queue.now_ms = 10_000
    assert not queue.commit("a", expert, 90).yield_lease


# --- several runs -----------------------------------------------------------------------------


def test_runs_share_nodes_by_weight_and_a_step_of_priority_doubles_it(queue: Queue) -> None:
    for run, priority in (("run-1", 1), ("run-2", 0)):
        works = [lineage(f"{run}-l{i}") for i in range(6)]
        queue.run(*works, run=RunId(run), priority=priority)
    got = [name.split("-l")[0] for name in queue.names(*"abcdef")]
    assert (got.count("run-1"), got.count("run-2")) == (4, 2)


def test_two_runs_take_turns_on_one_node(queue: Queue) -> None:
    queue.run(lineage("l1"))
    grant = queue.ask("a")
    queue.run(lineage("l2"), run=RunId("run-2"))
    turns = []
    for _ in range(6):
        queue.now_ms += 2_000
        turns.append(grant.lineage.label)
        end = queue.machine.durable.lineages[grant.lineage.id].head_step + 10
        if queue.commit("a", grant, end).yield_lease:
            grant = queue.ask("a")
    assert turns == ["l1", "l2", "l1", "l2", "l1", "l2"]


@pytest.mark.parametrize("priority", [-1, 0, 1, 2])
def test_runs_take_turns_on_the_part_of_a_node_that_their_weights_leave_over(queue: Queue, priority: int) -> None:
    """Two nodes: one for each run would be even, whatever the weights."""
    queue.run(*(lineage(f"a{i}") for i in range(2)))
    queue.run(*(lineage(f"b{i}") for i in range(2)), run=RunId("run-2"), priority=priority)
    grants = {node: queue.ask(node) for node in ("n1", "n2")}
    heads = dict.fromkeys(("a0", "a1", "b0", "b1"), 0)
    for turn in range(24):
        queue.now_ms += 2_000
        node = ("n1", "n2")[turn % 2]
        name = grants[node].lineage.label
        heads[name] += 5
        if queue.commit(node, grants[node], heads[name]).yield_lease:
            grants[node] = queue.ask(node)
    trained = {run: heads[f"{run}0"] + heads[f"{run}1"] for run in "ab"}
    assert trained["b"] / trained["a"] == pytest.approx(2.0**priority, rel=0.25)


def test_work_that_two_runs_want_is_done_once_and_both_plans_hear_of_it(queue: Queue) -> None:
    queue.run(task("shared"))
    queue.run(task("shared"), run=RunId("run-2"))
    assert queue.names("a", "b") == ["shared", ""]
    effects = queue.machine.handle(
        TaskCompleted(
            now_ms=0,
            node=NodeId("a"),
            request_id=1,
            fence=next(iter(queue.machine.durable.leases)),
            task=TaskId("shared"),
            blobs=(),
            figures={"n": 1},
        )
    )
    assert [getattr(effect, "run", None) for effect in effects[1:]] == ["run-1", "run-2"]
