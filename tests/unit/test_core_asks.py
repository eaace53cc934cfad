"""Asking for work: what is answered "nothing" leaves no trace, and is answered anew when something came since."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from coordinator.core.effects import Answer, Denied, NothingToDo, Record, Reply, TaskGranted, Wake
from coordinator.core.events import (
    CoordinatorResumed,
    DrainRequested,
    DurableEvent,
    Event,
    LeaseRequested,
    LeaseReturned,
    PlanAdvanced,
    RunSubmitted,
    SessionOpened,
    TimePassed,
    WorkAsked,
)
from coordinator.core.invariants import check
from coordinator.core.machine import Machine
from coordinator.core.state import durable_digest
from coordinator.core.values import Running, TaskWanted
from potluck.ids import Digest, NodeId, RunId, TaskId

RUN = RunId("run-1")
A, B = NodeId("node-a"), NodeId("node-b")


class House:
    """A machine and the rows that its journal would have."""

    def __init__(self) -> None:
        self.machine = Machine()
        self.rows: list[DurableEvent] = []
        self.now_ms = 0
        self.feed(CoordinatorResumed(now_ms=0, boot_id="c0"))
        submitted = {"request_id": "r", "spec_json": "{}", "corpus_json": "{}", "name": "demo"}
        self.feed(RunSubmitted(now_ms=0, unix_ms=0, run=RUN, priority=0, **submitted))

    def feed(self, event: Event) -> Answer | None:
        """Handles an event and the facts it makes known, as the runtime does."""
        answer, events = None, [event]
        while events:
            current = events.pop(0)
            if isinstance(current, DurableEvent):
                self.rows.append(current)
            for effect in self.machine.handle(current):
                if isinstance(effect, Reply):
                    answer = effect.answer
                if isinstance(effect, Record):
                    events.append(effect.event)
        assert check(self.machine.state) == []
        return answer

    def want(self, *names: str, memory: int = 0) -> None:
        tasks = tuple(
            TaskWanted(id=TaskId(n), kind="score", params_json="{}", inputs=(), label=n, memory_bytes=memory)
            for n in names
        )
        self.feed(
            PlanAdvanced(now_ms=self.now_ms, run=RUN, lineages=(), tasks=tasks, publish=(), stage="", outcome=Running())
        )

    def ask(self, request_id: int, node: NodeId = A, **fields: Any) -> Answer | None:
        return self.feed(asked(request_id, self.now_ms, node, **fields))

    def restart(self) -> None:
        self.machine = Machine()
        for row in self.rows:
            self.machine.handle(row)
        self.feed(CoordinatorResumed(now_ms=self.now_ms, boot_id=f"c{len(self.rows)}"))


def asked(request_id: int, now_ms: int, node: NodeId = A, **fields: Any) -> WorkAsked:
    request = LeaseRequested(
        now_ms=now_ms, node=node, request_id=request_id, boot_id="b", free_memory_bytes=1 << 30, host=node
    )
    return WorkAsked(now_ms=now_ms, asked=replace(request, **fields))


@pytest.fixture
def house() -> House:
    made = House()
    assert isinstance(made.ask(1), NothingToDo)
    return made


def test_a_thousand_nodes_that_are_idle_for_an_hour_write_no_row() -> None:
    house, nodes = House(), [NodeId(f"node-{number}") for number in range(1000)]
    for node in nodes:
        house.machine.handle(
            SessionOpened(
                now_ms=0, node=node, role="node", boot_id="b", version="", hostname=node, cores=1, memory_bytes=1
            )
        )
        for effect in house.machine.handle(asked(1, 0, node)):
            assert isinstance(effect, Record), "the coordinator has not heard of the node before"
            house.machine.handle(effect.event)
    before = durable_digest(house.machine.durable)
    for request_id in range(2, 242):
        now_ms = 15_000 * request_id
        for number, node in enumerate(nodes):
            free_bytes = (1 << 30) - (7919 * number * request_id) % (1 << 27)
            (reply,) = house.machine.handle(asked(request_id, now_ms, node, free_memory_bytes=free_bytes))
            assert isinstance(reply, Reply), "no fact to record"
        assert house.machine.handle(TimePassed(now_ms=now_ms)) == []
    assert durable_digest(house.machine.durable) == before


def test_a_request_that_is_granted_is_one_row(house: House) -> None:
    house.want("t0")
    before = len(house.rows)
    assert isinstance(house.ask(2), TaskGranted)
    assert [type(row) for row in house.rows[before:]] == [LeaseRequested]
    assert isinstance(house.ask(2), TaskGranted)
    assert len(house.rows) == before + 1, "its repetition is none"


@pytest.mark.parametrize(
    "fields",
    [
        {"free_memory_bytes": 1 << 29},
        {"held": (Digest("weights"),)},
        {"host": "another"},
        {"boot_id": "a new process"},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_what_is_new_of_a_node_is_written_once(house: House, fields: dict[str, Any]) -> None:
    before = len(house.rows)
    for request_id in (2, 3):
        assert isinstance(house.ask(request_id, **fields), NothingToDo)
    assert len(house.rows) == before + 1


def test_free_memory_that_moves_a_little_is_not_new_unless_a_task_that_waits_fitted_before(house: House) -> None:
    house.want("large", memory=1 << 30)
    house.machine.handle(
        SessionOpened(now_ms=0, node=A, role="node", boot_id="b", version="", hostname=A, cores=1, memory_bytes=1)
    )
    before = len(house.rows)
    for request_id in (2, 3):
        assert isinstance(house.ask(request_id, free_memory_bytes=(1 << 30) - 1), NothingToDo)
    assert len(house.rows) == before + 1
    assert not any(isinstance(e, Wake) for e in house.machine.handle(TimePassed(now_ms=60_000)))


def test_a_request_that_ends_a_lease_is_written_though_it_gets_nothing(house: House) -> None:
    house.want("t0")
    house.ask(2)
    house.feed(DrainRequested(now_ms=0))
    before = len(house.rows)
    assert isinstance(house.ask(3), NothingToDo)
    assert len(house.rows) == before + 1
    assert not house.machine.durable.leases


def test_the_same_request_hears_nothing_again_from_the_same_process_and_perhaps_more_from_the_next(
    house: House,
) -> None:
    assert isinstance(house.ask(2), NothingToDo)
    house.want("t0")
    assert isinstance(house.ask(2), NothingToDo)
    house.restart()
    assert isinstance(house.ask(2), TaskGranted), "nothing was promised"


def test_an_older_request_that_comes_late_gets_nothing_whichever_it_was(house: House) -> None:
    for request_id in (2, 3):
        house.ask(request_id)
    house.want("t0")
    late = house.ask(2)
    assert isinstance(late, Denied)
    assert late.error_id == "refused.stale-request"


def test_one_that_comes_late_to_another_process_takes_work_only_until_its_node_asks(house: House) -> None:
    for request_id in (2, 3):
        house.ask(request_id)
    house.want("t0")
    house.restart()
    assert isinstance(house.ask(2), TaskGranted)
    assert isinstance(house.ask(4), TaskGranted)
    assert len(house.machine.durable.leases) == 1
    assert isinstance(house.ask(2), Denied)


def test_a_node_that_asked_in_vain_is_called_when_work_comes(house: House) -> None:
    house.machine.handle(
        SessionOpened(now_ms=0, node=A, role="node", boot_id="b", version="", hostname=A, cores=1, memory_bytes=1)
    )
    house.ask(2)
    task = TaskWanted(id=TaskId("t0"), kind="score", params_json="{}", inputs=(), label="t0")
    event = PlanAdvanced(now_ms=0, run=RUN, lineages=(), tasks=(task,), publish=(), stage="", outcome=Running())
    assert Wake(node=A) in house.machine.handle(event)


def test_the_answer_is_the_one_that_the_recorded_request_would_give(house: House) -> None:
    house.want("t0")
    grant = house.ask(2)
    assert isinstance(grant, TaskGranted)
    returned = LeaseReturned(now_ms=0, node=A, request_id=0, fence=grant.fence, error_id="", message="")
    house.feed(returned)
    twin = Machine()
    for row in house.rows:
        twin.handle(row)
    direct = twin.handle(asked(3, 0).asked)[0]
    assert isinstance(direct, Reply)
    assert house.ask(3) == direct.answer
