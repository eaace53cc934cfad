"""A month in the life of a coordinator: the real core, runtime, journal and snapshots, driven by made-up nodes.

    python -m benchmarks.coordinator_month --home DIR --nodes 1000 --days 1,7,14,30

A process of its own, so that its memory is the coordinator's and that of a light fleet. Time is turned by hand,
half an hour at once: at each turn every node beats, then those whose work is due commit, answer or ask, all at the same
time. Runs come at even intervals: tasks, then lineages of equal length, then tasks again; then they are published and
finish. Nodes differ in speed, die and come back. For each day that was asked for it prints a line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.coordinator_scenes import (
    advanced,
    ask,
    commit,
    complete,
    digest,
    enrolments,
    lineage,
    node_name,
    session,
    submitted,
    task,
)
from coordinator.core.effects import Answer, CommitAccepted, Push, Revoke, TaskGranted, TrainGranted, Wake
from coordinator.core.events import HeartbeatReceived, PlanAdvanced, SessionClosed, TimePassed
from coordinator.core.machine import Machine
from coordinator.core.state import NO_FENCE
from coordinator.core.values import Finished, Publication
from coordinator.journal import SqliteJournal
from coordinator.runtime import Runtime
from coordinator.snapshot import Mark, code_digest, encode
from coordinator.snapshots import SnapshotFolder, SnapshotTaker
from potluck.clock import ManualClock, SystemClock
from potluck.ids import NO_DIGEST, Digest, RunId

TURN_MS = 1_800_000
TURNS_A_DAY = 48
COMMITS = 8
TASKS = 40
"""Before the lineages, and as many after them."""
AWAY_TURNS = 4
"""How long a node that died stays away."""
MAX_ROUNDS = 1000
"""Of one turn: answers wake other nodes, which ask, and so on."""
MIB = 1 << 20


@dataclass(kw_only=True)
class Node:
    number: int
    boot: int = 0
    request_id: int = 0
    grant: TrainGranted | TaskGranted | None = None
    head: int = 0
    parent: Digest = NO_DIGEST
    due: float = 0.0
    """The turn at which it acts next; infinite while it waits to be woken."""
    back: int = -1
    """The turn at which it comes back; negative while it is there."""

    @property
    def turns_a_commit(self) -> int:
        return 2 + self.number % 2


class Month:
    def __init__(self, home: Path, *, nodes: int, runs_a_day: int, lineages: int, deaths_a_day: int) -> None:
        self.machine, self.clock = Machine(), ManualClock()
        self.home = home
        self.journal = SqliteJournal(home / "journal.db")
        folder = SnapshotFolder(home / "snapshots", code_digest(self.machine.state.settings))
        self.runtime = Runtime(
            machine=self.machine,
            journal=self.journal,
            clock=self.clock,
            evaluate=self.plan,
            deliver=self.deliver,
            snapshots=SnapshotTaker(folder, SystemClock().monotonic_ms),
        )
        self.nodes = [Node(number=number) for number in range(nodes)]
        self.by_name = {node_name(node.number): node for node in self.nodes}
        self.turn = 0
        self._turns_a_run = max(1, TURNS_A_DAY // runs_a_day)
        self._turns_a_death = max(1, TURNS_A_DAY // deaths_a_day)
        self._lineages = lineages
        self._cpu_s = time.process_time()

    async def live(self, days: list[int]) -> None:
        running = asyncio.create_task(self.runtime.run("boot"))
        for event in enrolments(range(len(self.nodes)), 0):
            await self.runtime.submit(event)
        for node in self.nodes:
            self.runtime.post(session(node.number, 0))
        for day in range(1, days[-1] + 1):
            for _ in range(TURNS_A_DAY):
                await self.take_turn()
            if day in days:
                sys.stdout.write(json.dumps(self.measure(day)) + "\n")
                sys.stdout.flush()
        running.cancel()
        await asyncio.wait((running,))
        await self.runtime.finish_snapshots()
        self.journal.close()

    async def take_turn(self) -> None:
        self.turn += 1
        self.clock.advance(TURN_MS)
        now_ms = self.clock.now_ms
        for node in self.nodes:
            self.rise_or_beat(node, now_ms)
        self.runtime.post(TimePassed(now_ms=now_ms))
        if self.turn % self._turns_a_run == 1:
            await self.runtime.submit(submitted(RunId(digest("run", self.turn)), now_ms))
        if self.turn % self._turns_a_death == 0:
            self.die(self.nodes[self.turn * 7919 % len(self.nodes)], now_ms)
        for _ in range(MAX_ROUNDS):
            due = [node for node in self.nodes if node.back < 0 and node.due <= self.turn]
            if not due:
                return
            await asyncio.gather(*(self.act(node, now_ms) for node in due))
            await self.runtime.read(lambda state: None)
        raise RuntimeError(f"turn {self.turn} does not end: {len(due)} nodes ask on and on")

    def rise_or_beat(self, node: Node, now_ms: int) -> None:
        if node.back > self.turn:
            return
        if node.back >= 0:
            node.back, node.boot, node.request_id, node.due = -1, node.boot + 1, 0, self.turn
            self.runtime.post(session(node.number, now_ms, boot=node.boot))
        fence = node.grant.fence if node.grant is not None else NO_FENCE
        activity = "training" if isinstance(node.grant, TrainGranted) else "task" if node.grant else "idle"
        self.runtime.post(HeartbeatReceived(now_ms=now_ms, node=node_name(node.number), fence=fence, activity=activity))

    def die(self, node: Node, now_ms: int) -> None:
        if node.back >= 0:
            return
        boot_id = f"boot-{node.boot}"
        closed = SessionClosed(now_ms=now_ms, node=node_name(node.number), boot_id=boot_id, orderly=False)
        self.runtime.post(closed)
        node.back, node.grant = self.turn + AWAY_TURNS, None

    async def act(self, node: Node, now_ms: int) -> None:
        """What is due is handed in; then, if nothing is left in hand, more is asked for."""
        node.request_id += 1
        if isinstance(node.grant, TrainGranted):
            event = commit(node.grant, node.number, node.request_id, now_ms, head=node.head, parent=node.parent)
            answer = await self.runtime.submit(event)
            node.due = self.turn + node.turns_a_commit
            if isinstance(answer, CommitAccepted) and not answer.yield_lease:
                node.head, node.parent = answer.head_step, answer.head
                return
        elif node.grant is not None:
            await self.runtime.submit(complete(node.grant, node.number, node.request_id, now_ms))
        node.grant, node.request_id = None, node.request_id + 1
        wanted = ask(node.number, node.request_id, now_ms, boot=node.boot)
        self.take(node, await self.runtime.submit(wanted))

    def take(self, node: Node, answer: Answer) -> None:
        node.due = math.inf
        if isinstance(answer, TrainGranted):
            node.grant, node.head, node.parent = answer, answer.head_step, answer.head
            node.due = self.turn + node.turns_a_commit
        elif isinstance(answer, TaskGranted):
            node.grant, node.due = answer, self.turn + 1

    def deliver(self, push: Push) -> None:
        node = self.by_name[push.node]
        if isinstance(push, Wake) and node.grant is None:
            node.due = self.turn
        if isinstance(push, Revoke) and node.grant is not None and node.grant.fence == push.fence:
            node.grant, node.due = None, self.turn

    def plan(self, machine: Machine, run: RunId, now_ms: int) -> PlanAdvanced:
        """Tasks, lineages, tasks; then all is published and the run is finished."""
        results = machine.results_of(run)
        before = [task(run, number) for number in range(TASKS)]
        if any(results.task(one.id) is None for one in before):
            return advanced(run, now_ms, tasks=before, stage="scoring")
        wanted = [lineage(run, number, commits=COMMITS) for number in range(self._lineages)]
        chains = [results.commits(one.id) for one in wanted]
        if any(one.total_steps not in chain for one, chain in zip(wanted, chains, strict=True)):
            return advanced(run, now_ms, lineages=wanted, stage="training")
        slots = [
            Publication(
                slot=f"expert-{number}",
                lineage=one.id,
                step=one.total_steps,
                weights=chain[one.total_steps].weights,
                tokenizer=digest(run, "tokenizer"),
                model_json='{"hidden":64}',
            )
            for number, (one, chain) in enumerate(zip(wanted, chains, strict=True))
        ]
        after = [task(run, number, kind="eval") for number in range(TASKS)]
        if any(results.task(one.id) is None for one in after):
            return advanced(run, now_ms, lineages=wanted, tasks=after, publish=slots, stage="evaluating")
        outcome = Finished(report=digest(run, "report"), figures={"perplexity": 12.5})
        return advanced(run, now_ms, lineages=wanted, publish=slots, stage="done", outcome=outcome)

    def measure(self, day: int) -> dict[str, float]:
        gc.collect()
        durable = self.machine.durable
        lines = encode(durable, Mark(rows=1, last_row=NO_DIGEST), NO_DIGEST)
        snapshots = sorted((self.home / "snapshots").glob("*.jsonl"))
        cpu_s, self._cpu_s = time.process_time() - self._cpu_s, time.process_time()
        return {
            "day": day,
            "rss_mib": psutil.Process().memory_info().rss / MIB,
            "state_mib": sum(len(line) for line in lines) / MIB,
            "journal_mib": sum(size_of(self.home)) / MIB,
            "snapshot_mib": snapshots[-1].stat().st_size / MIB if snapshots else 0.0,
            "rows": sum(1 for _ in self.journal.read_all()),
            "finished_runs": len(durable.runs) - len(durable.running()),
            "running_runs": len(durable.running()),
            "leases": len(durable.leases),
            "cpu_s": cpu_s,
        }


def size_of(home: Path) -> Iterator[int]:
    yield from (path.stat().st_size for path in home.glob("journal.db*"))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coordinator_month")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--days", type=lambda text: [int(day) for day in text.split(",")], default=[1, 7, 14, 30])
    parser.add_argument("--runs-a-day", type=int, default=4)
    parser.add_argument("--lineages", type=int, default=60)
    parser.add_argument("--deaths-a-day", type=int, default=24)
    options = parser.parse_args()
    os.makedirs(options.home, exist_ok=True)
    month = Month(
        options.home,
        nodes=options.nodes,
        runs_a_day=options.runs_a_day,
        lineages=options.lineages,
        deaths_a_day=options.deaths_a_day,
    )
    asyncio.run(month.live(options.days))


if __name__ == "__main__":
    main()
