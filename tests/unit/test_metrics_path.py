"""The way of a training step's figures from a heartbeat to what an administrator is told."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path

from coordinator import wire, wire_admin
from coordinator.core import queries
from coordinator.core.effects import Reply, TrainGranted
from coordinator.core.events import (
    CoordinatorResumed,
    Event,
    LeaseLapsed,
    LeaseRequested,
    PlanAdvanced,
    RunSubmitted,
    SessionOpened,
)
from coordinator.core.machine import Machine
from coordinator.core.state import durable_digest
from coordinator.core.values import LineageWanted, Running
from coordinator.journal import MemoryJournal
from coordinator.recording import Recording
from coordinator.runtime import Runtime
from potluck.clock import ManualClock
from potluck.ids import Fence, LineageId, NodeId, RunId
from potluck.metrics_sinks import JsonlSink, Recorder
from potluck.v1 import admin_pb2, node_pb2

RUN, NODE = RunId("run-1"), NodeId("node-a")
LINEAGE = LineageWanted(
    id=LineageId("e" * 64),
    recipe_json="{}",
    segments_json=("{}",),
    profile_json="{}",
    total_steps=12,
    known_steps=12,
    commit_every=4,
    flops_per_step=1.0,
    memory_bytes=0,
    role="expert",
    label="expert 0",
)
LIVE = {
    "loss": 2.5,
    "grad_norm": 0.75,
    "learning_rate": 1e-3,
    "tokens_per_second": 4000.0,
    "flops_per_second": 2e10,
    "mfu": 0.25,
    "rss_bytes": 123_456_789,
}


def the_plan(machine: Machine, run: RunId, now_ms: int) -> PlanAdvanced:
    return PlanAdvanced(
        now_ms=now_ms, run=run, lineages=(LINEAGE,), tasks=(), publish=(), stage="experts", outcome=Running()
    )


def training() -> tuple[Machine, Fence]:
    """A node that holds a lease on the lineage of a run."""
    machine = Machine()
    node = {"version": "0", "hostname": "h", "cores": 1, "memory_bytes": 1}
    before: list[Event] = [
        CoordinatorResumed(now_ms=0, boot_id="c"),
        RunSubmitted(
            now_ms=0, unix_ms=0, request_id="r", run=RUN, spec_json="{}", corpus_json="{}", name="x", priority=0
        ),
        the_plan(machine, RUN, 0),
        SessionOpened(now_ms=0, node=NODE, role="node", boot_id="b", **node),  # type: ignore[arg-type]
    ]
    for event in before:
        machine.handle(event)
    asked = LeaseRequested(now_ms=0, node=NODE, request_id=1, boot_id="b", free_memory_bytes=1 << 30)
    (reply,) = [effect for effect in machine.handle(asked) if isinstance(effect, Reply)]
    assert isinstance(reply.answer, TrainGranted)
    return machine, reply.answer.fence


def line_after(machine: Machine, beat: node_pb2.Heartbeat) -> admin_pb2.LineageInfo:
    machine.handle(wire.heartbeat_received(beat, NODE, 10))
    (line,) = wire_admin.run_info(queries.run_info(machine.state, RUN)).lineages
    return line


def test_what_a_heartbeat_says_of_a_step_is_what_the_run_says_of_its_lineage() -> None:
    machine, fence = training()
    line = line_after(machine, node_pb2.Heartbeat(fence=fence, activity="training", step=3, **LIVE))
    assert {name: getattr(line, name) for name in LIVE} == LIVE
    assert line.live_step == 3


def test_a_heartbeat_leaves_no_trace_in_what_is_kept() -> None:
    machine, fence = training()
    before = durable_digest(machine.state.durable)
    line_after(machine, node_pb2.Heartbeat(fence=fence, activity="training", step=3, **LIVE))
    assert durable_digest(machine.state.durable) == before


def test_figures_of_a_lease_that_has_ended_are_nobodys() -> None:
    machine, fence = training()
    beat = node_pb2.Heartbeat(fence=fence, activity="training", step=3, **LIVE)
    line_after(machine, beat)
    machine.handle(LeaseLapsed(now_ms=20, fence=fence, reason="expired"))
    line = line_after(machine, beat)
    assert (line.live_step, line.grad_norm, line.mfu, line.rss_bytes) == (0, 0.0, 0.0, 0)


def test_numbers_that_no_json_can_hold_are_told_as_not_known() -> None:
    machine, fence = training()
    beat = node_pb2.Heartbeat(fence=fence, activity="training", step=3, loss=math.nan, grad_norm=math.inf, mfu=0.5)
    line = line_after(machine, beat)
    assert (line.loss, line.grad_norm, line.mfu) == (0.0, 0.0, 0.5)


def test_a_heartbeats_fence_names_the_lineage_that_its_node_trains() -> None:
    machine, fence = training()
    assert queries.training_under(machine.state, NODE, fence) == LINEAGE
    assert queries.training_under(machine.state, NodeId("somebody-else"), fence) is None
    machine.handle(LeaseLapsed(now_ms=20, fence=fence, reason="expired"))
    assert queries.training_under(machine.state, NODE, fence) is None


def test_a_lineage_that_nobody_wants_has_no_label() -> None:
    machine, _ = training()
    assert queries.label_of_lineage(machine.state, LINEAGE.id) == "expert 0"
    assert queries.label_of_lineage(machine.state, LineageId("f" * 64)) == ""


def test_no_number_of_heartbeats_adds_a_row_to_the_journal(tmp_path: Path) -> None:
    asyncio.run(heartbeats_through_a_runtime(tmp_path))
    (path,) = tmp_path.glob("*.jsonl")
    steps = [json.loads(line)["step"] for line in path.read_text(encoding="utf-8").splitlines()]
    assert steps == list(range(1, 51))


async def heartbeats_through_a_runtime(folder: Path) -> None:
    """Fifty steps, each told by two heartbeats, past a machine that journals."""
    machine, fence = training()
    journal, recorder = MemoryJournal(), Recorder([JsonlSink(folder)])
    runtime = Runtime(
        machine=machine, journal=journal, clock=ManualClock(), evaluate=the_plan, deliver=lambda push: None
    )
    running = asyncio.create_task(runtime.run("boot"))
    await runtime.read(lambda state: None)
    rows = list(journal.read_all())
    recording = Recording(recorder, runtime)
    for step in range(1, 51):
        beat = node_pb2.Heartbeat(fence=fence, activity="training", step=step, **LIVE)
        for _ in range(2):
            event = wire.heartbeat_received(beat, NODE, runtime.now_ms())
            await runtime.tell(event)
            await recording.heartbeat(event)
    assert list(journal.read_all()) == rows
    running.cancel()
    await asyncio.wait((running,))
    await asyncio.to_thread(recording.close)
