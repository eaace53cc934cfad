"""A run through a whole coordinator: started, worked on, watched, drained, cancelled, taken up again.

The plan is a small one of this file (a task, then one lineage of two commits), so that what is seen is
the coordinator; the methods' own plans have their own tests.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import pytest

from coordinator.core.events import PlanAdvanced
from coordinator.core.machine import Machine
from coordinator.core.values import Finished, LineageWanted, Publication, Running, TaskWanted
from coordinator.daemon import Daemon, Options, Stop
from coordinator.runtime import PlanEvaluator
from potluck.errors import CorpusError, NotReachable
from potluck.ids import Digest, Json, LineageId, RunId, digest_bytes, task_id
from potluck.net.blobs.client import BlobClient
from potluck.net.blobs.store import BlobStore
from potluck.net.channels import open_channel
from potluck.net.guard import rpc_errors
from potluck.net.identity import Identity
from potluck.net.join import enrol
from potluck.net.version import make_hello
from potluck.specs.run import spec_from_json
from potluck.specs.sections import ModelShape
from potluck.specs.smalltalk import ExpertSpec, RouterSpec, SmallTalkSpec
from potluck.v1 import admin_pb2, admin_pb2_grpc, node_pb2, node_pb2_grpc

DEADLINE_S = 20.0
TASK = TaskWanted(id=task_id("fit", {}, {}), kind="fit", params_json="{}", inputs=(), label="tokenizer")
LINEAGE = LineageWanted(
    id=LineageId("e" * 64),
    recipe_json="{}",
    segments_json=('{"index":0}',),
    profile_json="{}",
    total_steps=20,
    known_steps=20,
    commit_every=10,
    flops_per_step=1.0,
    memory_bytes=1,
    role="expert",
    label="expert 0",
)


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), 60))

    return run


def small_plan(machine: Machine, run: RunId, now_ms: int) -> PlanAdvanced:
    results = machine.results_of(run)
    fitted = results.task(TASK.id)
    commits = results.commits(LINEAGE.id)
    last = commits.get(20)
    publish = (
        (
            Publication(
                slot="expert-0",
                lineage=LINEAGE.id,
                step=20,
                weights=last.weights,
                tokenizer=fitted.blobs["tokenizer"],
                model_json="{}",
            ),
        )
        if last is not None and fitted is not None
        else ()
    )
    return PlanAdvanced(
        now_ms=now_ms,
        run=run,
        lineages=(LINEAGE,) if fitted is not None else (),
        tasks=(TASK,),
        publish=publish,
        stage="done" if last else "expert" if fitted else "tokenizer",
        outcome=Finished(report=last.weights, figures={"nll": 1.5}) if last else Running(),
        serving_json='{"prefix_length":32}' if last else "",
    )


class World:
    """A coordinator, its administrator, and one node that speaks by hand."""

    def __init__(self, folder: Path, plan: PlanEvaluator = small_plan) -> None:
        self.folder = folder
        self.plan = plan
        self.ready: Mapping[str, Json] = {}
        self.requests = 0

    @property
    def admin(self) -> Identity:
        return Identity.load(self.folder / "c" / "admin" / "identity")

    @contextlib.asynccontextmanager
    async def running(self, *, at_once: bool = True) -> AsyncIterator[Stop]:
        stop = Stop()
        ready: asyncio.Future[Mapping[str, Json]] = asyncio.get_running_loop().create_future()
        options = Options(home=self.folder / "c", host="127.0.0.1", port=0)
        running = asyncio.create_task(Daemon(options, stop, evaluate=self.plan).run(ready.set_result))
        await asyncio.wait((running, ready), return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            await running
        self.ready = await ready
        try:
            yield stop
        finally:
            stop.request(at_once=at_once)
            await running

    async def join(self) -> Identity:
        return await asyncio.to_thread(enrol, str(self.ready["join"]), name="box", hello=make_hello(boot_id="boot"))

    async def put(self, identity: Identity, data: bytes, plane: Any = "weights") -> Digest:
        digest = digest_bytes(data)
        path = self.folder / digest
        path.write_bytes(data)
        with BlobClient(identity, BlobStore(self.folder / "cache")) as blobs:
            await asyncio.wrap_future(blobs.put(digest, path, plane))
        return digest

    async def put_corpus(self) -> Digest:
        text = "".join(
            json.dumps({"id": str(i), "text": "x" * 500, "source": "a", "group": str(i), "licence": "", "split": split})
            + "\n"
            for i, split in enumerate(("train", "valid", "test"))
        ).encode()
        shard = await self.put(self.admin, text, "corpus")
        source = {
            "documents": 3,
            "bytes": 1500,
            "groups": 3,
            "splits": {"train": 500, "valid": 500, "test": 500},
            "licences": [""],
        }
        manifest = {
            "kind": "corpus",
            "version": 1,
            "blobs": {"documents-00000": shard},
            "shards": [{"digest": shard, "bytes": len(text), "documents": 3}],
            "sources": {"a": source},
            "documents": 3,
            "bytes": 1500,
            "duplicates_dropped": 0,
        }
        return await self.put(self.admin, json.dumps(manifest).encode(), "corpus")

    def next_request(self) -> int:
        self.requests += 1
        return self.requests


def spec_json(corpus: Digest) -> str:
    shape = ModelShape(hidden=16, layers=1, heads=2, ffn=32)
    routers = RouterSpec(model=shape, chunk_sequences=64)
    experts = ExpertSpec(model=shape, num=2, chunk_sequences=64)
    return SmallTalkSpec(corpus=corpus, routers=routers, experts=experts).to_json()


def admin_stub(channel: Any) -> Any:
    return admin_pb2_grpc.AdminServiceStub(channel)


def node_stub(channel: Any) -> Any:
    return node_pb2_grpc.NodeServiceStub(channel)


async def start(channel: Any, spec: str, request_id: str) -> admin_pb2.StartRunResponse:
    request = admin_pb2.StartRunRequest(request_id=request_id, spec_json=spec, name="demo")
    answer: admin_pb2.StartRunResponse = await admin_stub(channel).StartRun(request, timeout=DEADLINE_S)
    return answer


async def acquire(w: World, channel: Any) -> node_pb2.AcquireLeaseResponse:
    request = node_pb2.AcquireLeaseRequest(request_id=w.next_request(), boot_id="boot", free_memory_bytes=1 << 30)
    answer: node_pb2.AcquireLeaseResponse = await node_stub(channel).AcquireLease(request, timeout=DEADLINE_S)
    return answer


async def do_task(w: World, channel: Any, identity: Identity) -> node_pb2.CompleteTaskResponse:
    lease = (await acquire(w, channel)).lease
    assert (lease.task.kind, lease.task.label) == ("fit", "tokenizer")
    tokenizer = await w.put(identity, b"tokenizer")
    request = node_pb2.CompleteTaskRequest(
        request_id=w.next_request(), fence=lease.fence, task=lease.task.task, figures_json='{"bytes_per_token":3.5}'
    )
    request.blobs.add(name="tokenizer", digest=tokenizer)
    answer: node_pb2.CompleteTaskResponse = await node_stub(channel).CompleteTask(request, timeout=DEADLINE_S)
    return answer


async def commit(
    w: World, channel: Any, identity: Identity, fence: int, parent: str, steps: tuple[int, int]
) -> tuple[Digest, node_pb2.CommitResponse]:
    child = await w.put(identity, f"checkpoint {steps}".encode())
    request = node_pb2.CommitRequest(
        request_id=w.next_request(),
        fence=fence,
        lineage=LINEAGE.id,
        parent=parent,
        start_step=steps[0],
        end_step=steps[1],
        child=child,
        weights=child,
        optimizer=child,
        figures_json='{"loss":2.5}',
    )
    return child, await node_stub(channel).Commit(request, timeout=DEADLINE_S)


async def train_all(w: World, channel: Any, identity: Identity) -> None:
    lease = (await acquire(w, channel)).lease
    assert (lease.train.head_step, lease.train.target_step) == (0, 20)
    head, first = await commit(w, channel, identity, lease.fence, "", (0, 10))
    assert (first.accepted, first.yield_lease, first.head_step) == (True, False, 10)
    _, second = await commit(w, channel, identity, lease.fence, head, (10, 20))
    assert (second.accepted, second.yield_lease) == (True, True)


@in_loop
async def test_a_run_is_worked_on_watched_finished_and_never_forked(tmp_path: Path) -> None:
    w = World(tmp_path)
    async with w.running():
        node, corpus = await w.join(), await w.put_corpus()
        async with open_channel(w.admin) as admin, open_channel(node) as channel:
            started = await start(admin, spec_json(corpus), "q1")
            assert started.state == "started"
            assert (await start(admin, spec_json(corpus), "q1")).state == "started"
            assert (await start(admin, spec_json(corpus), "q2")).state == "resumed"
            watch = admin_stub(admin).WatchRun(admin_pb2.GetRunRequest(run=started.run[:8]))
            assert (await watch.read()).stage.startswith("tokenizer")
            assert (await do_task(w, channel, node)).accepted
            await train_all(w, channel, node)
            seen = [info async for info in _rest(watch)]
            assert (seen[-1].state, seen[-1].fraction, json.loads(seen[-1].results_json)) == (
                "finished",
                1.0,
                {"nll": 1.5},
            )
            assert (await start(admin, spec_json(corpus), "q3")).state == "already-finished"
            ledger = await admin_stub(admin).GetLedger(admin_pb2.GetLedgerRequest(run="demo"), timeout=DEADLINE_S)
            assert ledger.ok
            assert [(link.start_step, link.end_step) for link in ledger.lineages[0].ranges] == [(0, 10), (10, 20)]
            assert min(ledger.bytes_control, ledger.bytes_corpus, ledger.bytes_weights) > 0
            assert ledger.bytes_scores == 0
            info = await admin_stub(admin).GetRun(admin_pb2.GetRunRequest(run="demo"), timeout=DEADLINE_S)
            assert spec_from_json(info.spec_json).id == started.run
    before = ledger.bytes_weights
    async with w.running(), open_channel(w.admin) as admin:
        listed = await admin_stub(admin).ListRuns(admin_pb2.ListRunsRequest(), timeout=DEADLINE_S)
        assert [(run.name, run.state, run.spec_json) for run in listed.runs] == [("demo", "finished", "")]
        ledger = await admin_stub(admin).GetLedger(admin_pb2.GetLedgerRequest(run="demo"), timeout=DEADLINE_S)
        assert ledger.bytes_weights == before


@in_loop
async def test_a_cancelled_run_started_again_goes_on_from_what_was_committed(tmp_path: Path) -> None:
    w = World(tmp_path)
    async with w.running():
        node, corpus = await w.join(), await w.put_corpus()
        async with open_channel(w.admin) as admin, open_channel(node) as channel:
            run = (await start(admin, spec_json(corpus), "q1")).run
            await do_task(w, channel, node)
            lease = (await acquire(w, channel)).lease
            head, _ = await commit(w, channel, node, lease.fence, "", (0, 10))
            cancel = admin_pb2.CancelRunRequest(run=run, request_id="c1")
            assert (await admin_stub(admin).CancelRun(cancel, timeout=DEADLINE_S)).cancelled
            assert (await acquire(w, channel)).none.reason
            assert (await start(admin, spec_json(corpus), "q2")).state == "resumed"
            lease = (await acquire(w, channel)).lease
            assert (lease.train.head_step, lease.train.head) == (10, head)


@in_loop
async def test_work_goes_on_across_a_restart_under_the_same_lease(tmp_path: Path) -> None:
    w = World(tmp_path)
    async with w.running():
        node, corpus = await w.join(), await w.put_corpus()
        async with open_channel(w.admin) as admin, open_channel(node) as channel:
            await start(admin, spec_json(corpus), "q1")
            await do_task(w, channel, node)
            fence = (await acquire(w, channel)).lease.fence
            head, _ = await commit(w, channel, node, fence, "", (0, 10))
            # The coordinator ends this session itself; that must not cost the node its lease.
            await _session(channel)
    async with w.running(), open_channel(node) as channel, open_channel(w.admin) as admin:
        renewed = await node_stub(channel).RenewLease(node_pb2.RenewLeaseRequest(fence=fence), timeout=DEADLINE_S)
        assert renewed.renewed
        _, answer = await commit(w, channel, node, fence, head, (10, 20))
        assert answer.accepted
        info = await admin_stub(admin).GetRun(admin_pb2.GetRunRequest(run="demo"), timeout=DEADLINE_S)
        assert info.state == "finished"


@in_loop
async def test_a_draining_coordinator_grants_nothing_and_waits_for_the_work_in_hand(tmp_path: Path) -> None:
    w = World(tmp_path)
    async with w.running(at_once=False) as stop:
        node, corpus = await w.join(), await w.put_corpus()
        admin, channel = open_channel(w.admin), open_channel(node)
        await start(admin, spec_json(corpus), "q1")
        await do_task(w, channel, node)
        session = await _session(channel)
        fence = (await acquire(w, channel)).lease.fence
        stop.requested.set()
        while not any(item.WhichOneof("item") == "drain" for item in (await session.read()).items):
            pass
        _, answer = await commit(w, channel, node, fence, "", (0, 10))
        assert answer.accepted
        assert answer.yield_lease
    with pytest.raises(NotReachable), rpc_errors():
        await acquire(w, channel)
    await admin.close(None)
    await channel.close(None)


@in_loop
async def test_a_corpus_that_is_not_whole_at_the_hub_starts_no_run(tmp_path: Path) -> None:
    w = World(tmp_path)
    async with w.running():
        corpus = await w.put_corpus()
        manifest = json.loads((tmp_path / corpus).read_text())
        manifest["shards"].append({"digest": "b" * 64, "bytes": 1, "documents": 1})
        lacking = await w.put(w.admin, json.dumps(manifest).encode(), "corpus")
        other = await w.put(w.admin, b'{"kind":"tokens","shards":[]}', "corpus")
        async with open_channel(w.admin) as admin:
            for digest, error_id in ((lacking, "corpus.incomplete"), (other, "corpus.bad-manifest")):
                with pytest.raises(CorpusError) as caught, rpc_errors():
                    await start(admin, spec_json(digest), "q1")
                assert caught.value.error_id == error_id


async def _session(channel: Any) -> Any:
    call = node_stub(channel).Session()
    hello = node_pb2.SessionHello(hello=make_hello(boot_id="boot"))
    await call.write(node_pb2.SessionUp(items=[node_pb2.UpItem(hello=hello)]))
    await call.read()
    return call


async def _rest(watch: Any) -> AsyncIterator[admin_pb2.RunInfo]:
    while info := await watch.read():  # the end is false
        yield info
