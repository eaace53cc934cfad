"""A node that gets a tenth of the time: stopped and continued from outside, nine parts to one."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from potluck.specs.sections import ModelShape
from tests.chaos.world import Job, begin, children_of, outcome, tiny_job
from tests.integration.harness import Cluster, Daemon

RUNS_S, STOPS_S = 0.1, 0.9
"""Far below the silence that makes a node a suspect: it is slow, and nothing else."""
ENOUGH = 1.5
SHAPE = ModelShape(hidden=48, layers=2, heads=2, ffn=96)
CHUNK_SEQUENCES = 1024


def training_job(folder: Path) -> Job:
    """Most of its time is the training of two experts and their dense twin."""
    job = tiny_job(folder, documents=1200)
    experts = replace(job.spec.experts, model=SHAPE, chunk_sequences=CHUNK_SEQUENCES)
    return Job(spec=replace(job.spec, experts=experts), files=job.files)


@contextlib.contextmanager
def throttled(daemon: Daemon) -> Iterator[None]:
    """Inside, the daemon and its children run for a tenth of the time."""
    over = threading.Event()

    def turn(number: int) -> None:
        for process in (psutil.Process(daemon.popen.pid), *children_of(daemon)):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def cycle() -> None:
        while not over.wait(RUNS_S):
            turn(signal.SIGSTOP)
            over.wait(STOPS_S)
            turn(signal.SIGCONT)

    thread = threading.Thread(target=cycle, name="throttle")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def seconds(job: Job, folder: Path, *, with_slow_node: bool) -> float:
    """From the start of the run to its end; everybody has joined before."""
    with Cluster(folder) as cluster, contextlib.ExitStack() as stack:
        cluster.start_coordinator()
        cluster.start_node("fast", "--hostname", "fast")
        if with_slow_node:
            stack.enter_context(throttled(cluster.start_node("slow", "--hostname", "slow")))
        began = time.monotonic()
        cluster.put_corpus(job.files)
        outcome(cluster, begin(cluster, job))
        return time.monotonic() - began


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_slow_node_beside_a_fast_one_makes_the_run_little_longer(tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    job = training_job(tmp_path / "job")
    alone_s = seconds(job, tmp_path / "alone", with_slow_node=False)
    beside_s = seconds(job, tmp_path / "beside", with_slow_node=True)
    sys.stdout.write(f"alone {alone_s:.1f} s, beside a node of a tenth of the time {beside_s:.1f} s\n")
    assert beside_s <= ENOUGH * alone_s
