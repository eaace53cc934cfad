"""Coordinators as processes for the benchmark: how long a start takes, beside journals of any length."""

from __future__ import annotations

import asyncio
import json
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.coordinator_scenes import advanced, ask, commit, complete, digest, enrolments, lineage, submitted, task
from coordinator.core.effects import Answer, CommitAccepted, Reply, TaskGranted, TrainGranted
from coordinator.core.events import DurableEvent
from coordinator.core.machine import Machine
from coordinator.core.values import Finished
from coordinator.home import CoordinatorHome
from coordinator.journal import SqliteJournal
from coordinator.snapshot import Mark, code_digest
from coordinator.snapshots import SNAPSHOT_ROWS, SnapshotFolder
from coordinator.wire_events import encode_event
from potluck.ids import NO_DIGEST, RunId, digest_bytes

READY_S = 1800.0
"""A replay of a million rows takes minutes."""
GROUP_ROWS = 4096
NODES = 20
TASKS, LINEAGES, COMMITS = 50, 20, 8
"""Of each run that a long journal is made of."""


class Coordinator:
    """A real one on this home, killed at the end as a power cut would."""

    def __init__(self, home: Path) -> None:
        self._log = home.with_name(f"{home.name}.log")
        command = [sys.executable, "-m", "coordinator", "--home", str(home), "--host", "127.0.0.1", "--port", "0"]
        with self._log.open("wb") as errors:
            then = time.monotonic()
            self.popen = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)
        assert self.popen.stdout is not None
        readable, _, _ = select.select([self.popen.stdout], [], [], READY_S)
        line = self.popen.stdout.readline() if readable else b""
        self.seconds = time.monotonic() - then
        if not line:
            self.popen.kill()
        assert line, f"the coordinator said nothing of being ready:\n{self._log.read_text()[-2000:]}"
        self.ready: Mapping[str, Any] = json.loads(line)

    @property
    def replayed(self) -> tuple[int, bool, float]:
        """Rows, whether it began at a snapshot, and seconds of its replay."""
        found = re.search(r"replayed rows=(\d+) snapshot=(\S+) ms=(\d+)", self._log.read_text())
        assert found is not None
        return int(found[1]), found[2] != "none", int(found[3]) / 1000

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.popen.kill()
        self.popen.wait()
        assert self.popen.stdout is not None
        self.popen.stdout.close()


def start_seconds(home: Path, *, with_snapshot: bool) -> float:
    """From the start of the process until it serves; on a copy, for a start changes the home."""
    copy = home.with_name(f"{home.name}-copy")
    shutil.copytree(home, copy)
    try:
        if not with_snapshot:
            shutil.rmtree(copy / "snapshots")
        with Coordinator(copy) as coordinator:
            rows, from_snapshot, _ = coordinator.replayed
            assert from_snapshot == with_snapshot, (rows, from_snapshot)
            return coordinator.seconds
    finally:
        shutil.rmtree(copy)


class Grower:
    """Makes a journal of any length without waiting for the disk after each row: runs that come and finish."""

    def __init__(self, home: Path) -> None:
        self._home = CoordinatorHome(home)
        self._home.keys()
        self._machine = Machine()
        self._journal = SqliteJournal(self._home.journal)
        self._waiting: list[str] = []
        self._num_rows = 0
        self._requests = 0

    async def grow(self, num_rows: int) -> None:
        """To at least so many rows, with a snapshot as old as one is on average."""
        for event in enrolments(range(NODES), 0):
            await self._feed(event)
        await self._runs_until(num_rows - SNAPSHOT_ROWS // 2)
        await self._flush()
        (row,) = self._journal.read_all(after=self._num_rows - 1)
        mark = Mark(rows=self._num_rows, last_row=digest_bytes(row.encode()))
        folder = SnapshotFolder(self._home.snapshots, code_digest(self._machine.state.settings))
        folder.save(self._machine.durable, mark)
        await self._runs_until(num_rows)
        await self._flush()
        self._journal.close()

    async def _runs_until(self, num_rows: int) -> None:
        while self._num_rows < num_rows:
            await self._one_run(RunId(digest("grown", self._num_rows)))

    async def _one_run(self, run: RunId) -> None:
        await self._feed(submitted(run, self._num_rows))
        await self._feed(advanced(run, self._num_rows, tasks=[task(run, number) for number in range(TASKS)]))
        for number in range(TASKS):
            grant = await self._ask(number % NODES)
            assert isinstance(grant, TaskGranted)
            await self._feed(complete(grant, number % NODES, self._requests, self._num_rows))
        wanted = [lineage(run, number, commits=COMMITS) for number in range(LINEAGES)]
        await self._feed(advanced(run, self._num_rows, lineages=wanted))
        for number in range(LINEAGES):
            grant = await self._ask(number % NODES)
            assert isinstance(grant, TrainGranted)
            head, parent = 0, NO_DIGEST
            for _ in range(COMMITS):
                self._requests += 1
                event = commit(grant, number % NODES, self._requests, self._num_rows, head=head, parent=parent)
                answer = await self._feed(event)
                assert isinstance(answer, CommitAccepted)
                head, parent = answer.head_step, answer.head
        outcome = Finished(report=digest(run, "report"), figures={"perplexity": 12.5})
        await self._feed(advanced(run, self._num_rows, lineages=wanted, outcome=outcome))

    async def _ask(self, number: int) -> Answer | None:
        self._requests += 1
        return await self._feed(ask(number, self._requests, self._num_rows))

    async def _feed(self, event: DurableEvent) -> Answer | None:
        effects = self._machine.handle(event)
        self._waiting.append(encode_event(event))
        self._num_rows += 1
        if len(self._waiting) >= GROUP_ROWS:
            await self._flush()
        return effects[0].answer if effects and isinstance(effects[0], Reply) else None

    async def _flush(self) -> None:
        await self._journal.append(self._waiting)
        self._waiting.clear()


def grown(home: Path, num_rows: int) -> Path:
    """A coordinator's home with a journal of so many rows, and a snapshot some rows before its end."""
    asyncio.run(Grower(home).grow(num_rows))
    return home
