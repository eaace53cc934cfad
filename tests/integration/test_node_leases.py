"""A node against a twin of the coordinator: real gRPC, real data plane, a real worker process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import psutil
import pytest

from expert_node import workshop
from expert_node.__main__ import lock_home
from expert_node.daemon import Node
from potluck.errors import ResourceError
from potluck.ids import NO_DIGEST, Digest, NodeId, canonical_json, task_id
from potluck.lm.checkpoint import CheckpointManifest
from potluck.lm.config import ModelConfig
from potluck.net.blobs.server import BlobServer
from potluck.net.blobs.store import BlobStore
from potluck.net.channels import bind, new_server
from potluck.net.guard import Guard
from potluck.net.identity import Identity
from potluck.recipe import AdamWConfig, Profile, Recipe, Schedule, Segment, Stream
from potluck.v1 import common_pb2, node_pb2, node_pb2_grpc

LOOPBACK = "127.0.0.1"
PATIENCE_S = 60.0
MODEL = ModelConfig(vocab=64, hidden=16, layers=1, heads=2, ffn=24, context=9)


class CoordinatorTwin(node_pb2_grpc.NodeServiceServicer):
    """Grants what is queued, moves heads by compare-and-set, and remembers what it was told."""

    def __init__(self, store: BlobStore) -> None:
        self.store = store
        self.leases: deque[node_pb2.Lease | Callable[[], node_pb2.Lease]] = deque()
        self.commits: list[node_pb2.CommitRequest] = []
        self.results: list[node_pb2.CompleteTaskRequest] = []
        self.returned: list[node_pb2.ReturnLeaseRequest] = []
        self.beats: list[node_pb2.Heartbeat] = []
        self.serving: list[node_pb2.ServingState] = []
        self.heads: dict[str, tuple[int, str]] = {}
        self.byes: list[str] = []
        self.down: asyncio.Queue[node_pb2.DownItem] = asyncio.Queue()
        self.changed = asyncio.Condition()
        self.unreachable = False

    async def until(self, is_true: Callable[[], bool]) -> None:
        """Waits for something to be told; the test fails if it never is."""
        async with asyncio.timeout(PATIENCE_S), self.changed:
            await self.changed.wait_for(is_true)

    async def _note(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def AcquireLease(self, request: Any, context: Any) -> Any:
        await self._reached(context)
        if self.leases:
            lease = self.leases.popleft()
            return node_pb2.AcquireLeaseResponse(lease=lease() if callable(lease) else lease)
        return node_pb2.AcquireLeaseResponse(none=node_pb2.NoLease(reason="nothing queued"))

    async def RenewLease(self, request: Any, context: Any) -> Any:
        return node_pb2.RenewLeaseResponse(renewed=True)

    async def Commit(self, request: Any, context: Any) -> Any:
        await self._reached(context)
        missing = [d for d in (request.child, request.weights, request.optimizer) if not self.store.has(Digest(d))]
        if missing:
            return node_pb2.CommitResponse(missing=missing)
        step, head = self.heads.get(request.lineage, (0, NO_DIGEST))
        if request.child == head:
            return node_pb2.CommitResponse(accepted=True, head_step=step, head=head)
        if (request.start_step, request.parent) != (step, head):
            return node_pb2.CommitResponse(reason="the head has moved", head_step=step, head=head)
        self.heads[request.lineage] = (request.end_step, request.child)
        self.commits.append(request)
        await self._note()
        return node_pb2.CommitResponse(accepted=True, head_step=request.end_step, head=request.child)

    async def CompleteTask(self, request: Any, context: Any) -> Any:
        await self._reached(context)
        self.results.append(request)
        await self._note()
        return node_pb2.CompleteTaskResponse(accepted=True)

    async def ReturnLease(self, request: Any, context: Any) -> Any:
        self.returned.append(request)
        await self._note()
        return node_pb2.ReturnLeaseResponse(accepted=True)

    async def Session(self, request_iterator: AsyncIterator[Any], context: Any) -> None:
        reader = asyncio.create_task(self._read(request_iterator))
        try:
            welcome = node_pb2.Welcome(node_id="n-1", boot_id="b", heartbeat_ms=100)
            await context.write(node_pb2.SessionDown(items=[node_pb2.DownItem(welcome=welcome)]))
            while not reader.done():
                sending = asyncio.ensure_future(self.down.get())
                await asyncio.wait((sending, reader), return_when=asyncio.FIRST_COMPLETED)
                if not sending.done():
                    sending.cancel()
                    return
                await context.write(node_pb2.SessionDown(items=[sending.result()]))
        finally:
            reader.cancel()

    async def _read(self, messages: AsyncIterator[Any]) -> None:
        async for message in messages:
            for item in message.items:
                match item.WhichOneof("item"):
                    case "heartbeat":
                        self.beats.append(item.heartbeat)
                    case "serving":
                        self.serving.append(item.serving)
                    case "bye":
                        self.byes.append(item.bye.reason)
                        await self._note()
                        return
            await self._note()

    async def _reached(self, context: Any) -> None:
        if self.unreachable:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the twin plays dead")


@asynccontextmanager
async def coordinator_twin(folder: Path) -> AsyncIterator[tuple[CoordinatorTwin, Identity]]:
    store = BlobStore(folder / "hub")
    twin = CoordinatorTwin(store)
    server = new_server([Guard()])
    node_pb2_grpc.add_NodeServiceServicer_to_server(twin, server)
    port = bind(server, LOOPBACK, 0, None)
    await server.start()
    blobs = BlobServer(store, host=LOOPBACK, keys=None)
    data_port = blobs.start()
    identity = Identity(
        node_id=NodeId("n-1"),
        role="node",
        key_pem=b"",
        certificate_pem=b"",
        ca_pem=b"",
        curve_public="",
        curve_secret="",
        curve_server_key="",
        host=LOOPBACK,
        control_port=port,
        data_port=data_port,
        insecure=True,
    )
    try:
        yield twin, identity
    finally:
        await server.stop(None)
        await asyncio.to_thread(blobs.close)


@asynccontextmanager
async def running_node(home: Path, identity: Identity) -> AsyncIterator[Node]:
    node = Node(home, identity, boot_id="boot")
    task = asyncio.create_task(node.run())
    try:
        yield node
        node.stop()
        async with asyncio.timeout(PATIENCE_S):
            await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def put_array(store: BlobStore, folder: Path, name: str, array: np.ndarray) -> Digest:
    path = folder / f"{name}.npy"
    np.save(path, array, allow_pickle=False)
    return store.put_file(path)


def put_tokens(store: BlobStore, folder: Path, rows: int) -> Digest:
    """A tokens manifest over one shard of random rows of 9 tokens."""
    generator = np.random.default_rng(7)
    array = generator.integers(1, MODEL.vocab, size=(rows, MODEL.context), dtype=np.uint16)
    meta = np.tile(np.array([0, -1, MODEL.context - 1], dtype=np.int32), (rows, 1))
    part = {
        "rows": put_array(store, folder, "rows", array),
        "meta": put_array(store, folder, "meta", meta),
        "count": rows,
        "pack_offset": 0,
    }
    empty: dict[str, Any] = {"rows": 0, "parts": []}
    manifest = {
        "kind": "tokens",
        "version": 1,
        "sequence_length": MODEL.context - 1,
        "vocab_size": MODEL.vocab,
        "tokenizer": NO_DIGEST,
        "sources": ["all"],
        "splits": {"train": {"rows": rows, "parts": [part]}, "valid": empty, "test": empty},
        "blobs": {"train_rows": part["rows"], "train_meta": part["meta"]},
    }
    return store.put_bytes(canonical_json(manifest).encode())


def recipe(total_steps: int, commit_every: int) -> Recipe:
    return Recipe(
        role="expert",
        index=0,
        model=MODEL,
        optimizer=AdamWConfig(),
        schedule=Schedule(kind="constant", learning_rate=1e-3, warmup_steps=1, total_steps=total_steps),
        batch_size=2,
        columns=MODEL.context,
        init_seed=3,
        data_rule="{}",
        commit_every=commit_every,
    )


def train_lease(fence: int, what: Recipe, segments: list[Segment], head: Any = None) -> node_pb2.Lease:
    work = node_pb2.TrainWork(
        lineage=what.id,
        recipe_json=what.to_json(),
        segments_json=f"[{','.join(s.to_json() for s in segments)}]",
        profile_json=canonical_json({}),
        target_step=segments[-1].end_step,
        label="demo expert 0",
    )
    if head is not None:
        work.head_step, work.head = head.end_step, head.child
        work.weights, work.optimizer = head.weights, head.optimizer
    return node_pb2.Lease(fence=fence, term_ms=30_000, train=work)


def two_segments(tokens: Digest, first: int, second: int) -> list[Segment]:
    return [
        Segment(index=0, start_step=0, end_step=first, data=Stream(tokens=tokens, key=1, start=0)),
        Segment(index=1, start_step=first, end_step=first + second, data=Stream(tokens=tokens, key=1, start=2 * first)),
    ]


def run(coroutine: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(coroutine())  # type: ignore[arg-type]


def test_a_lease_is_trained_to_its_target_and_a_task_is_done_after_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with coordinator_twin(tmp_path) as (twin, identity):
            what = recipe(total_steps=12, commit_every=5)
            twin.leases.append(train_lease(1, what, two_segments(put_tokens(twin.store, tmp_path, 40), 6, 6)))
            columns = {
                f"column-00{i}": put_array(
                    twin.store, tmp_path, f"c{i}", np.array([1, 2, 3, 4], dtype=np.uint16) * (i + 1)
                )
                for i in range(2)
            }
            params = {"rule": "sorted_greedy", "num_experts": 2, "count": 4}
            task = node_pb2.TaskWork(
                task=task_id("assign", params, columns),
                kind="assign",
                params_json=canonical_json(params),
                inputs=[common_pb2.NamedDigest(name=n, digest=d) for n, d in columns.items()],
                label="assign",
            )
            twin.leases.append(node_pb2.Lease(fence=2, term_ms=30_000, task=task))
            async with running_node(tmp_path / "node", identity):
                await twin.until(lambda: bool(twin.results))
            check_commits(twin, what)
            (result,) = twin.results
            assert {b.name for b in result.blobs} == {"assignment"}
            assert np.load(twin.store.path(Digest(result.blobs[0].digest))).shape == (4,)
            assert json.loads(result.figures_json)["shares"] == [2, 2]
            assert twin.byes == ["the node is leaving"]
            assert {b.activity for b in twin.beats} <= {"idle", "fetching", "training", "task"}
            assert not any((tmp_path / "node" / "outbox").glob("0*"))

    run(scenario)


def check_commits(twin: CoordinatorTwin, what: Recipe) -> None:
    """They tile [0, 12) on the grid, along one chain whose manifests say the same."""
    assert [(c.start_step, c.end_step) for c in twin.commits] == [(0, 5), (5, 6), (6, 10), (10, 12)]
    assert [c.parent for c in twin.commits] == [NO_DIGEST, *(c.child for c in twin.commits[:-1])]
    for commit in twin.commits:
        manifest = CheckpointManifest.from_json(twin.store.path(Digest(commit.child)).read_text())
        assert (manifest.lineage, manifest.step, manifest.parent) == (what.id, commit.end_step, commit.parent)
        assert (manifest.weights, manifest.optimizer) == (commit.weights, commit.optimizer)
        assert manifest.profile == Profile()
        figures = json.loads(commit.figures_json)
        assert len(figures["loss_curve"]) == commit.end_step - commit.start_step
        assert figures["tokens"] == (commit.end_step - commit.start_step) * 2 * (MODEL.context - 1)


def test_a_second_node_continues_bit_by_bit_from_a_committed_head(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with coordinator_twin(tmp_path) as (twin, identity):
            what = recipe(total_steps=8, commit_every=4)
            segments = two_segments(put_tokens(twin.store, tmp_path, 40), 4, 4)
            twin.leases.append(train_lease(1, what, segments))
            async with running_node(tmp_path / "one", identity):
                await twin.until(lambda: len(twin.commits) == 2)
            whole = list(twin.commits)
            twin.commits.clear()
            twin.heads[what.id] = (4, whole[0].child)
            twin.leases.append(train_lease(2, what, segments, head=whole[0]))
            async with running_node(tmp_path / "two", identity):
                await twin.until(lambda: len(twin.commits) == 1)
            assert twin.commits[0].child == whole[1].child

    run(scenario)


def test_commits_made_while_the_coordinator_does_not_answer_are_delivered_in_order(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with coordinator_twin(tmp_path) as (twin, identity):
            what = recipe(total_steps=12, commit_every=2)
            twin.leases.append(train_lease(1, what, two_segments(put_tokens(twin.store, tmp_path, 40), 6, 6)))
            async with running_node(tmp_path / "node", identity) as node:
                await twin.until(lambda: bool(twin.beats) and twin.beats[-1].fence == 1)
                twin.unreachable = True
                # It trains to its target with nobody answering; the outbox then holds the chain's rest.
                await twin.until(lambda: twin.beats[-1].activity == "idle" and twin.beats[-1].tokens_total > 0)
                assert node.outbox_size > 0
                twin.unreachable = False
                await twin.until(lambda: len(twin.commits) == 6)
            assert [c.end_step for c in twin.commits] == [2, 4, 6, 8, 10, 12]
            assert [r.error_id for r in twin.returned] == [""]

    run(scenario)


def test_a_lease_whose_input_is_nowhere_goes_back_with_the_reason(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with coordinator_twin(tmp_path) as (twin, identity):
            twin.leases.append(train_lease(1, recipe(4, 2), two_segments(Digest("a" * 64), 2, 2)))
            async with running_node(tmp_path / "node", identity):
                await twin.until(lambda: bool(twin.returned))
            assert (twin.returned[0].fence, twin.returned[0].error_id) == (1, "data.missing-blob")

    run(scenario)


def test_a_node_told_to_stop_gives_its_lease_back_in_good_order(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with coordinator_twin(tmp_path) as (twin, identity):
            what = recipe(total_steps=200_000, commit_every=100_000)
            twin.leases.append(
                train_lease(1, what, two_segments(put_tokens(twin.store, tmp_path, 40), 100_000, 100_000))
            )
            async with running_node(tmp_path / "node", identity):
                await twin.until(lambda: bool(twin.beats) and twin.beats[-1].step > 0)
                assert twin.beats[-1].tokens_per_second > 0
                assert twin.beats[-1].loss > 0
            assert [(r.fence, r.error_id) for r in twin.returned] == [(1, "")]
            assert twin.byes == ["the node is leaving"]

    run(scenario)


def test_a_revoked_lease_stops_at_once_and_the_node_asks_anew(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with coordinator_twin(tmp_path) as (twin, identity):
            tokens = put_tokens(twin.store, tmp_path, 40)
            long = recipe(total_steps=200_000, commit_every=100_000)
            twin.leases.append(train_lease(1, long, two_segments(tokens, 100_000, 100_000)))
            async with running_node(tmp_path / "node", identity):
                await twin.until(lambda: bool(twin.beats) and twin.beats[-1].step > 0)
                twin.leases.append(train_lease(2, recipe(4, 4), two_segments(tokens, 2, 2)))
                revoke = node_pb2.Revoke(fence=1, reason="another node was faster")
                await twin.down.put(node_pb2.DownItem(revoke=revoke))
                await twin.until(lambda: len(twin.commits) == 2)
            assert [c.fence for c in twin.commits] == [2, 2]
            assert all(r.fence != 1 for r in twin.returned)

    run(scenario)


def test_a_worker_killed_by_the_system_sends_the_lease_back_as_out_of_memory_and_a_new_one_works_on(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        async with coordinator_twin(tmp_path) as (twin, identity):
            tokens = put_tokens(twin.store, tmp_path, 40)
            long = recipe(total_steps=200_000, commit_every=100_000)
            twin.leases.append(train_lease(1, long, two_segments(tokens, 100_000, 100_000)))
            async with running_node(tmp_path / "node", identity):
                await twin.until(lambda: bool(twin.beats) and twin.beats[-1].step > 0)
                twin.leases.append(train_lease(2, recipe(4, 4), two_segments(tokens, 2, 2)))
                (pid,) = worker_pids(tmp_path / "node")
                os.kill(pid, signal.SIGKILL)
                await twin.until(lambda: len(twin.commits) == 2)
            assert (twin.returned[0].fence, twin.returned[0].error_id) == (1, "resource.out-of-memory")
            assert "batch_size" in twin.returned[0].message

    run(scenario)


async def start_process(home: Path, identity: Identity, **environment: str) -> asyncio.subprocess.Process:
    """`python -m expert_node` on a home that holds an identity already."""
    identity.save(home / "identity")
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "expert_node",
        "--home",
        str(home),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, **environment},
    )


def worker_pids(home: Path) -> list[int]:
    return [int(group["pid"]) for group in json.loads((home / "work" / "worker.json").read_text()).values()]


def test_a_terminated_process_says_it_was_ready_gives_back_its_lease_and_exits_with_0(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with coordinator_twin(tmp_path) as (twin, identity):
            what = recipe(total_steps=200_000, commit_every=100_000)
            tokens = put_tokens(twin.store, tmp_path, 40)
            twin.leases.append(train_lease(1, what, two_segments(tokens, 100_000, 100_000)))
            process = await start_process(tmp_path / "node", identity)
            await twin.until(lambda: bool(twin.beats) and twin.beats[-1].step > 0)
            process.send_signal(signal.SIGTERM)
            out, _ = await process.communicate()
            assert process.returncode == 0
            assert json.loads(out) == {"event": "ready", "node_id": "n-1"}
            assert [(r.fence, r.error_id) for r in twin.returned] == [(1, "")]

    run(scenario)


def test_a_node_killed_in_mid_step_leaves_no_worker_and_its_next_process_goes_on_from_the_head(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with coordinator_twin(tmp_path) as (twin, identity):
            what, home = recipe(total_steps=12, commit_every=4), tmp_path / "node"
            segments = two_segments(put_tokens(twin.store, tmp_path, 40), 6, 6)
            twin.leases.append(train_lease(1, what, segments))
            log = tmp_path / "crashes"
            crash = {"POTLUCK_CRASH_AT": "node.mid-step:6", "POTLUCK_CRASH_LOG": str(log)}
            process = await start_process(home, identity, **crash)
            assert await process.wait() == -signal.SIGKILL
            assert log.read_text() == "node.mid-step\n"
            for pid in worker_pids(home):
                with contextlib.suppress(psutil.NoSuchProcess):
                    await asyncio.to_thread(psutil.Process(pid).wait, PATIENCE_S)
            async with running_node(home, identity):
                # What the first process had in its outbox is delivered before a lease is asked for.
                twin.leases.append(
                    lambda: train_lease(2, what, segments, head=twin.commits[-1] if twin.commits else None)
                )
                await twin.down.put(node_pb2.DownItem(wake=node_pb2.Wake()))
                await twin.until(lambda: bool(twin.commits) and twin.commits[-1].end_step == 12)
            assert [c.end_step for c in twin.commits] == [4, 6, 8, 12]

    run(scenario)


def test_a_node_that_comes_back_resumes_from_its_local_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(workshop, "LOCAL_CHECKPOINT_MS", 0)

    async def scenario() -> None:
        async with coordinator_twin(tmp_path) as (twin, identity):
            what = recipe(total_steps=200_000, commit_every=100_000)
            segments = two_segments(put_tokens(twin.store, tmp_path, 40), 100_000, 100_000)
            for fence in (1, 2):
                twin.beats.clear()
                twin.leases.append(train_lease(fence, what, segments))
                async with running_node(tmp_path / "node", identity):
                    await twin.until(lambda: bool(twin.beats) and twin.beats[-1].step > 1)
            (kept,) = (tmp_path / "node" / "work" / "local").iterdir()
            assert kept.name == what.id

    run(scenario)
    assert "resumed-locally" in capfd.readouterr().err


def test_two_nodes_do_not_share_a_home(tmp_path: Path) -> None:
    with lock_home(tmp_path), pytest.raises(ResourceError, match=r"resource\.home-in-use"):
        lock_home(tmp_path)
