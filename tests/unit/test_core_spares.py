"""Second leases: who may have one, what they rest on, and how they end."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator.core.effects import CommitAccepted, CommitRefused, NothingToDo, Revoke, TaskGranted, TrainGranted, Wake
from coordinator.core.events import CoordinatorResumed, HeartbeatReceived, LeaseLapsed
from coordinator.core.queries import run_info
from potluck.ids import Fence, NodeId, TaskId
from tests.unit.test_core_leases import RUN, A, B, Bench, lineage, task

C = NodeId("node-c")
HOSTS = {A: "host-a", B: "host-b", C: "host-c"}
FAST_MS, SLOW_MS = 1_000, 10_000
"""Of one step."""


class House(Bench):
    """Nodes on machines of their own; everybody is heard all the time."""

    def get(self, node: NodeId, **fields: Any) -> Any:
        return self.ask(node, **{"host": HOSTS[node], **fields})

    def wait(self, by_ms: int) -> None:
        self.now_ms += by_ms

    def trained(self, node: NodeId, name: str, step_ms: int) -> None:
        """The node trains a whole lineage of this name at its pace."""
        self.plan(lineage(name))
        grant = self.get(node)
        assert grant.lineage.id == name
        for start in (0, 2):
            self.wait(2 * step_ms)
            self.commit(
                node, grant, start, start + 2, parent=f"{name}{start}" if start else "", child=f"{name}{start + 2}"
            )

    def fast_and_slow(self) -> TrainGranted:
        """A is known to be fast, B to be slow, and B has just been given l0; its grant."""
        self.trained(A, "before-a", FAST_MS)
        self.trained(B, "before-b", SLOW_MS)
        self.plan(lineage("l0"))
        grant = self.get(B)
        assert isinstance(grant, TrainGranted)
        return grant


@pytest.fixture
def house() -> House:
    return House()


def test_a_fast_node_with_nothing_to_do_gets_what_a_slow_one_has(house: House) -> None:
    slow = house.fast_and_slow()
    spare = house.get(A)
    assert (spare.lineage.id, spare.head_step, spare.target_step) == ("l0", 0, slow.target_step)
    assert spare.fence > slow.fence


def test_a_node_of_equal_pace_gets_nothing_however_long_it_asks(house: House) -> None:
    house.trained(A, "before-a", SLOW_MS)
    house.trained(B, "before-b", SLOW_MS)
    house.plan(lineage("l0"))
    house.get(B)
    for _ in range(3):
        house.wait(SLOW_MS // 2)
        assert isinstance(house.get(A), NothingToDo)


def test_a_holder_of_unknown_pace_is_helped_once_it_took_twice_what_its_steps_take(house: House) -> None:
    house.trained(A, "before", FAST_MS)
    house.plan(lineage("l0"))
    house.get(B)
    house.wait(2 * 2 * FAST_MS - 1)
    assert isinstance(house.get(A), NothingToDo)
    house.wait(1)
    assert house.get(A).lineage.id == "l0"


@pytest.mark.parametrize(
    "fields",
    [{"host": "host-b"}, {"host": ""}, {"free_memory_bytes": 0}],
    ids=["same-machine", "machine-not-known", "no-memory"],
)
def test_no_help_from_the_same_machine_or_from_an_unknown_or_too_small_one(
    house: House, fields: dict[str, Any]
) -> None:
    house.fast_and_slow()
    house.plan(lineage("l0", memory=100))
    assert isinstance(house.get(A, **fields), NothingToDo)


def test_a_third_node_gets_nothing(house: House) -> None:
    house.fast_and_slow()
    house.get(A)
    assert isinstance(house.get(C), NothingToDo)


def test_what_waits_goes_before_what_is_slow(house: House) -> None:
    house.fast_and_slow()
    house.plan(lineage("l0"), task("evaluation", rank=2))
    assert house.get(A).task.id == "evaluation"


def test_the_first_commit_wins_and_the_other_node_is_told_and_yields(house: House) -> None:
    slow, spare = house.fast_and_slow(), house.get(A)
    house.wait(2 * FAST_MS)
    assert isinstance(house.commit(A, spare, 0, 2), CommitAccepted)
    revoked = [effect for effect in house.effects if isinstance(effect, Revoke)]
    assert revoked == [Revoke(node=B, fence=slow.fence, reason="another node's commit came first")]
    assert list(house.machine.durable.leases) == [spare.fence]
    late = house.commit(B, slow, 0, 2, child="other")
    assert isinstance(late, CommitRefused)
    assert late.head_step == 2


def test_the_holder_may_win_too_and_an_equal_late_commit_costs_nobody_anything(house: House) -> None:
    slow, spare = house.fast_and_slow(), house.get(A)
    assert house.commit(B, slow, 0, 2, child="same") == CommitAccepted(head_step=2, head="same", yield_lease=False)
    assert list(house.machine.durable.leases) == [slow.fence]
    again = house.commit(A, spare, 0, 2, child="same")
    assert again == CommitAccepted(head_step=2, head="same", yield_lease=True)


def test_either_of_two_leases_may_end_without_the_other(house: House) -> None:
    slow, spare = house.fast_and_slow(), house.get(A)
    house.feed(LeaseLapsed(now_ms=house.now_ms, fence=slow.fence, reason="suspect"))
    assert isinstance(house.get(C), NothingToDo), "somebody holds it"
    house.give_back(A, spare.fence)
    assert house.get(C).lineage.id == "l0"


def test_a_node_that_lost_is_known_to_be_slow_from_then_on(house: House) -> None:
    house.trained(A, "before", FAST_MS)
    house.plan(lineage("l0", segments=1))
    house.get(B)
    house.wait(5 * 2 * FAST_MS)
    spare = house.get(A)
    house.wait(2 * FAST_MS)
    house.commit(A, spare, 0, 2)
    house.plan(lineage("l0"), lineage("l1"))
    assert house.get(B).lineage.id == "l1"
    house.commit(A, spare, 2, 4, parent="c2")
    assert house.get(A).lineage.id == "l1"


def test_a_restart_forgets_no_pace_and_counts_its_downtime_against_nobody(house: House) -> None:
    house.trained(A, "before", FAST_MS)
    house.plan(lineage("l0"))
    slow = house.get(B)
    house.now_ms = 1_000_000
    house.feed(CoordinatorResumed(now_ms=house.now_ms, boot_id="c2"))
    assert isinstance(house.get(A), NothingToDo)
    house.commit(B, slow, 0, 2)
    assert B not in house.machine.durable.paces, "it may have been trained before"
    house.wait(2 * SLOW_MS)
    house.commit(B, slow, 2, 4, parent="c2")
    assert house.machine.durable.paces[B]["expert"].step_ms == SLOW_MS


def test_the_pace_of_another_role_stands_in_and_a_larger_step_takes_longer(house: House) -> None:
    house.trained(A, "before", FAST_MS)
    wanted = lineage("dense", flops=8.0)
    house.plan(type(wanted)(**{**vars(wanted), "role": "dense"}))
    house.get(B)
    house.wait(2 * 2 * 8 * FAST_MS - 1)
    assert isinstance(house.get(A), NothingToDo)
    house.wait(1)
    assert house.get(A).lineage.id == "dense"


def test_a_task_that_takes_three_times_as_long_as_its_kind_is_done_by_a_second_node(house: House) -> None:
    house.plan(*(task(f"t{number}") for number in range(4)))
    for _ in range(3):
        grant = house.get(A)
        house.wait(2_000)
        house.complete(A, grant)
    slow = house.get(B)
    house.wait(3 * 2_000)
    assert isinstance(house.get(A), NothingToDo)
    house.wait(1)
    spare = house.get(A)
    assert (spare.task.id, slow.task.id) == ("t3", "t3")
    house.complete(A, spare)
    assert Revoke(node=B, fence=slow.fence, reason="another node's result came first") in house.effects
    assert not house.machine.durable.leases


def test_the_first_task_of_a_kind_is_slow_once_it_is_overdue(house: House) -> None:
    house.plan(task("t0"))
    house.get(B)
    house.wait(60_000)
    assert isinstance(house.get(A), NothingToDo)
    house.wait(1)
    assert isinstance(house.get(A), TaskGranted)


def test_an_idle_node_is_woken_when_it_can_help(house: House) -> None:
    house.trained(A, "before", FAST_MS)
    for node in (A, B):
        house.open(node)
    house.plan(lineage("l0"))
    slow = house.get(B)
    assert isinstance(house.get(A), NothingToDo)
    woken = []
    for _ in range(5):
        for node in (A, B):
            house.beat(node, slow.fence if node == B else Fence(0))
        house.tick(FAST_MS)
        woken.append(Wake(node=A) in house.effects)
    assert woken == [False, False, False, True, False]


def test_two_nodes_on_one_lineage_are_told_of_as_the_one_that_is_ahead(house: House) -> None:
    slow, spare = house.fast_and_slow(), house.get(A)
    for node, fence, step in ((B, slow.fence, 1), (A, spare.fence, 2)):
        beat = HeartbeatReceived(now_ms=house.now_ms, node=node, fence=fence, activity="training", step=step)
        house.feed(beat)
    lines = {line.lineage: line for line in run_info(house.machine.state, RUN).lineages}
    assert (lines["l0"].node, lines["l0"].live_step) == (A, 2)


def test_a_cancelled_run_takes_both_leases_back(house: House) -> None:
    slow, spare = house.fast_and_slow(), house.get(A)
    house.plan(task("else"))
    revoked = {effect.fence for effect in house.effects if isinstance(effect, Revoke)}
    assert revoked == {slow.fence, spare.fence}
    assert TaskId("else") in house.machine.durable.tasks
