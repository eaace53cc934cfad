"""The node's machine in a hostile world: lost answers, lapsed leases, crashes; an oracle coordinator beside it."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from expert_node import effects as do
from expert_node import events as on
from expert_node.machine import Machine
from expert_node.values import Finished, FinishedCommit, FinishedTask, Lease, TaskLease, TrainLease
from potluck.ids import NO_DIGEST, Digest, Fence, LineageId, TaskId

NUM_LINEAGES, TARGET, GRID, NUM_TASKS = 2, 6, 2, 3
IDS_PER_LIFE = 1000


@dataclass
class Oracle:
    """The coordinator in forty lines: heads move by compare-and-set, tasks are done once, a node holds one lease."""

    heads: dict[str, tuple[int, Digest]] = field(
        default_factory=lambda: {f"L{i}": (0, NO_DIGEST) for i in range(NUM_LINEAGES)}
    )
    done: set[str] = field(default_factory=set)
    lease: Lease | None = None
    fences: int = 0
    kept: dict[tuple[str, int], on.Event] = field(default_factory=dict)
    accepted: list[FinishedCommit] = field(default_factory=list)

    def acquire(self, request_id: int) -> on.Event:
        if ("acquire", request_id) not in self.kept:
            self.kept["acquire", request_id] = self._grant(request_id)
        return self.kept["acquire", request_id]

    def _grant(self, request_id: int) -> on.Event:
        self.fences += 1
        fence, self.lease = Fence(self.fences), None
        for name, (step, head) in self.heads.items():
            if step < TARGET:
                self.lease = TrainLease(
                    fence=fence, term_ms=1, lineage=LineageId(name), recipe_json="", segments_json="", profile_json="",
                    head_step=step, head=head, weights=head, optimizer=head, target_step=TARGET, label=name,
                )  # fmt: skip
                return on.GrantReceived(request_id=request_id, lease=self.lease)
        for name in (f"T{i}" for i in range(NUM_TASKS)):
            if name not in self.done:
                self.lease = TaskLease(
                    fence=fence, term_ms=1, task=TaskId(name), kind="score", params_json="", inputs=(), label=name
                )
                return on.GrantReceived(request_id=request_id, lease=self.lease)
        return on.NothingReceived(request_id=request_id, reason="all done")

    def commit(self, effect: do.PutAndCommit, rng: random.Random) -> on.Event:
        commit = effect.commit
        step, head = self.heads[commit.lineage]
        if commit.child != head:
            if (commit.start_step, commit.parent) != (step, head):
                return on.CommitAnswered(request_id=effect.request_id, accepted=False, reason="the head has moved")
            self.heads[commit.lineage] = (commit.end_step, commit.child)
            self.accepted.append(commit)
        over = commit.end_step == TARGET or rng.random() < 0.2
        if over and self.lease is not None and self.lease.fence == commit.fence:
            self.lease = None
        return on.CommitAnswered(request_id=effect.request_id, accepted=True, yield_lease=over)

    def complete(self, effect: do.PutAndComplete) -> on.Event:
        self.done.add(effect.result.task)
        if self.lease is not None and self.lease.fence == effect.result.fence:
            self.lease = None
        return on.TaskAnswered(request_id=effect.request_id, accepted=True)

    @property
    def finished(self) -> bool:
        return len(self.done) == NUM_TASKS and all(step == TARGET for step, _ in self.heads.values())


class World:
    """One node, its worker and its disk; everything under way happens in any order, or not at all."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.oracle = Oracle()
        self.disk: list[Finished] = []
        self.entries = 0
        self.lives = 0
        self.hostile = True
        self.born()

    def born(self) -> None:
        self.lives += 1
        self.machine = Machine(first_request_id=self.lives * IDS_PER_LIFE, outbox=self.disk)
        self.open: dict[str, do.Request] = {}
        self.failed: dict[str, do.Request] = {}
        self.last_id: dict[str, int] = {}
        self.fetching: Lease | None = None
        self.worker: Lease | None = None
        self.step = 0
        self.parent = NO_DIGEST
        self.stopping = False
        self.late: list[on.Event] = []
        self.up = False

    def tell(self, event: on.Event) -> None:
        for effect in self.machine.handle(event):
            self.obey(effect)

    def obey(self, effect: do.Effect) -> None:
        match effect:
            case do.AskForLease():
                assert self.worker is None
                assert self.fetching is None
                assert not self.disk, "a lease is asked for only with an empty outbox"
                self.request("acquire", effect)
            case do.PutAndCommit(commit=entry) | do.PutAndComplete(result=entry):
                assert entry == self.disk[0], "the oldest entry is delivered first"
                self.request("deliver", effect)
            case do.ReturnLease():
                assert self.worker is None
                self.request("return", effect)
            case do.FetchInputs(lease=lease):
                assert self.fetching is None
                self.fetching = lease
            case do.CancelFetch():
                self.fetching = None
                self.late.append(on.WorkerStopped(fence=effect.fence))
            case do.StartTraining(lease=lease):
                assert self.worker is None
                self.worker, self.step, self.parent, self.stopping = lease, lease.head_step, lease.head, False
            case do.StartTask(lease=task):
                assert self.worker is None
                self.worker, self.stopping = task, False
            case do.StopWorker(fence=fence):
                self.stopping = self.worker is not None and self.worker.fence == fence
            case do.DropEntry(entry=number):
                self.disk = [e for e in self.disk if e.entry != number]
            case do.AckCheckpoint() | do.Exit():
                pass

    def request(self, verb: str, effect: do.Request) -> None:
        assert verb not in self.open, "one request of a verb at a time"
        failed = self.failed.pop(verb, None)
        if failed is None:
            assert effect.request_id > self.last_id.get(verb, 0), "ids of one verb grow"
        else:
            assert effect == failed, "a request without an answer is repeated as it was"
        self.last_id[verb] = effect.request_id
        self.open[verb] = effect

    # What may happen next.

    def turn(self) -> None:
        choices = [self.work, self.answer, self.session, self.tell_late]
        if self.hostile:
            choices += [self.lose_answer, self.crash, self.lapse, self.duplicate]
        self.rng.choice(choices)()

    def work(self) -> None:
        if self.fetching is not None:
            lease, self.fetching = self.fetching, None
            self.tell(on.InputsReady(fence=lease.fence))
        elif self.worker is not None and self.stopping and self.rng.random() < 0.7:
            lease, self.worker = self.worker, None
            self.tell(on.WorkerStopped(fence=lease.fence))
        elif isinstance(self.worker, TrainLease):
            self.train(self.worker)
        elif isinstance(self.worker, TaskLease):
            lease, self.worker = self.worker, None
            self.entries += 1
            result = FinishedTask(
                entry=self.entries, fence=lease.fence, task=lease.task, blobs=(), figures={}, files=()
            )
            self.disk.append(result)
            self.tell(on.TaskFinished(result=result))
            self.tell(on.WorkerDone(fence=lease.fence))

    def train(self, lease: TrainLease) -> None:
        if self.step == lease.target_step:
            self.worker = None
            self.tell(on.WorkerDone(fence=lease.fence))
            return
        self.entries += 1
        child = Digest(f"{lease.lineage}@{self.step + GRID}")
        commit = FinishedCommit(
            entry=self.entries, fence=lease.fence, lineage=lease.lineage, parent=self.parent, start_step=self.step,
            end_step=self.step + GRID, child=child, weights=child, optimizer=child, figures={}, files=(),
        )  # fmt: skip
        self.step, self.parent = self.step + GRID, child
        self.disk.append(commit)
        self.tell(on.CheckpointWritten(commit=commit))

    def answer(self) -> None:
        if not self.open:
            return
        verb = self.rng.choice(sorted(self.open))
        effect = self.open.pop(verb)
        event = self.reply(effect)
        if isinstance(event, on.CommitAnswered | on.TaskAnswered) and self.hostile and self.rng.random() < 0.2:
            self.fail(verb, effect)  # Handled there, the answer lost here.
            return
        self.tell(event)
        self.late.append(event)

    def reply(self, effect: do.Request) -> on.Event:
        match effect:
            case do.AskForLease(request_id=request_id):
                return self.oracle.acquire(request_id)
            case do.PutAndCommit():
                return self.oracle.commit(effect, self.rng)
            case do.PutAndComplete():
                return self.oracle.complete(effect)
            case do.ReturnLease(request_id=request_id, fence=fence):
                if self.oracle.lease is not None and self.oracle.lease.fence == fence:
                    self.oracle.lease = None
                return on.ReturnAnswered(request_id=request_id)

    def lose_answer(self) -> None:
        for verb in sorted(self.open):
            self.fail(verb, self.open.pop(verb))

    def fail(self, verb: str, effect: do.Request) -> None:
        self.failed[verb] = effect
        self.tell(on.RequestFailed(verb=verb, request_id=effect.request_id))  # type: ignore[arg-type]
        assert verb not in self.failed, "it is repeated at once; the shell has waited"

    def session(self) -> None:
        if not self.up or (self.hostile and self.rng.random() < 0.3):
            self.up = not self.up
            self.tell(on.SessionUp() if self.up else on.SessionDown())
        else:
            self.tell(on.Woken())

    def crash(self) -> None:
        if self.rng.random() < 0.3:
            self.born()

    def lapse(self) -> None:
        fence = self.machine.fence
        if fence and self.rng.random() < 0.5:
            self.oracle.lease = None
            self.tell(on.LeaseLost(fence=fence, reason="lapsed"))

    def duplicate(self) -> None:
        """Answers that come twice, or long after, change nothing."""
        if self.late:
            event = self.rng.choice(self.late)
            if not isinstance(event, on.WorkerStopped):
                before = (self.machine.work, list(self.machine.outbox))
                self.tell(event)
                assert (self.machine.work, self.machine.outbox) == before

    def tell_late(self) -> None:
        stopped = [e for e in self.late if isinstance(e, on.WorkerStopped)]
        for event in stopped:
            self.late.remove(event)
            self.tell(event)


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_whatever_is_lost_every_lineage_is_trained_and_every_task_done_once_the_world_is_kind(seed: int) -> None:
    world = World(seed)
    for _ in range(150):
        world.turn()
    world.hostile = False
    for _ in range(1500):
        if world.oracle.finished and not world.disk and world.machine.fence == 0:
            break
        world.turn()
    assert world.oracle.finished, (world.machine.work, world.open, world.disk)
    assert not world.disk
    check_chains(world.oracle)


def check_chains(oracle: Oracle) -> None:
    for name in oracle.heads:
        chain = [c for c in oracle.accepted if c.lineage == name]
        assert [c.start_step for c in chain] == [0, *(c.end_step for c in chain[:-1])]
        assert chain[-1].end_step == TARGET
