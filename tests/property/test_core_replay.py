"""Random lives of the machine: nodes that work, stall, die, repeat themselves; a coordinator that restarts."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import HealthCheck, given, settings

from coordinator.core.effects import (
    CommitAccepted,
    Effect,
    Record,
    Reply,
    TaskAccepted,
    TaskGranted,
    TrainGranted,
)
from coordinator.core.events import (
    CheckpointCommitted,
    CoordinatorResumed,
    DrainRequested,
    DurableEvent,
    Event,
    HeartbeatReceived,
    InviteIssued,
    LeaseRequested,
    LeaseReturned,
    NodeDrained,
    NodeRestored,
    PeerEnrolled,
    PlanAdvanced,
    RunCancelled,
    RunPaused,
    RunResumed,
    RunSubmitted,
    ServingReported,
    SessionClosed,
    SessionOpened,
    TaskCompleted,
    TimePassed,
)
from coordinator.core.invariants import check
from coordinator.core.machine import Machine
from coordinator.core.state import durable_json
from coordinator.core.values import LineageWanted, Publication, Running, TaskWanted
from potluck.ids import Digest, Fence, LineageId, NodeId, RunId, TaskId

RUNS = [RunId("run-a"), RunId("run-b")]
NODES = [NodeId("n0"), NodeId("n1"), NodeId("n2")]
SEGMENT = 4


class World:
    """Nodes with outboxes around one machine. Every choice is an integer that hypothesis gives."""

    def __init__(self) -> None:
        self.machine = Machine()
        self.now_ms = 0
        self.durable: list[DurableEvent] = []
        self.known = dict.fromkeys(RUNS, 1)
        self.boot = dict.fromkeys(NODES, 0)
        self.next_id = dict.fromkeys(NODES, 0)
        self.grants: list[tuple[NodeId, TrainGranted | TaskGranted]] = []
        self.sent: list[Event] = []
        self.pending: list[DurableEvent] = []
        self.commits: dict[Digest, tuple[LineageId, int]] = {}
        self.results: dict[TaskId, Digest] = {}
        self.feed(CoordinatorResumed(now_ms=0, boot_id="c0"))
        for node in NODES:
            token = Digest(f"token of {node}")
            self.feed(InviteIssued(now_ms=0, token_digest=token, role="node", expires_unix_ms=1))
            fields = {"role": "node", "name": node, "curve_public_key": node, "token_digest": token}
            self.feed(PeerEnrolled(now_ms=0, node=node, **fields))  # type: ignore[arg-type]

    def feed(self, event: Event) -> list[Effect]:
        before = durable_json(self.machine.durable)
        effects = self.machine.handle(event)
        if isinstance(event, DurableEvent):
            self.durable.append(event)
        else:
            assert durable_json(self.machine.durable) == before, f"{event} touched durable state"
        for effect in effects:
            if isinstance(effect, Record):
                self.pending.append(effect.event)
        assert check(self.machine.state) == []
        self._oracle(event, effects)
        return effects

    def _oracle(self, event: Event, effects: list[Effect]) -> None:
        answer = effects[0].answer if effects and isinstance(effects[0], Reply) else None
        if isinstance(event, CheckpointCommitted) and isinstance(answer, CommitAccepted):
            self.commits[event.child] = (event.lineage, event.end_step)
        if isinstance(event, TaskCompleted) and isinstance(answer, TaskAccepted) and not answer.divergent:
            self.results.setdefault(event.task, event.blobs[0][1])
            assert self.results[event.task] == event.blobs[0][1], "the first result is canonical"
        for child, (lineage, step) in self.commits.items():
            found = {c.checkpoint: c.end_step for c in self.machine.durable.lineages[lineage].commits}
            assert found.get(child) == step, "an accepted commit is never lost"

    # --- what can happen ---

    def submit(self, a: int, b: int) -> None:
        run = RUNS[a % 2]
        self.feed(
            RunSubmitted(
                now_ms=self.now_ms,
                unix_ms=1,
                request_id=f"s{b % 3}",
                run=run,
                spec_json="{}",
                corpus_json="{}",
                name=run,
                priority=b % 3,
            )
        )

    def plan(self, a: int, b: int) -> None:
        run = RUNS[a % 2]
        self.known[run] = min(4, self.known[run] + b % 2)
        lineages = tuple(self._lineage(run, i) for i in range(3))
        tasks = tuple(self._task(run, i) for i in range(self.known[run] * 2 - b % 3))
        head = self.machine.durable.lineages.get(LineageId("shared"))
        publish: tuple[Publication, ...] = ()
        if head is not None and head.commits:
            publish = (
                Publication(
                    slot="expert-0",
                    lineage=LineageId("shared"),
                    step=head.head_step,
                    weights=head.commits[-1].weights,
                    tokenizer=Digest("tok"),
                    model_json="{}",
                ),
            )
        self.feed(
            PlanAdvanced(
                now_ms=self.now_ms,
                run=run,
                lineages=lineages,
                tasks=tasks,
                publish=publish,
                stage="testing",
                outcome=Running(),
                serving_json='{"method":"smalltalk"}' if publish else "",
            )
        )

    def _lineage(self, run: RunId, i: int) -> LineageWanted:
        name = "shared" if i == 0 else f"{run}-{i}"
        segments = tuple(f"{name}:{k}" for k in range(self.known[run]))
        return LineageWanted(
            id=LineageId(name),
            recipe_json=name,
            segments_json=segments,
            profile_json="{}",
            total_steps=4 * SEGMENT,
            known_steps=len(segments) * SEGMENT,
            commit_every=2,
            flops_per_step=1.0 + i,
            memory_bytes=100 * i,
            role="expert",
            label=name,
            rank=i % 2,
        )

    def _task(self, run: RunId, i: int) -> TaskWanted:
        name = "shared-task" if i == 0 else f"{run}-task-{i}"
        return TaskWanted(
            id=TaskId(name),
            kind="score",
            params_json="{}",
            inputs=(("weights", Digest(f"w{i}")),),
            label=name,
            rank=i % 3,
        )

    def request(self, a: int, b: int) -> None:
        node = NODES[a % 3]
        self.next_id[node] += 1
        event = LeaseRequested(
            now_ms=self.now_ms,
            node=node,
            request_id=self.next_id[node],
            boot_id=f"b{self.boot[node]}",
            free_memory_bytes=(b % 4) * 100,
            held=(Digest(f"w{b % 5}"),),
            host=f"host-{a % 2}",
        )
        self.sent.append(event)
        answer = self.feed(event)[0]
        assert isinstance(answer, Reply)
        if isinstance(answer.answer, TrainGranted | TaskGranted):
            self.grants.append((node, answer.answer))

    def repeat(self, a: int, b: int) -> None:
        if self.sent:
            self.feed(self.sent[-1 - a % min(4, len(self.sent))])

    def work(self, a: int, b: int) -> None:
        """One of the last grants, live or long dead, brings its result."""
        if not self.grants:
            return
        node, grant = self.grants[-1 - a % min(5, len(self.grants))]
        self.next_id[node] += 1
        if isinstance(grant, TrainGranted):
            self._commit(node, grant, b)
        else:
            event = TaskCompleted(
                now_ms=self.now_ms,
                node=node,
                request_id=self.next_id[node],
                fence=grant.fence,
                task=grant.task.id,
                blobs=(("column", Digest(f"{grant.task.id}-{b % 7 == 0}")),),
                figures={},
            )
            self.sent.append(event)
            self.feed(event)

    def _commit(self, node: NodeId, grant: TrainGranted, b: int) -> None:
        lineage = self.machine.durable.lineages.get(grant.lineage.id)
        if lineage is None or b % 5 == 0:
            start, parent = grant.head_step, grant.head
        else:
            start, parent = lineage.head_step, lineage.head
        end = start + 1 + b % 2
        child = Digest(f"{grant.lineage.id}@{end}<{parent[-20:]}#{b % 3}")
        event = CheckpointCommitted(
            now_ms=self.now_ms,
            node=node,
            request_id=self.next_id[node],
            fence=grant.fence,
            lineage=grant.lineage.id,
            parent=parent,
            start_step=start,
            end_step=end,
            child=child,
            weights=Digest(f"w-{child}"),
            optimizer=Digest(f"o-{child}"),
            figures={"loss": 1.5},
        )
        self.sent.append(event)
        self.feed(event)

    def give_back(self, a: int, b: int) -> None:
        if self.grants:
            node, grant = self.grants[-1 - a % min(5, len(self.grants))]
            error = "resource.memory" if b % 2 else ""
            self.feed(
                LeaseReturned(
                    now_ms=self.now_ms, node=node, request_id=0, fence=grant.fence, error_id=error, message="no"
                )
            )

    def session(self, a: int, b: int) -> None:
        node = NODES[a % 3]
        boot = f"b{self.boot[node]}"
        if b % 3:
            self.feed(
                SessionOpened(
                    now_ms=self.now_ms,
                    node=node,
                    role="node" if a % 7 else "router",
                    boot_id=boot,
                    version="0",
                    hostname="h",
                    cores=1,
                    memory_bytes=1,
                    router_address="h:1",
                )
            )
        else:
            self.feed(SessionClosed(now_ms=self.now_ms, node=node, boot_id=boot, orderly=b % 2 == 0))

    def beat(self, a: int, b: int) -> None:
        fence = self.grants[-1 - b % len(self.grants)][1].fence if self.grants else Fence(0)
        self.feed(HeartbeatReceived(now_ms=self.now_ms, node=NODES[a % 3], fence=fence, activity="training"))
        self.feed(ServingReported(now_ms=self.now_ms, node=NODES[a % 3]))

    def tick(self, a: int, b: int) -> None:
        self.now_ms += (100, 1_000, 6_000, 31_000)[b % 4]
        self.feed(TimePassed(now_ms=self.now_ms))

    def journal(self, a: int, b: int) -> None:
        while self.pending:
            self.feed(self.pending.pop(0))

    def reboot(self, a: int, b: int) -> None:
        self.boot[NODES[a % 3]] += 1
        self.next_id[NODES[a % 3]] = 0

    def resume(self, a: int, b: int) -> None:
        """The process dies with what it had asked for, and another one replays the journal."""
        self.pending.clear()
        self.machine = replayed(self.durable)
        self.now_ms = (a % 3) * 1000
        self.feed(CoordinatorResumed(now_ms=self.now_ms, boot_id=f"c{len(self.durable)}"))

    def stop(self, a: int, b: int) -> None:
        if b % 3:
            self.feed(DrainRequested(now_ms=self.now_ms))
        else:
            self.feed(RunCancelled(now_ms=self.now_ms, run=RUNS[a % 2]))

    def rest(self, a: int, b: int) -> None:
        """A run or a node is sent to rest, or called back."""
        run, node = RUNS[a % 2], NODES[a % 3]
        kinds: list[DurableEvent] = [
            RunPaused(now_ms=self.now_ms, run=run),
            RunResumed(now_ms=self.now_ms, run=run),
            NodeDrained(now_ms=self.now_ms, node=node),
            NodeRestored(now_ms=self.now_ms, node=node),
        ]
        self.feed(kinds[b % 4])


def replayed(events: list[DurableEvent]) -> Machine:
    machine = Machine()
    for event in events:
        machine.handle(event)
    return machine


OPS = (
    [World.request] * 5
    + [World.work] * 8
    + [World.plan] * 3
    + [World.tick, World.beat, World.session, World.journal, World.repeat] * 2
    + [World.submit, World.give_back, World.reboot, World.resume, World.stop, World.rest]
)
STEP = st.tuples(st.integers(0, len(OPS) - 1), st.integers(0, 41), st.integers(0, 209))


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(STEP, min_size=30, max_size=120))
def test_a_replay_of_the_durable_events_gives_the_same_durable_state(steps: list[tuple[int, int, int]]) -> None:
    world = World()
    for i in range(2):
        world.submit(i, 0)
        world.plan(i, 0)
    for op, a, b in steps:
        OPS[op](world, a, b)
    assert durable_json(replayed(world.durable).durable) == durable_json(world.machine.durable)
