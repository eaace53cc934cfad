"""Digests say what the state is, not how a mapping happened to be written."""

from __future__ import annotations

from coordinator.core.events import PlanAdvanced
from coordinator.core.runs import plan_digest
from coordinator.core.state import DurableState, Task, durable_json
from coordinator.core.values import Figures, Finished, TaskResult, TaskWanted
from coordinator.wire_events import decode_event, encode_event
from potluck.ids import Digest, RunId, TaskId

FIGURES = {"purity": 0.5, "headline": {"z": 1, "a": 2}}


def _advanced(figures: Figures) -> PlanAdvanced:
    outcome = Finished(report=Digest("e" * 64), figures=figures)
    return PlanAdvanced(now_ms=1, run=RunId("r"), lineages=(), tasks=(), publish=(), stage="done", outcome=outcome)


def test_a_plan_has_the_same_digest_before_and_after_the_journal() -> None:
    event = _advanced(FIGURES)
    read = decode_event(encode_event(event))
    assert isinstance(read, PlanAdvanced)
    assert plan_digest(read) == plan_digest(event)


def test_plans_that_end_differently_have_different_digests() -> None:
    assert plan_digest(_advanced(FIGURES)) != plan_digest(_advanced({**FIGURES, "purity": 0.6}))


def _state(figures: Figures, tasks: tuple[str, ...] = ("t",)) -> DurableState:
    durable = DurableState()
    for name in tasks:
        wanted = TaskWanted(id=TaskId(name), kind="eval", params_json="{}", inputs=(), label=name)
        result = TaskResult(blobs={}, figures=figures)
        durable.tasks[wanted.id] = Task(wanted=wanted, ready_ms=0, result=result)
    return durable


def test_the_order_of_figures_is_no_part_of_the_state_and_that_of_tasks_is() -> None:
    assert durable_json(_state({"a": 1, "b": 2})) == durable_json(_state({"b": 2, "a": 1}))
    assert durable_json(_state({}, ("s", "t"))) != durable_json(_state({}, ("t", "s")))
