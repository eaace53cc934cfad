"""A whole coordinator with one run whose plan is a few lines here, so that a test can decide at the gate."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

from coordinator.core.events import PlanAdvanced
from coordinator.core.machine import Machine
from coordinator.core.values import Finished, Running, Steering, SteeringEntry
from coordinator.daemon import Daemon, Options, Stop
from potluck.client import AdminClient
from potluck.ids import Digest, Json, RunId, canonical_json
from potluck.net.blobs.store import BlobStore
from potluck.net.channels import open_channel
from potluck.net.identity import Identity
from potluck.net.join import enrol
from potluck.net.version import make_hello
from potluck.specs.sections import ModelShape
from potluck.specs.smalltalk import ExpertSpec, RouterSpec, SmallTalkSpec
from potluck.v1 import mixture_pb2, node_pb2, node_pb2_grpc
from sampling.mixture import natural

DEADLINE_S = 20.0
DOMAINS = {"code": 20, "law": 30, "lawful": 0, "news": 50}
PARTITION = Digest("a" * 64)
TO_STEP, GATE_STEPS, TOTAL_STEPS = 100, 50, 1000


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), 60))

    return run


class HandHeldPlan:
    """Says what a plan says of a lineage that can be steered; the test decides at the gate."""

    def __init__(self, labels: Digest, evenly: Digest) -> None:
        self.labels = labels
        self.evenly = evenly
        self.steerable = True
        self.finished = False
        self.to_step = TO_STEP
        self.verdicts: dict[int, dict[str, Json]] = {}

    def __call__(self, machine: Machine, run: RunId, now_ms: int) -> PlanAdvanced:
        return PlanAdvanced(
            now_ms=now_ms,
            run=run,
            lineages=(),
            tasks=(),
            publish=(),
            stage="training",
            outcome=Finished(report=Digest("f" * 64), figures={}) if self.finished else Running(),
            steering=self._steering(machine.durable.runs[run].entries) if self.steerable else None,
        )

    def _steering(self, entries: tuple[SteeringEntry, ...]) -> Steering:
        current, versions, proposals = self.evenly, [_version(0, 0, self.evenly, "natural")], []
        for entry in entries:
            verdict = self.verdicts.get(entry.number, {"state": "training"})
            if entry.kind == "proposal":
                proposals.append(_proposal(entry) | verdict)
            if entry.kind == "set" or verdict["state"] == "adopted":
                current = entry.mixture
                versions.append(_version(entry.number, entry.step, entry.mixture, entry.origin, entry.reason))
        told: dict[str, Json] = {
            "labels": self.labels,
            "natural": self.evenly,
            "current": current,
            "versions": versions,
            "proposals": proposals,
        }
        return Steering(
            to_step=self.to_step,
            total_steps=TOTAL_STEPS,
            gate_steps=GATE_STEPS,
            gate_open=any(proposal["state"] == "training" for proposal in proposals),
            json=canonical_json(told),
        )


def _version(number: int, step: int, mixture: Digest, origin: str, reason: str = "") -> dict[str, Json]:
    return {
        "version": number,
        "from_step": step,
        "mixture": mixture,
        "origin": origin,
        "reason": reason,
        "unix_ms": 1_700_000_000_000 if number else 0,
    }


def _proposal(entry: SteeringEntry) -> dict[str, Json]:
    return {
        "number": entry.number,
        "at_step": entry.step,
        "gate_steps": entry.gate_steps,
        "mixture": entry.mixture,
        "origin": entry.origin,
        "reason": entry.reason,
        "unix_ms": 1_700_000_000_000,
        "gate_flops": 1.5e12,
        **dict.fromkeys(("difference", "low", "high", "smallest_effect"), None),
    }


class World:
    """A running coordinator with one run, and the administrator's client."""

    def __init__(self, home: Path, daemon: Daemon, plan: HandHeldPlan) -> None:
        self.home = home
        self.daemon = daemon
        self.plan = plan
        self.admin = Identity.load(home / "coordinator" / "admin" / "identity")
        self.client = AdminClient(self.admin)
        self.store = BlobStore(home / "coordinator" / "blobs")
        self.run = ""

    async def call(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return await asyncio.to_thread(method, *args, **kwargs)

    async def start(self, request_id: str = "first") -> str:
        shape = ModelShape(hidden=16, layers=1, heads=2, ffn=32)
        corpus = self.store.put_bytes(b'{"kind":"corpus","shards":[],"sources":["all"]}')
        spec = SmallTalkSpec(
            corpus=corpus,
            routers=RouterSpec(model=shape, chunk_sequences=64),
            experts=ExpertSpec(model=shape, num=2, chunk_sequences=64),
        )
        started = await self.call(self.client.start_run, spec.to_json(), name="small", request_id=request_id)
        self.run = started.run
        return self.run

    async def show(self) -> mixture_pb2.MixtureInfo:
        return await self.call(self.client.show_mixture, self.run)

    async def propose(self, request_id: str, **weights: float) -> mixture_pb2.SteerResponse:
        return await self.call(self.client.propose_mixture, self.run, weights, request_id=request_id)

    async def decide(self, number: int, verdict: dict[str, Json]) -> None:
        """The gate's verdict; taking the run up again asks the plan anew."""
        self.plan.verdicts[number] = verdict
        await self.advance()

    async def advance(self) -> None:
        await self.start(f"again-{len(self.plan.verdicts)}-{self.plan.finished}")

    async def join(self, name: str, role: str) -> Identity:
        (text,) = await self.call(self.client.invite, count=1, expires_ms=60_000, role=role)
        return await asyncio.to_thread(enrol, text, name=name, hello=make_hello(boot_id="boot"))


@contextlib.asynccontextmanager
async def world(home: Path) -> AsyncIterator[World]:
    store = BlobStore(home / "coordinator" / "blobs")
    manifest: dict[str, Json] = {
        "kind": "labels",
        "version": 1,
        "partition": PARTITION,
        "tokens": "b" * 64,
        "domains": list(DOMAINS),
        "sizes": list(DOMAINS.values()),
        "excluded": 0,
        "sequence_length": 8,
        "labels": "c" * 64,
    }
    labels = store.put_bytes(canonical_json(manifest).encode())
    evenly = store.put_bytes(natural(PARTITION, DOMAINS).to_json().encode())
    plan, stop = HandHeldPlan(labels, evenly), Stop()
    ready: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    daemon = Daemon(Options(home=home / "coordinator", host="127.0.0.1", port=0), stop, evaluate=plan)
    running = asyncio.create_task(daemon.run(ready.set_result))
    await asyncio.wait((running, ready), return_when=asyncio.FIRST_COMPLETED)
    try:
        if running.done():
            await running
        made = World(home, daemon, plan)
        with made.client:
            yield made
    finally:
        stop.request(at_once=True)
        await running


@contextlib.asynccontextmanager
async def session(identity: Identity) -> AsyncIterator[Any]:
    async with open_channel(identity) as channel:
        stub: Any = node_pb2_grpc.NodeServiceStub(channel)
        call = stub.Session()
        hello = node_pb2.SessionHello(hello=make_hello(boot_id="boot"))
        await call.write(node_pb2.SessionUp(items=[node_pb2.UpItem(hello=hello)]))
        await call.read()
        yield call


async def rest_of(call: Any) -> None:
    while await call.read():
        pass


def traffic(run: str, requests: dict[str, int]) -> node_pb2.SessionUp:
    return node_pb2.SessionUp(items=[node_pb2.UpItem(traffic=node_pb2.Traffic(run=run, requests=requests))])
