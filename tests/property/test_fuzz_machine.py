"""A node that was let in and says whatever it likes: the machine stands, its invariants too, and others get work."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator import wire
from coordinator.core.effects import Answer, CommitAccepted, Reply, TaskAccepted, TaskGranted, TrainGranted
from coordinator.core.events import (
    CheckpointCommitted,
    CoordinatorResumed,
    Event,
    LeaseRenewed,
    LeaseRequested,
    PlanAdvanced,
    RunSubmitted,
    SessionOpened,
    TaskCompleted,
    TimePassed,
)
from coordinator.core.invariants import check
from coordinator.core.machine import Machine
from coordinator.core.values import LineageWanted, Running, TaskWanted
from coordinator.wire_events import decode_event, encode_event
from potluck.errors import PotluckError
from potluck.ids import Fence, LineageId, NodeId, RunId, TaskId, digest_bytes
from potluck.v1 import node_pb2
from tests.property.test_fuzz_messages import fill

HOSTILE, HONEST = NodeId("n1-hostile"), NodeId("n2-honest")
RUN = RunId("run")
LINEAGE, TASK = LineageId(digest_bytes(b"lineage")), TaskId(digest_bytes(b"task"))
DIGESTS = st.sampled_from(["", LINEAGE, TASK, *(digest_bytes(bytes([number])) for number in range(3))])
STEPS = st.sampled_from([-1, 0, 1, 2, 4, 2**63 - 1])
FENCES = st.sampled_from([0, 1, 2, 3, 2**63, 2**64 - 1])
KINDS = ("acquire", "return", "commit", "complete", "renew", "hello", "heartbeat", "serving", "time")


def events_of(draw: st.DrawFn, now_ms: int) -> Event:
    """What one message of the hostile node becomes; a refusal at the wire is a PotluckError."""
    match draw(st.sampled_from(KINDS)):
        case "acquire":
            acquire = node_pb2.AcquireLeaseRequest()
            fill(acquire, draw)
            return wire.lease_requested(acquire, HOSTILE, now_ms)
        case "return":
            given_back = node_pb2.ReturnLeaseRequest()
            fill(given_back, draw)
            given_back.fence = draw(FENCES)
            return wire.lease_returned(given_back, HOSTILE, now_ms)
        case "commit":
            commit = node_pb2.CommitRequest(
                request_id=draw(st.integers(0, 2**64 - 1)),
                fence=draw(FENCES),
                lineage=draw(DIGESTS),
                parent=draw(DIGESTS),
                start_step=draw(STEPS),
                end_step=draw(STEPS),
                child=draw(DIGESTS),
                weights=draw(DIGESTS),
                optimizer=draw(DIGESTS),
            )
            return wire.checkpoint_committed(commit, HOSTILE, now_ms)
        case "complete":
            complete = node_pb2.CompleteTaskRequest()
            fill(complete, draw)
            complete.task, complete.fence = draw(DIGESTS), draw(FENCES)
            return wire.task_completed(complete, HOSTILE, now_ms)
        case "renew":
            return LeaseRenewed(now_ms=now_ms, node=HOSTILE, fence=Fence(draw(FENCES)))
        case "hello":
            hello = node_pb2.SessionHello()
            fill(hello, draw)
            return wire.session_opened(hello, HOSTILE, "node", now_ms)
        case "heartbeat":
            beat = node_pb2.Heartbeat()
            fill(beat, draw)
            return wire.heartbeat_received(beat, HOSTILE, now_ms)
        case "serving":
            serving = node_pb2.ServingState()
            fill(serving, draw)
            return wire.serving_reported(serving, HOSTILE, now_ms)
        case _:
            return TimePassed(now_ms=now_ms)


def a_machine() -> Machine:
    machine = Machine()
    lineage = LineageWanted(
        id=LINEAGE,
        recipe_json="{}",
        segments_json=("{}",),
        profile_json="{}",
        total_steps=4,
        known_steps=4,
        commit_every=2,
        flops_per_step=1.0,
        memory_bytes=0,
        role="expert",
        label="expert",
        rank=1,
    )
    task = TaskWanted(id=TASK, kind="score", params_json="{}", inputs=(), label="score", rank=1, memory_bytes=0)
    told: list[Event] = [CoordinatorResumed(now_ms=0, boot_id="c")]
    told.append(
        RunSubmitted(
            now_ms=0, unix_ms=0, request_id="r", run=RUN, spec_json="{}", corpus_json="{}", name="run", priority=0
        )
    )
    told.append(
        PlanAdvanced(
            now_ms=0,
            run=RUN,
            lineages=(lineage,),
            tasks=(task,),
            publish=(),
            stage="testing",
            outcome=Running(),
        )
    )
    for event in told:
        machine.handle(event)
    return machine


def answer_to(machine: Machine, event: Event) -> Answer:
    (reply,) = (effect for effect in machine.handle(event) if isinstance(effect, Reply))
    return reply.answer


def ask(machine: Machine, now_ms: int, request: int) -> Answer:
    asked = LeaseRequested(
        now_ms=now_ms, node=HONEST, request_id=request, boot_id="b", free_memory_bytes=1 << 40, held=()
    )
    return answer_to(machine, asked)


@settings(max_examples=120)
@given(st.data())
def test_whatever_one_node_says_the_machine_stands_and_its_invariants_hold(data: st.DataObject) -> None:
    machine, now_ms = a_machine(), 0
    for _ in range(data.draw(st.integers(1, 12))):
        now_ms += data.draw(st.sampled_from([0, 1, 1_000, 40_000]))
        try:
            event = events_of(data.draw, now_ms)
        except PotluckError:
            continue
        machine.handle(event)
        assert check(machine.state) == []


@settings(max_examples=40)
@given(st.data())
def test_whatever_one_node_says_another_still_gets_work_and_commits_unless_it_was_done(data: st.DataObject) -> None:
    machine, now_ms = a_machine(), 0
    for _ in range(data.draw(st.integers(1, 8))):
        try:
            machine.handle(events_of(data.draw, now_ms))
        except PotluckError:
            continue
    now_ms += 3_600_000  # whatever the other holds has lapsed by now
    machine.handle(TimePassed(now_ms=now_ms))
    opened = SessionOpened(
        now_ms=now_ms,
        node=HONEST,
        role="node",
        boot_id="b",
        version="0",
        hostname="h",
        cores=1,
        memory_bytes=1 << 40,
        router_address="",
    )
    machine.handle(opened)
    granted = ask(machine, now_ms, 1)
    if isinstance(granted, TaskGranted):
        done = TaskCompleted(
            now_ms=now_ms, node=HONEST, request_id=2, fence=granted.fence, task=TASK, blobs=(), figures={}
        )
        assert answer_to(machine, done) == TaskAccepted()
        granted = ask(machine, now_ms, 3)
    lineage = machine.state.durable.lineages[LINEAGE]
    if not isinstance(granted, TrainGranted):
        ended = not list(machine.state.durable.running())
        assert ended or (lineage.commits and lineage.commits[-1].end_step == 4), granted
        return
    commit = CheckpointCommitted(
        now_ms=now_ms,
        node=HONEST,
        request_id=9,
        fence=granted.fence,
        lineage=LINEAGE,
        parent=granted.head,
        start_step=granted.head_step,
        end_step=granted.head_step // 2 * 2 + 2,
        child=digest_bytes(b"child"),
        weights=digest_bytes(b"w"),
        optimizer=digest_bytes(b"o"),
        figures={},
    )
    assert isinstance(answer_to(machine, commit), CommitAccepted)
    assert decode_event(encode_event(commit)) == commit
