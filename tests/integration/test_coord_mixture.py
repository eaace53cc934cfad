"""A run's mixture, seen and changed through a whole coordinator; the plan's part is a few lines here."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from coordinator.collector import roots_of
from coordinator.core.events import PlanAdvanced
from coordinator.core.machine import Machine
from coordinator.core.values import Finished, Running, Steering, SteeringEntry
from coordinator.daemon import Daemon, Options, Stop
from potluck.client import AdminClient
from potluck.errors import JoinError, PotluckError, Refused, SpecError, UsageError
from potluck.ids import Digest, Json, RunId, canonical_json
from potluck.net.blobs.store import BlobStore
from potluck.net.channels import open_channel
from potluck.net.guard import rpc_errors
from potluck.net.identity import Identity
from potluck.net.join import enrol
from potluck.net.version import make_hello
from potluck.specs.sections import ModelShape
from potluck.specs.smalltalk import ExpertSpec, RouterSpec, SmallTalkSpec
from potluck.v1 import mixture_pb2, mixture_pb2_grpc, node_pb2, node_pb2_grpc
from sampling.mixture import Mixture, natural

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

    async def start(self, name: str = "small") -> str:
        shape = ModelShape(hidden=16, layers=1, heads=2, ffn=32)
        corpus = self.store.put_bytes(b'{"kind":"corpus","shards":[],"sources":["all"]}')
        spec = SmallTalkSpec(
            corpus=corpus,
            routers=RouterSpec(model=shape, chunk_sequences=64),
            experts=ExpertSpec(model=shape, num=2, chunk_sequences=64),
        )
        started = await self.call(self.client.start_run, spec.to_json(), name=name, request_id=name)
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


def by_domain(weights: Any) -> dict[str, float]:
    return {weight.domain: weight.weight for weight in weights}


@in_loop
async def test_a_run_that_reads_no_mixture_cannot_be_steered(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.plan.steerable = False
        run = await w.start()
        for method, arguments in (
            (w.client.show_mixture, {}),
            (w.client.get_traffic, {}),
            (w.client.set_mixture, {"weights": {"law": 0.5}, "request_id": "1"}),
            (w.client.propose_mixture, {"weights": {"law": 0.5}, "request_id": "1"}),
        ):
            with pytest.raises(Refused) as caught:
                await w.call(method, run, **arguments)
            assert caught.value.error_id == "refused.not-steerable"
            assert "[partition]" in caught.value.fix


@in_loop
async def test_a_mixture_is_shown_with_names_shares_and_where_a_change_would_hold(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.start()
        shown = await w.call(w.client.show_mixture, "small")
        assert (shown.run, shown.name, shown.partition) == (w.run, "small", PARTITION)
        assert (shown.to_step, shown.total_steps, shown.gate_steps) == (TO_STEP, TOTAL_STEPS, GATE_STEPS)
        assert by_domain(shown.current) == {"code": 0.2, "law": 0.3, "lawful": 0.0, "news": 0.5}
        assert [(v.version, v.origin) for v in shown.versions] == [(0, "natural")]
        assert not shown.proposals


@in_loop
async def test_a_mixture_that_is_set_lies_in_the_store_and_holds_from_the_end_of_what_is_given_out(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as w:
        await w.start()
        answer = await w.call(w.client.set_mixture, w.run, {"law": 0.5}, request_id="1", reason="more law")
        assert (answer.number, answer.step) == (1, TO_STEP)
        assert by_domain(answer.weights) == pytest.approx({"code": 1 / 7, "law": 0.5, "lawful": 0, "news": 2.5 / 7})
        kept = Mixture.from_json(w.store.path(Digest(answer.mixture)).read_text())
        assert kept.weights == by_domain(answer.weights)
        shown = await w.show()
        assert by_domain(shown.current) == by_domain(answer.weights)
        version = shown.versions[-1]
        assert (version.version, version.from_step, version.origin) == (1, TO_STEP, "person")
        assert (version.reason, version.mixture) == ("more law", answer.mixture)


@in_loop
async def test_the_same_request_gets_the_same_answer_and_changes_nothing_again(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.start()
        first = await w.propose("1", law=0.5)
        assert await w.propose("1", law=0.5) == first
        assert len((await w.show()).proposals) == 1


@in_loop
async def test_while_a_proposal_is_at_the_gate_nothing_else_changes(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.start()
        first = await w.propose("1", law=0.5)
        (proposal,) = (await w.show()).proposals
        assert (proposal.number, proposal.at_step, proposal.state) == (1, TO_STEP, "training")
        assert not proposal.HasField("difference")
        for method in (w.client.set_mixture, w.client.propose_mixture):
            with pytest.raises(Refused) as caught:
                await w.call(method, w.run, {"code": 0.5}, request_id="2")
            assert caught.value.error_id == "refused.gate-open"
        await w.decide(1, {"state": "adopted", "difference": -0.02, "low": -0.03, "high": -0.01})
        shown = await w.show()
        assert [version.mixture for version in shown.versions[1:]] == [first.mixture]
        assert shown.proposals[0].high == -0.01
        assert not shown.proposals[0].HasField("smallest_effect")
        assert (await w.propose("2", code=0.5)).number == 2


@in_loop
async def test_near_its_end_and_after_it_a_run_is_not_steered_but_still_shown(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.plan.to_step = TOTAL_STEPS - GATE_STEPS
        await w.start()
        with pytest.raises(Refused) as caught:
            await w.propose("1", law=0.5)
        assert caught.value.error_id == "refused.too-late"
        w.plan.finished = True
        await w.advance()
        with pytest.raises(Refused) as caught:
            await w.propose("2", law=0.5)
        assert caught.value.error_id == "refused.run-ended"
        assert (await w.show()).total_steps == TOTAL_STEPS


@in_loop
async def test_what_makes_no_mixture_is_refused_before_it_is_an_event(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.start()
        for weights, said in (
            ({"lwa": 0.1}, "near: law"),
            ({"law": 0.8, "news": 0.8}, "sum to 1.6"),
            ({}, "no domain"),
        ):
            with pytest.raises(SpecError, match=said) as refused:
                await w.call(w.client.set_mixture, w.run, weights, request_id="1")
            assert refused.value.error_id == "spec.bad-mixture"
        for method, arguments, error_id in (
            (w.client.set_mixture, {"request_id": "1", "reason": "x" * 257}, "usage.bad-request"),
            (w.client.propose_mixture, {"request_id": "1", "origin": "dream"}, "usage.bad-request"),
            (w.client.set_mixture, {"request_id": ""}, "spec.no-request-id"),
        ):
            with pytest.raises(PotluckError) as caught:
                await w.call(method, w.run, {"law": 0.5}, **arguments)
            assert caught.value.error_id == error_id
        assert len((await w.show()).versions) == 1


@in_loop
async def test_requests_that_a_router_counted_make_a_proposal(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.start()
        assert not (await w.call(w.client.get_traffic, w.run)).counting
        with pytest.raises(Refused, match="0 requests") as caught:
            await w.call(w.client.propose_mixture, w.run, {}, request_id="0", origin="traffic")
        assert caught.value.error_id == "refused.no-traffic"
        async with session(await w.join("door", "router")) as call:
            await call.write(traffic(w.run, {"law": 30, "elsewhere": 2}))
            await call.write(traffic("f" * 64, {"law": 1}))
            await call.write(traffic(w.run, {"law": 20, "code": 10, "lawful": 40}))
            counted = await w.call(w.client.get_traffic, w.run)
            while sum(count.requests for count in counted.counts) < 100:
                counted = await w.call(w.client.get_traffic, w.run)
        assert [(c.domain, c.requests) for c in counted.counts] == [("law", 50), ("lawful", 40), ("code", 10)]
        assert (counted.counting, counted.unknown) == (True, 2)
        answer = await w.call(w.client.propose_mixture, w.run, {}, request_id="1", origin="traffic", prior_requests=0.0)
        assert by_domain(answer.weights) == pytest.approx({"code": 1 / 6, "law": 5 / 6, "lawful": 0, "news": 0})
        assert (await w.show()).proposals[0].origin == "traffic"
        await w.call(w.client.get_traffic, w.run, reset=True)
        begun = await w.call(w.client.get_traffic, w.run)
        assert (begun.counting, begun.unknown, len(begun.counts)) == (True, 0, 0)
        again = await w.call(w.client.propose_mixture, w.run, {}, request_id="1", origin="traffic")
        assert again == answer


@in_loop
async def test_only_routers_count_and_only_administrators_steer(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.start()
        async with session(await w.join("box", "node")) as call:
            await call.write(traffic(w.run, {"law": 30}))
            with pytest.raises(UsageError), rpc_errors():
                await rest_of(call)
        async with open_channel(await w.join("reader", "client")) as channel:
            stub: Any = mixture_pb2_grpc.MixtureServiceStub(channel)
            with pytest.raises(JoinError) as caught, rpc_errors():
                await stub.ShowMixture(mixture_pb2.ShowMixtureRequest(run=w.run), timeout=DEADLINE_S)
            assert caught.value.error_id == "join.wrong-role"


@in_loop
async def test_mixtures_and_labels_of_a_run_are_kept_when_room_is_made(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.start()
        answer = await w.propose("1", law=0.5)
        await w.decide(1, {"state": "refused"})
        w.plan.finished = True
        await w.advance()
        roots = await w.daemon._runtime.read(roots_of)
        assert {w.plan.labels, w.plan.evenly, Digest(answer.mixture)} <= roots
