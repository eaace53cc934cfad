"""Made-up nodes, runs and work for the benchmark of the coordinator: events of the real core, of real sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from coordinator.core.effects import Reply, TaskGranted, TrainGranted
from coordinator.core.events import (
    CheckpointCommitted,
    DurableEvent,
    InviteIssued,
    LeaseRequested,
    PeerEnrolled,
    PlanAdvanced,
    RunSubmitted,
    SessionOpened,
    TaskCompleted,
)
from coordinator.core.machine import Machine
from coordinator.core.values import LineageWanted, Outcome, Publication, Running, TaskWanted
from potluck.ids import Digest, LineageId, NodeId, RunId, digest_bytes, task_id

COMMIT_STEPS = 100
RECIPE = '{"model":"' + "m" * 700 + '"}'
"""As long as the recipe of an expert in a run of the demo."""
SEGMENT = '{"data":"' + "d" * 180 + '"}'
MEMORY_BYTES = 1 << 30


def digest(*parts: object) -> Digest:
    return digest_bytes(repr(parts).encode())


def node_name(number: int) -> NodeId:
    return NodeId(f"n{number}-bench")


def enrolments(numbers: Sequence[int], now_ms: int) -> Iterator[DurableEvent]:
    for number in numbers:
        token, node = digest("token", number), node_name(number)
        yield InviteIssued(now_ms=now_ms, token_digest=token, role="node", expires_unix_ms=1)
        yield PeerEnrolled(
            now_ms=now_ms, node=node, role="node", name=node, curve_public_key=digest(node)[:40], token_digest=token
        )


def session(number: int, now_ms: int, *, boot: int = 0) -> SessionOpened:
    return SessionOpened(
        now_ms=now_ms,
        node=node_name(number),
        role="node",
        boot_id=f"boot-{boot}",
        version="0.1.0",
        hostname=f"host-{number}",
        cores=8,
        memory_bytes=2 * MEMORY_BYTES,
    )


def ask(number: int, request_id: int, now_ms: int, *, boot: int = 0, held: Sequence[Digest] = ()) -> LeaseRequested:
    return LeaseRequested(
        now_ms=now_ms,
        node=node_name(number),
        request_id=request_id,
        boot_id=f"boot-{boot}",
        free_memory_bytes=2 * MEMORY_BYTES,
        held=tuple(held),
        host=f"host-{number}",
    )


def commit(
    grant: TrainGranted, number: int, request_id: int, now_ms: int, *, head: int, parent: Digest
) -> CheckpointCommitted:
    child = digest(grant.lineage.id, head + COMMIT_STEPS)
    return CheckpointCommitted(
        now_ms=now_ms,
        node=node_name(number),
        request_id=request_id,
        fence=grant.fence,
        lineage=grant.lineage.id,
        parent=parent,
        start_step=head,
        end_step=head + COMMIT_STEPS,
        child=child,
        weights=digest("weights", child),
        optimizer=digest("optimizer", child),
        figures={"loss": 2.5, "tokens": 123_456, "seconds": 61.5},
    )


def complete(grant: TaskGranted, number: int, request_id: int, now_ms: int) -> TaskCompleted:
    return TaskCompleted(
        now_ms=now_ms,
        node=node_name(number),
        request_id=request_id,
        fence=grant.fence,
        task=grant.task.id,
        blobs=(("out", digest("result", grant.task.id)),),
        figures={"rows": 1024, "nll": 2.125},
    )


def submitted(run: RunId, now_ms: int, *, priority: int = 0) -> RunSubmitted:
    return RunSubmitted(
        now_ms=now_ms,
        unix_ms=now_ms,
        request_id=f"request-{run}",
        run=run,
        spec_json='{"spec":"' + "s" * 3000 + '"}',
        corpus_json='{"corpus":"' + "c" * 1000 + '"}',
        name=run[:12],
        priority=priority,
    )


def lineage(run: RunId, number: int, *, commits: int) -> LineageWanted:
    return LineageWanted(
        id=LineageId(digest(run, "lineage", number)),
        recipe_json=RECIPE,
        segments_json=(SEGMENT,) * 3,
        profile_json='{"device":"cpu","dtype":"float32","threads":1}',
        total_steps=commits * COMMIT_STEPS,
        known_steps=commits * COMMIT_STEPS,
        commit_every=COMMIT_STEPS,
        flops_per_step=1e9,
        memory_bytes=MEMORY_BYTES,
        role="expert",
        label=f"{run[:6]} expert {number}",
    )


def task(run: RunId, number: int, *, kind: str = "score") -> TaskWanted:
    inputs = {"weights": digest(run, "router"), "rows": digest(run, "chunk", number)}
    return TaskWanted(
        id=task_id(kind, {"run": run, "number": number}, inputs),
        kind="score" if kind == "score" else "eval",
        params_json='{"prefix":' + "1" * 180 + "}",
        inputs=tuple(inputs.items()),
        label=f"{run[:6]} {kind} {number}",
        memory_bytes=MEMORY_BYTES,
    )


def advanced(
    run: RunId,
    now_ms: int,
    *,
    lineages: Sequence[LineageWanted] = (),
    tasks: Sequence[TaskWanted] = (),
    publish: Sequence[Publication] = (),
    stage: str = "at work",
    outcome: Outcome | None = None,
) -> PlanAdvanced:
    return PlanAdvanced(
        now_ms=now_ms,
        run=run,
        lineages=tuple(lineages),
        tasks=tuple(tasks),
        publish=tuple(publish),
        stage=stage,
        outcome=outcome or Running(),
        serving_json='{"method":"smalltalk"}' if publish else "",
    )


def crowd(num_nodes: int, *, now_ms: int = 0) -> Machine:
    """A machine that knows so many nodes, all of them here."""
    machine = Machine()
    for event in enrolments(range(num_nodes), now_ms):
        machine.handle(event)
    for number in range(num_nodes):
        machine.handle(session(number, now_ms))
    return machine


def granted(machine: Machine, number: int, request_id: int, now_ms: int) -> TrainGranted | TaskGranted | None:
    """What a node gets that asks now."""
    first = machine.handle(ask(number, request_id, now_ms))[0]
    answer = first.answer if isinstance(first, Reply) else None
    return answer if isinstance(answer, TrainGranted | TaskGranted) else None
