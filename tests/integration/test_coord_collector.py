"""What may go when room is short, and what must not."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

from coordinator.collector import Collector, closure, hold, roots_of
from coordinator.core.events import LeaseRequested, PlanAdvanced, RunSubmitted, TaskCompleted
from coordinator.core.machine import Machine
from coordinator.core.values import Running, TaskWanted
from coordinator.journal import MemoryJournal
from coordinator.runtime import Runtime
from potluck.clock import ManualClock
from potluck.ids import Digest, Fence, NodeId, RunId, task_id
from potluck.net.blobs.store import BlobStore
from tests.unit.test_core_leases import Bench, lineage

NODE = NodeId("n1")


def put(store: BlobStore, data: bytes, *, old: bool = True) -> Digest:
    digest = store.put_bytes(data)
    if old:
        os.utime(store.path(digest), (1, 1))
    return digest


def manifest(store: BlobStore, *digests: Digest) -> Digest:
    blobs = {f"part-{number}": digest for number, digest in enumerate(digests)}
    return put(store, json.dumps({"kind": "tokens", "blobs": blobs}).encode())


@contextlib.asynccontextmanager
async def runtime_with(corpus: Digest, result: Digest) -> AsyncIterator[Runtime]:
    """A run over a corpus, with one task done."""
    wanted = TaskWanted(id=task_id("fit", {}, {}), kind="fit", params_json="{}", inputs=(), label="fit")

    def plan(machine: Machine, run: RunId, now_ms: int) -> PlanAdvanced:
        return PlanAdvanced(
            now_ms=now_ms, run=run, lineages=(), tasks=(wanted,), publish=(), stage="", outcome=Running()
        )

    runtime = Runtime(
        machine=Machine(), journal=MemoryJournal(), clock=ManualClock(), evaluate=plan, deliver=lambda push: None
    )
    running = asyncio.create_task(runtime.run("boot"))
    spec = json.dumps({"corpus": corpus})
    await runtime.submit(
        RunSubmitted(
            now_ms=0, unix_ms=0, request_id="1", run=RunId("r"), spec_json=spec, corpus_json="{}", name="", priority=0
        )
    )
    await runtime.submit(LeaseRequested(now_ms=0, node=NODE, request_id=1, boot_id="b", free_memory_bytes=1))
    await runtime.submit(
        TaskCompleted(
            now_ms=0,
            node=NODE,
            request_id=1,
            fence=Fence(1),
            task=wanted.id,
            blobs=(("tokens", result),),
            figures={},
        )
    )
    yield runtime
    running.cancel()
    await asyncio.wait((running,))


def test_only_what_nothing_needs_and_nobody_just_brought_goes(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = BlobStore(tmp_path)
        shard, row = put(store, b"shard"), put(store, b"row")
        corpus, tokens = manifest(store, shard), manifest(store, row)
        useless, fresh = put(store, b"useless"), put(store, b"fresh", old=False)
        async with runtime_with(corpus, tokens) as runtime:
            gone = await Collector(runtime=runtime, store=store, folder=tmp_path).collect(0)
        assert gone == [useless]
        assert all(store.has(digest) for digest in (shard, row, corpus, tokens, fresh))

    asyncio.run(scenario())


def test_what_a_fork_starts_from_is_kept_however_far_its_lineage_has_gone_on() -> None:
    bench = Bench()
    origin = {"weights": "a" * 64, "optimizer": "b" * 64, "step": 2}
    segment = {"tokens": "c" * 64, "labels": "d" * 64, "mixture": "e" * 64}
    fork = replace(lineage("fork"), recipe_json=json.dumps({"origin": origin}), segments_json=(json.dumps(segment),))
    bench.plan(lineage("trunk"), fork)
    assert {Digest(letter * 64) for letter in "abcde"} <= roots_of(bench.machine.state)


def test_collection_stops_when_there_is_room_and_takes_the_oldest_first(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = BlobStore(tmp_path)
        corpus = manifest(store)
        old, older = put(store, b"x" * 1000), put(store, b"y" * 1000)
        os.utime(store.path(old), (100, 100))
        async with runtime_with(corpus, corpus) as runtime:
            collector = Collector(runtime=runtime, store=store, folder=tmp_path)
            assert await collector.collect(store.total_bytes - 500) == [older]
        assert store.has(old)

    asyncio.run(scenario())


def test_room_is_short_above_four_fifths_of_the_quota(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = BlobStore(tmp_path, quota_bytes=1000)
        corpus = manifest(store)
        async with runtime_with(corpus, corpus) as runtime:
            collector = Collector(runtime=runtime, store=store, folder=tmp_path)
            assert collector.target_bytes() is None
            put(store, b"x" * 900)
            assert collector.target_bytes() == 800

    asyncio.run(scenario())


def test_what_is_held_becomes_young_and_what_is_missing_is_named(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    there, missing = put(store, b"there"), Digest("a" * 64)
    assert hold(store, [there, missing, there]) == [missing]
    assert store.path(there).stat().st_mtime > 1


def test_a_manifest_keeps_what_it_lists_through_manifests_it_lists(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    leaf = put(store, b"{not json")
    top = manifest(store, manifest(store, leaf), put(store, b"[1]"))
    assert len(closure(store, [top])) == 4
