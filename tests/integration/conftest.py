"""Shared by the router's tests: one authority, real random models, a whole router, and nodes that dial it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from safetensors.torch import save_file

from potluck.client import AsyncRouterClient
from potluck.ids import Digest, NodeId, RunId
from potluck.lm.config import ModelConfig
from potluck.lm.generate import SamplingParams, generate
from potluck.lm.loss import token_nll
from potluck.lm.model import Decoder, init_decoder
from potluck.net.blobs.store import BlobStore
from potluck.net.channels import open_channel
from potluck.net.identity import Identity
from potluck.net.tls import ROUTER_NAME, CertificateAuthority, new_key_and_csr
from potluck.v1 import expert_pb2 as pb
from potluck.v1 import expert_pb2_grpc, node_pb2
from router.daemon import Options, RouterDaemon
from router.loader import Offer
from router.view import View
from sampling.bpe import train_bpe
from tests.integration.topic_partition import TopicPartition

EXPERTS, PREFIX, SEQUENCE, VOCAB = 3, 8, 16, 300
ROUTER_MODEL = ModelConfig(vocab=VOCAB, hidden=16, layers=1, heads=2, ffn=24, context=PREFIX)
EXPERT_MODEL = ModelConfig(vocab=VOCAB, hidden=16, layers=1, heads=2, ffn=24, context=SEQUENCE + 1)
TEXT = "the quick brown fox jumps over the lazy dog, said the größte Füchsin"
RUN = RunId("a" * 64)
PATIENCE_S = 30.0


class World:
    """One authority, one set of models, and a router's home."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = CertificateAuthority.create(folder / "ca")
        self.store = BlobStore(folder / "router" / "blobs")
        self.tokenizer = train_bpe([TEXT] * 3, VOCAB)
        self.routers = [init_decoder(ROUTER_MODEL, seed=e) for e in range(EXPERTS)]
        path = folder / "tokenizer.json"
        self.tokenizer.save(str(path))
        self._tokenizer_digest = self.store.put_file(path)
        self._router_digests = tuple(self._weights(model) for model in self.routers)
        self.models: dict[str, Decoder] = {}

    def view(self, *, seed: int = 100) -> View:
        slots = {f"expert-{e}": self.expert(seed + e) for e in range(EXPERTS)} | {"dense": self.expert(seed + 50)}
        return View(
            run=RUN,
            name="fox",
            method="smalltalk",
            tokenizer=self._tokenizer_digest,
            sequence_length=SEQUENCE,
            prefix_length=PREFIX,
            router_model=ROUTER_MODEL,
            routers=self._router_digests,
            expert_model=EXPERT_MODEL,
            slots=slots,
        )

    def one_view(self) -> View:
        """One model that answers everything, and another that is asked by name."""
        slots = {"model": self.expert(300), "specialist": self.expert(301)}
        nothing: dict[str, Any] = {"router_model": None, "routers": ()}
        return replace(self.view(), method="single", route_by="one", default_slot="model", slots=slots, **nothing)

    def clustered_view(self) -> View:
        """An expert for each of the planted topics, by a partition that places text."""
        made = self.partition
        experts = len(made.partition.domains)
        how: dict[str, Any] = {"router_model": None, "routers": (), "partition": made.digest, "experts": experts}
        slots = {f"expert-{e}": self.expert(400 + e) for e in range(experts)}
        view = self.view()
        return replace(view, run=RunId("c" * 64), name="topics", route_by="partition", slots=slots, **how)

    @cached_property
    def partition(self) -> TopicPartition:
        return TopicPartition(self.folder / "topics", self.store)

    def expert(self, seed: int) -> Digest:
        digest = Digest(f"{seed:064x}")
        if digest not in self.models:
            self.models[digest] = init_decoder(EXPERT_MODEL, seed=seed)
        return digest

    def reference_log_probs(self, model: Decoder, ids: tuple[int, ...]) -> list[float]:
        """Rows of S+1 tokens with stride S, as the offline evaluation reads text."""
        rows = [ids[start : start + SEQUENCE + 1] for start in range(0, len(ids) - 1, SEQUENCE)]
        with torch.no_grad():
            return [-float(nll) for row in rows for nll in token_nll(model, torch.tensor([row]))[0]]

    def identity(self, node_id: str, role: Any) -> Identity:
        key, csr = new_key_and_csr(node_id)
        return Identity(
            node_id=NodeId(node_id),
            role=role,
            key_pem=key,
            certificate_pem=self.authority.issue(csr, node_id=NodeId(node_id), role=role),
            ca_pem=self.authority.ca_pem,
            curve_public="w" * 40,
            curve_secret="w" * 40,
            curve_server_key="w" * 40,
            host="127.0.0.1",
            control_port=9,
            data_port=9,
        )

    def _weights(self, model: Decoder) -> Digest:
        path = self.folder / "weights.safetensors"
        save_file({name: p.detach() for name, p in model.named_parameters()}, path)
        return self.store.put_file(path)

    @asynccontextmanager
    async def router(self, *, control_port: int = 9, **options: Any) -> AsyncIterator[Router]:
        defaults: dict[str, Any] = {"home": self.folder / "router", "host": "127.0.0.1", "advertise": "", "port": 0}
        identity = replace(self.identity("r", "router"), control_port=control_port)
        daemon = RouterDaemon(identity, Options(**{**defaults, "http": False, "patience_s": 0.0, **options}))
        where = await daemon.start()
        router = Router(self, daemon, where.address, where.http_port)
        try:
            yield router
        finally:
            for node in router.nodes:
                await node.leave()
            await daemon.stop()


