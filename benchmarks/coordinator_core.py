"""The core alone, without journal and wire: CPU of heartbeats, and what an event costs as work and nodes grow."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise

from benchmarks.coordinator_scenes import (
    COMMIT_STEPS,
    advanced,
    ask,
    commit,
    complete,
    crowd,
    digest,
    granted,
    lineage,
    node_name,
    submitted,
    task,
)
from coordinator.core.effects import Record, TaskGranted, TrainGranted
from coordinator.core.events import Event, HeartbeatReceived, TimePassed
from coordinator.core.machine import Machine
from coordinator.plain_json import copied
from coordinator.runtime import TICK_S
from coordinator.snapshot import Mark, decode, encode, read_header
from potluck.ids import NO_DIGEST, RunId

RUN = RunId("r" * 64)
REPEATS = 25
"""Events of each kind that are timed; the table gives their median."""
MIN_EXPONENT_SIZE = 100

Costs = dict[str, dict[int, list[float]]]
"""Kind of event -> size -> microseconds of each."""


def heartbeat_share(num_nodes: int, seconds: int) -> list[float]:
    """CPU share of one core, of each of so many seconds, of nodes that train, beat once a second and are watched."""
    machine, grants = training_crowd(num_nodes)
    shares = []
    for second in range(1, seconds + 1):
        then = time.process_time()
        for tick in range(round(1 / TICK_S)):
            now_ms = 1000 * second + round(1000 * TICK_S) * tick
            for number in range(tick, num_nodes, round(1 / TICK_S)):
                machine.handle(beat(number, grants[number], now_ms))
            assert not [e for e in machine.handle(TimePassed(now_ms=now_ms)) if isinstance(e, Record)]
        shares.append(time.process_time() - then)
    return shares


def training_crowd(num_nodes: int) -> tuple[Machine, list[TrainGranted]]:
    """As many lineages as nodes, and every node has one."""
    machine = crowd(num_nodes)
    machine.handle(submitted(RUN, 0))
    machine.handle(advanced(RUN, 0, lineages=[lineage(RUN, n, commits=8) for n in range(num_nodes)]))
    grants = [granted(machine, number, 1, 0) for number in range(num_nodes)]
    return machine, [grant for grant in grants if isinstance(grant, TrainGranted)]


def beat(number: int, grant: TrainGranted, now_ms: int) -> HeartbeatReceived:
    return HeartbeatReceived(
        now_ms=now_ms, node=node_name(number), fence=grant.fence, activity="training", step=1, loss=2.5
    )


def snapshot_costs(num_nodes: int, repeats: int) -> dict[str, list[float]]:
    """Of a state of so many nodes and lineages with half of their commits; the copy is what holds the loop."""
    machine, grants = training_crowd(num_nodes)
    for number, grant in enumerate(grants):
        parent = NO_DIGEST
        for index in range(grant.lineage.total_steps // grant.lineage.commit_every // 2):
            event = commit(grant, number, index, 0, head=index * COMMIT_STEPS, parent=parent)
            machine.handle(event)
            parent = event.child
    found: dict[str, list[float]] = {"copy_ms": [], "encode_ms": [], "read_ms": [], "mib": []}
    for _ in range(repeats):
        times = [time.perf_counter()]
        copy = copied(machine.durable)
        times.append(time.perf_counter())
        data = b"".join(encode(copy, Mark(rows=1, last_row=NO_DIGEST), NO_DIGEST))
        times.append(time.perf_counter())
        read_header(data)
        decode(data)
        times.append(time.perf_counter())
        for name, (then, now) in zip(("copy_ms", "encode_ms", "read_ms"), pairwise(times), strict=True):
            found[name].append(1000 * (now - then))
        found["mib"].append(len(data) / (1 << 20))
    return found


def costs_by_open_work(sizes: Sequence[int]) -> Costs:
    """16 nodes, one run, so many open tasks or lineages: each event is timed in the middle of the work."""
    costs: Costs = {}
    for size in sizes:
        tasks = crowd(16)
        tasks.handle(submitted(RUN, 0))
        tasks.handle(advanced(RUN, 0, tasks=[task(RUN, number) for number in range(size + 2 * REPEATS)]))
        for kind, us in _work_tasks(tasks):
            costs.setdefault(f"{kind}, by open tasks", {}).setdefault(size, []).append(us)
        lineages = crowd(16)
        lineages.handle(submitted(RUN, 0))
        wanted = [lineage(RUN, number, commits=2 * REPEATS) for number in range(size)]
        lineages.handle(advanced(RUN, 0, lineages=wanted))
        for kind, us in _work_lineages(lineages):
            costs.setdefault(f"{kind}, by open lineages", {}).setdefault(size, []).append(us)
    return costs


def costs_by_nodes(sizes: Sequence[int]) -> Costs:
    """So many nodes: half of them train, and half find nothing to do."""
    costs: Costs = {}
    for size in sizes:
        machine = crowd(size)
        machine.handle(submitted(RUN, 0))
        wanted = [lineage(RUN, number, commits=2 * REPEATS) for number in range(size // 2)]
        machine.handle(advanced(RUN, 0, lineages=wanted))
        grants = [granted(machine, number, 1, 0) for number in range(size)]
        holders = [(n, grant) for n, grant in enumerate(grants) if isinstance(grant, TrainGranted)]
        for kind, us in _work_nodes(machine, holders, size):
            costs.setdefault(f"{kind}, by nodes", {}).setdefault(size, []).append(us)
    return costs


def exponent(by_size: dict[int, list[float]]) -> float:
    """The slope of log(time) over log(size): 0 for constant or logarithmic cost, 1 for linear."""
    sizes = [size for size in by_size if size >= MIN_EXPONENT_SIZE]
    xs = [math.log(size) for size in sizes]
    ys = [math.log(statistics.median(by_size[size])) for size in sizes]
    return statistics.linear_regression(xs, ys).slope


def _work_tasks(machine: Machine) -> Iterator[tuple[str, float]]:
    held = [digest(RUN, "router"), digest(RUN, "chunk", 7)]
    for number in range(REPEATS):
        asked = ask(0, number, 1_000, held=held)
        yield "grant", _timed(machine, asked)
        (lease,) = machine.durable.leases.values()
        grant = TaskGranted(fence=lease.fence, term_ms=0, task=machine.durable.holder(lease).wanted)  # type: ignore[union-attr, arg-type]
        done = complete(grant, 0, number, 2_000)
        yield "result", _timed(machine, done)
    yield from _ticks(machine, 3_000)


def _work_lineages(machine: Machine) -> Iterator[tuple[str, float]]:
    grant = granted(machine, 0, 1, 0)
    assert isinstance(grant, TrainGranted)
    parent = NO_DIGEST
    for number in range(REPEATS):
        event = commit(grant, 0, number, 100 * number, head=number * COMMIT_STEPS, parent=parent)
        parent = event.child
        yield "commit", _timed(machine, event)
    for number in range(REPEATS):
        asked = ask(1, number, 10_000)
        yield "grant", _timed(machine, asked)


def _work_nodes(machine: Machine, holders: list[tuple[int, TrainGranted]], size: int) -> Iterator[tuple[str, float]]:
    parents = dict.fromkeys((number for number, _ in holders), (0, NO_DIGEST))
    for index in range(REPEATS):
        number, grant = holders[index % len(holders)]
        head, parent = parents[number]
        event = commit(grant, number, index, 60_000, head=head, parent=parent)
        parents[number] = (event.end_step, event.child)
        yield "commit", _timed(machine, event)
        asked = ask(size - 1, index, 60_000)
        yield "ask in vain", _timed(machine, asked)
        told = beat(number, grant, 60_000)
        yield "heartbeat", _timed(machine, told)
    for number, grant in holders:
        machine.handle(beat(number, grant, 60_000))
    yield from _ticks(machine, 60_000)


def _ticks(machine: Machine, now_ms: int) -> Iterator[tuple[str, float]]:
    for index in range(REPEATS):
        tick = TimePassed(now_ms=now_ms + index)
        yield "tick", _timed(machine, tick)


def _timed(machine: Machine, event: Event) -> float:
    then = time.perf_counter_ns()
    machine.handle(event)
    return (time.perf_counter_ns() - then) / 1000
