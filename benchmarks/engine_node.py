"""The node of `benchmarks.engine`: its real workshop, outbox and worker on one endless lease.

    python -m benchmarks.engine_node FOLDER

Speaks as `benchmarks.engine_loops` does. Between turns the worker's group is stopped by a signal while its clock
runs on: the interval between local checkpoints is lengthened by the number of contestants, so that they fall due
about as often for the steps done as in a node that trains all the time. A turn is timed from one progress frame
to another, each sent right after a step.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import psutil

from benchmarks.engine_loops import MIB, peak_rss_bytes
from benchmarks.engine_setting import LAST_STEP, Setting
from expert_node import events as on
from expert_node import workshop
from expert_node.child import GroupNote
from expert_node.frames import Message
from expert_node.outbox import Outbox
from expert_node.recording import Recording
from expert_node.values import Lease, TrainLease
from expert_node.workshop import Workshop
from potluck.clock import SystemClock
from potluck.config import to_mapping
from potluck.ids import NO_DIGEST, Digest, Fence, canonical_json
from potluck.metrics_sinks import open_recorder
from potluck.v1 import node_pb2

CONTESTANTS = 4
HEARTBEAT_SECONDS = 1.0
FENCE = Fence(1)


class WorkerNote(GroupNote):
    """Remembers the worker's pid."""

    pid = 0

    def note(self, name: str, pid: int) -> None:
        self.pid = pid
        super().note(name, pid)


class Watched(Recording):
    """The node's recording, which also queues the step of each progress frame."""

    def __init__(self, folder: Path) -> None:
        super().__init__(open_recorder(folder, tensorboard=False), node="node", clock=SystemClock())
        self.steps: asyncio.Queue[int] = asyncio.Queue()

    def progress(self, lease: Lease, told: Message, worker_rss_bytes: int) -> None:
        super().progress(lease, told, worker_rss_bytes)
        self.steps.put_nowait(told["step"])


class Node:
    """Acknowledges commits and takes them out of the outbox, as if the coordinator had answered at once."""

    def __init__(self, folder: Path, setting: Setting) -> None:
        self._setting = setting
        self._notes = WorkerNote(folder / "groups.json")
        self._outbox = Outbox(folder / "outbox")
        self._recording = Watched(folder / "metrics")
        self._steps = self._recording.steps
        self._workshop = Workshop(folder / "work", self._outbox, self._notes, self._recording, self._told)
        self._tasks: set[asyncio.Task[None]] = set()
        self._commits = 0

    async def start(self) -> None:
        await self._workshop.warm_up(self._setting.profile)
        await self._workshop.start(self._lease(), {Digest(d): Path(p) for d, p in self._setting.blobs.items()})
        self._keep(self._beat())
        await self._steps.get()
        os.killpg(self._notes.pid, signal.SIGSTOP)

    async def turn(self, seconds: float) -> dict[str, float]:
        while not self._steps.empty():
            self._steps.get_nowait()
        commits = self._commits
        os.killpg(self._notes.pid, signal.SIGCONT)
        first = last = await self._steps.get()
        began, cpu = time.perf_counter(), cpu_seconds(self._notes.pid)
        while last == first or time.perf_counter() - began < seconds:
            last = await self._steps.get()
        took, cpu = time.perf_counter() - began, cpu_seconds(self._notes.pid) - cpu
        os.killpg(self._notes.pid, signal.SIGSTOP)
        return {
            "steps": last - first,
            "seconds": took,
            "cpu_seconds": cpu,
            "peak_mib": peak_rss_bytes(self._notes.pid) / MIB,
            "commits": self._commits - commits,
        }

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await self._workshop.close()

    def _told(self, event: on.Event) -> None:
        if isinstance(event, on.CheckpointWritten):
            self._commits += 1
            self._workshop.acknowledge(FENCE, event.commit.end_step)
            self._keep(asyncio.to_thread(self._outbox.remove, event.commit.entry))
        elif isinstance(event, on.WorkerFailed):
            raise SystemExit(f"the worker failed: {event.message}")

    async def _beat(self) -> None:
        """Makes the heartbeats that a session would send."""
        while True:
            told, rss = self._workshop.progress, psutil.Process().memory_info().rss + self._workshop.rss_bytes()
            node_pb2.Heartbeat(
                fence=FENCE,
                step=told.step,
                tokens_per_second=told.tokens_per_second,
                loss=told.loss,
                rss_bytes=rss,
                tokens_total=self._workshop.tokens_total,
            ).SerializeToString()
            await asyncio.sleep(HEARTBEAT_SECONDS)

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _lease(self) -> TrainLease:
        recipe = self._setting.recipe
        return TrainLease(
            fence=FENCE,
            term_ms=0,
            lineage=recipe.id,
            recipe_json=recipe.to_json(),
            segments_json=f"[{self._setting.segment.to_json()}]",
            profile_json=canonical_json(to_mapping(self._setting.profile)),
            head_step=0,
            head=NO_DIGEST,
            weights=NO_DIGEST,
            optimizer=NO_DIGEST,
            target_step=LAST_STEP,
            label="benchmark",
        )


def cpu_seconds(pid: int) -> float:
    """Processor time of a process and its threads so far: to the nanosecond where Linux tells it."""
    try:
        files = list(Path(f"/proc/{pid}/task").glob("*/schedstat"))
        return sum(int(file.read_text(encoding="ascii").split()[0]) for file in files) * 1e-9
    except OSError:
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)


async def serve(folder: Path) -> None:
    workshop.LOCAL_CHECKPOINT_MS *= CONTESTANTS
    node = Node(folder, Setting.load(folder))
    await node.start()
    try:
        while line := await asyncio.to_thread(sys.stdin.readline):
            sys.stdout.write(json.dumps(await node.turn(float(line))) + "\n")
            sys.stdout.flush()
    finally:
        await node.close()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
