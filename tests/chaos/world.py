"""A run small enough to be done in seconds, and what must come out of it whatever dies on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from coordinator.journal import SqliteJournal
from potluck.ids import Digest
from potluck.specs.sections import EvalSpec, ModelShape, TextSpec
from potluck.specs.smalltalk import DenseSpec, ExpertSpec, RouterSpec, SmallTalkSpec
from potluck.v1 import admin_pb2
from sampling.ingest import Ingested, ingest
from tests.integration.harness import Cluster, Daemon
from tests.reference.languages import write_languages

GONE_S = 10.0
DEATH_S = 60.0
LOOK_S = 0.05
"""Between two looks into a log file, which nobody can be told of."""
SHAPE = ModelShape(hidden=16, layers=1, heads=2, ffn=32)
Link = tuple[int, int, str, str]
"""Start step, end step, parent, child of a commit."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be run: the canonical spec, and the files of its corpus."""

    spec: SmallTalkSpec
    files: Mapping[Digest, Path]


def tiny_job(folder: Path, *, documents: int = 30) -> Job:
    """Two experts, two rounds, two chunks: 33 tasks and 6 lineages with 27 commits."""
    corpus: Ingested = ingest(write_languages(folder / "text.jsonl", documents=documents, seed=1, languages=2), folder)
    spec = SmallTalkSpec(
        corpus=corpus.digest,
        text=TextSpec(vocab_size=300, sequence_length=32, prefix_length=8),
        routers=RouterSpec(model=SHAPE, rounds=2, chunk_sequences=64, batch_size=8),
        experts=ExpertSpec(model=SHAPE, num=2, chunks=2, chunk_sequences=128, batch_size=8),
        dense=DenseSpec(batch_size=8),
        evaluation=EvalSpec(bootstrap_samples=200),
    )
    return Job(spec=spec, files=corpus.files)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Everything of a finished run that no disturbance may change."""

    report: str
    chains: Mapping[str, tuple[Link, ...]]
    """By lineage: every checkpoint, with its parent."""
    published: tuple[tuple[str, str], ...]
    results: str


def begin(cluster: Cluster, job: Job) -> str:
    cluster.put_corpus(job.files)
    return cluster.start_run(job.spec)


def outcome(cluster: Cluster, run: str) -> Outcome:
    """Waits for the end of the run, and holds the ledger to be whole."""
    info = cluster.wait_ended(run)
    assert info.state == "finished", f"{info.state}: {info.reason}{cluster.tails()}"
    with cluster.client() as client:
        ledger = client.get_ledger(run)
        whole = client.get_run(run)
    assert ledger.ok, ledger.problems
    for line in ledger.lineages:
        assert _is_whole(line), line
    return Outcome(
        report=info.report,
        chains={
            line.lineage: tuple((r.start_step, r.end_step, r.parent, r.child) for r in line.ranges)
            for line in ledger.lineages
        },
        published=tuple(sorted((slot.slot, slot.weights) for slot in info.published)),
        results=whole.results_json,
    )


def _is_whole(line: admin_pb2.LedgerLine) -> bool:
    """Every step is trained once, and each checkpoint follows from the one before."""
    ends = [0, *(r.end_step for r in line.ranges)]
    children = ["", *(r.child for r in line.ranges)]
    linked = all(r.start_step == ends[n] and (not n or r.parent == children[n]) for n, r in enumerate(line.ranges))
    return linked and ends[-1] == line.total_steps


@dataclass(frozen=True, kw_only=True)
class Refusal:
    exit_code: int
    text: str

    def says(self, error_id: str) -> bool:
        """One error, with something to do about it, and no traceback."""
        return f"[{error_id}]" in self.text and "fix: " in self.text and "Traceback" not in self.text


def refused(*command: str, environment: dict[str, str] | None = None) -> Refusal:
    """Runs a daemon that is expected to end by itself."""
    whole = [sys.executable, "-m", *command]
    environment = {**os.environ, **(environment or {})}
    done = subprocess.run(whole, capture_output=True, text=True, timeout=60, env=environment, check=False)
    return Refusal(exit_code=done.returncode, text=done.stderr)


def dies_at(name: str, log: Path) -> dict[str, str]:
    """The environment of a daemon that is to die at a named place."""
    return {"POTLUCK_CRASH_AT": name, "POTLUCK_CRASH_LOG": str(log)}


def wait_killed(daemon: Daemon) -> None:
    """Waits until the daemon has died of SIGKILL; the crash log says where."""
    code = daemon.popen.wait(timeout=DEATH_S)
    assert code == -signal.SIGKILL, f"{daemon.name} ended with {code}:\n{daemon.tail()}"


def deaths(log: Path) -> list[str]:
    """The places where daemons have died, in order."""
    return log.read_text().splitlines()


def place(death: str) -> str:
    """The name of a crash point without the number of the pass."""
    return death.rpartition(":")[0]


def wait_said(daemon: Daemon, text: str) -> None:
    """Waits until a daemon has logged something."""
    deadline = time.monotonic() + DEATH_S
    while text not in daemon.log.read_text(encoding="utf-8"):
        assert time.monotonic() < deadline, f"{daemon.name} never said {text!r}:\n{daemon.tail()}"
        time.sleep(LOOK_S)


def children_of(daemon: Daemon) -> list[psutil.Process]:
    """Processes that this daemon has started, whether it still lives or not: their command line names it."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if command[1:2] == ["-m"] and command[2].startswith("expert_node.") and command[3:4] == [str(daemon.popen.pid)]:
            found.append(process)
    return found


def assert_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=GONE_S)
    assert not alive, alive


def journal_rows(home: Path) -> list[str]:
    """The journal of a coordinator that has ended."""
    journal = SqliteJournal(home / "journal.db")
    try:
        return list(journal.read_all())
    finally:
        journal.close()


def assert_group_gone(daemon: Daemon) -> None:
    """Neither the daemon nor anything in its process group is left, nor the children in groups of their own."""
    assert_gone(children_of(daemon))
    with pytest.raises(ProcessLookupError):
        os.killpg(daemon.popen.pid, 0)


def stop_twice(daemon: Daemon) -> int:
    """Asks it to end, and at once again with the other signal: two equal ones may arrive as one."""
    daemon.signal(signal.SIGTERM)
    daemon.signal(signal.SIGINT)
    return daemon.wait_ended()