class Router:
    def __init__(self, world: World, daemon: RouterDaemon, address: str, http_port: int) -> None:
        self.world, self.daemon, self.address, self.http_port = world, daemon, address, http_port
        self.nodes: list[Node] = []

    def offer(self, view: View, version: int) -> None:
        self.daemon.loader.offer(Offer(run=view.run, version=version, view_json=view.to_json()))

    async def attach(self, name: str, *views: View, **how: Any) -> Node:
        node = Node(self.world, name, self.address, **how)
        self.nodes.append(node)
        await node.serve(*views)
        return node

    def client(self, role: str = "client") -> AsyncRouterClient:
        return AsyncRouterClient(self.world.identity("c", role), self.address)

    async def health(self, wanted: int) -> None:
        """Waits until the health service says `wanted`."""
        async with open_channel(
            self.world.identity("c", "client"), target=self.address, server_name=ROUTER_NAME
        ) as channel:
            watch: Any = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            async with asyncio.timeout(PATIENCE_S):
                async for answer in watch:
                    if answer.status == wanted:
                        break
            watch.cancel()

    async def serving(self) -> None:
        await self.health(health_pb2.HealthCheckResponse.SERVING)

    async def not_serving(self) -> None:
        await self.health(health_pb2.HealthCheckResponse.NOT_SERVING)


class Node:
    """An expert node's serving half: one Attach stream, real models, one task a request."""

    def __init__(self, world: World, name: str, target: str, *, dies_after: int | None = None, fails: str = "") -> None:
        self.requests: list[str] = []
        self.cancelled = asyncio.Event()
        self.sent: dict[int, int] = {}
        self._world, self._dies_after, self._fails = world, dies_after, fails
        self._credit: dict[int, int] = {}
        self._changed = asyncio.Condition()
        self._writing = asyncio.Lock()
        self._channel = open_channel(world.identity(name, "node"), target=target, server_name=ROUTER_NAME)
        self._call: Any = expert_pb2_grpc.ExpertServiceStub(self._channel).Attach()
        self._name = name
        self._greeted = False
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._reader = asyncio.create_task(self._read())

    async def serve(self, *views: View) -> None:
        slots = [
            node_pb2.ServingSlot(run=v.run, slot=slot, weights=weights, state="ready")
            for v in views
            for slot, weights in v.slots.items()
        ]
        items = [pb.AttachUpItem(serving=node_pb2.ServingState(slots=slots))]
        if not self._greeted:
            items.insert(0, pb.AttachUpItem(hello=pb.AttachHello(node_id=self._name, version="0.1.0")))
            self._greeted = True
        await self._write(items)

    async def leave(self) -> None:
        self._call.cancel()
        for task in (self._reader, *self._tasks.values()):
            task.cancel()
        await asyncio.gather(self._reader, *self._tasks.values(), return_exceptions=True)
        await self._channel.close(None)

    async def _read(self) -> None:
        with suppress(grpc.RpcError, asyncio.CancelledError):
            async for message in self._call:
                for item in message.items:
                    await self._take(item)

    async def _take(self, item: pb.AttachDownItem) -> None:
        match item.WhichOneof("item"):
            case "generate":
                self.requests.append(item.generate.weights)
                self._credit[item.generate.request] = item.generate.credit
                self._tasks[item.generate.request] = asyncio.create_task(self._generate(item.generate))
            case "score":
                await self._score(item.score)
            case "credit":
                async with self._changed:
                    self._credit[item.credit.request] += item.credit.tokens
                    self._changed.notify_all()
            case "cancel":
                async with self._writing:  # gRPC ends a call whose write is cancelled
                    self._tasks[item.cancel.request].cancel()
                self.cancelled.set()
            case _:
                pass

    async def _score(self, work: pb.ScoreWork) -> None:
        log_probs = self._world.reference_log_probs(self._world.models[work.weights], tuple(work.ids))
        chunk = pb.ScoreChunk(request=work.request, log_probs=log_probs)
        await self._say(pb.AttachUpItem(scores=chunk))

    async def _generate(self, work: pb.GenerateWork) -> None:
        if self._fails:
            failed = pb.WorkFailed(request=work.request, error_id=self._fails, message="no room")
            await self._say(pb.AttachUpItem(failed=failed))
            return
        params = SamplingParams(
            max_tokens=work.max_tokens, temperature=work.temperature, top_k=work.top_k, top_p=work.top_p, seed=work.seed
        )
        for count, token in enumerate(generate(self._world.models[work.weights], list(work.ids), params)):
            if count == self._dies_after:
                self._call.cancel()
                return
            async with self._changed:
                await self._changed.wait_for(lambda: self._credit[work.request] > 0)
                self._credit[work.request] -= 1
            self.sent[work.request] = count + 1
            finish = "eod" if token == 0 else "length" if count + 1 == work.max_tokens else ""
            await self._say(pb.AttachUpItem(tokens=pb.TokenChunk(request=work.request, ids=[token], finish=finish)))

    async def _say(self, item: pb.AttachUpItem) -> None:
        await self._write([item])

    async def _write(self, items: list[pb.AttachUpItem]) -> None:
        """One write at a time: gRPC refuses a second one on the same stream."""
        async with self._writing:
            await self._call.write(pb.AttachUp(items=items))


@pytest.fixture
def router_world(tmp_path: Path) -> World:
    return World(tmp_path)
