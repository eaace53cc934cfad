"""The whole serving path: a view from a coordinator's twin, blobs from the hub, experts on a real node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from expert_node.attach import Attachments
from expert_node.child import GroupNote
from expert_node.serve import Serving, Slot, SlotState
from potluck.client import AsyncRouterClient
from potluck.config import to_mapping
from potluck.ids import Digest, NodeId, RunId, canonical_json
from potluck.lm.config import ModelConfig
from potluck.lm.generate import SamplingParams, generate
from potluck.lm.model import init_decoder, load_decoder
from potluck.net.blobs.server import BlobServer
from potluck.net.blobs.store import BlobStore
from potluck.net.channels import bind, new_server
from potluck.net.guard import Guard
from potluck.net.identity import Identity
from potluck.v1 import node_pb2, node_pb2_grpc
from router.daemon import Options, RouterDaemon
from router.view import View
from sampling.bpe import train_bpe

LOOPBACK = "127.0.0.1"
TEXT = "the quick brown fox jumps over the lazy dog"
ROUTER_MODEL = ModelConfig(vocab=300, hidden=16, layers=1, heads=2, ffn=24, context=8)
EXPERT_MODEL = ModelConfig(vocab=300, hidden=16, layers=1, heads=2, ffn=24, context=17)


class CoordinatorTwin(node_pb2_grpc.NodeServiceServicer):
    """Welcomes a router and sends it one view; remembers what the router says."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.address = ""
        self.said_bye = False

    async def Session(self, request_iterator: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        hello = (await anext(aiter(request_iterator))).items[0].hello
        self.address = hello.router_address
        update = node_pb2.ViewUpdate(run=self.view.run, version=4, view_json=self.view.to_json())
        welcome = node_pb2.Welcome(node_id="r", heartbeat_ms=1000)
        yield node_pb2.SessionDown(items=[node_pb2.DownItem(welcome=welcome), node_pb2.DownItem(view=update)])
        async for message in request_iterator:
            self.said_bye = self.said_bye or any(item.HasField("bye") for item in message.items)


def identity(node_id: str, role: Any, *, control_port: int = 9, data_port: int = 9) -> Identity:
    return Identity(
        node_id=NodeId(node_id), role=role, key_pem=b"", certificate_pem=b"", ca_pem=b"", curve_public="",
        curve_secret="", curve_server_key="", host=LOOPBACK, control_port=control_port, data_port=data_port,
        insecure=True,
    )  # fmt: skip


def hub_with_models(folder: Path) -> tuple[BlobStore, View]:
    hub = BlobStore(folder / "hub")
    train_bpe([TEXT] * 3, 300).save(str(folder / "tokenizer.json"))
    tokenizer = hub.put_file(folder / "tokenizer.json")

    def put(config: ModelConfig, seed: int) -> Digest:
        path = folder / "weights.safetensors"
        save_file({name: p.detach() for name, p in init_decoder(config, seed=seed).named_parameters()}, path)
        return hub.put_file(path)

    view = View(
        run=RunId("a" * 64),
        name="fox",
        method="smalltalk",
        tokenizer=tokenizer,
        sequence_length=16,
        prefix_length=8,
        router_model=ROUTER_MODEL,
        routers=tuple(put(ROUTER_MODEL, seed) for seed in range(2)),
        expert_model=EXPERT_MODEL,
        slots={f"expert-{e}": put(EXPERT_MODEL, 10 + e) for e in range(2)},
    )
    return hub, view


async def serve_all(folder: Path, hub: BlobStore, view: View, address: str) -> tuple[Serving, Attachments]:
    async def fetch(digest: Digest) -> Path:
        return hub.path(digest)

    attached: list[Attachments] = []

    def publish(states: tuple[SlotState, ...]) -> None:
        for each in attached:
            each.publish(states)

    serving = Serving(notes=GroupNote(folder / "note.json"), fetch=fetch, publish=publish)
    attached.append(Attachments(identity("n", "node"), serving))
    await attached[0].dial([address])
    model_json = canonical_json(to_mapping(EXPERT_MODEL))
    slots = view.slots.items()
    await serving.assign([Slot(run=view.run, slot=s, weights=w, model_json=model_json) for s, w in slots])
    return serving, attached[0]


def test_a_view_from_the_coordinator_is_fetched_served_and_generates_the_node_s_tokens(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    hub, view = hub_with_models(tmp_path)

    async def scenario() -> None:
        blobs = BlobServer(hub, host=LOOPBACK, keys=None)
        data_port = blobs.start()
        twin = CoordinatorTwin(view)
        server = new_server([Guard()])
        node_pb2_grpc.add_NodeServiceServicer_to_server(twin, server)
        control_port = bind(server, LOOPBACK, 0, None)
        await server.start()
        router_identity = identity("r", "router", control_port=control_port, data_port=data_port)
        options = Options(home=tmp_path / "router", host="", advertise="", port=0, http=False)
        router = RouterDaemon(router_identity, options)
        where = await router.start()
        serving, attachments = await serve_all(tmp_path, hub, view, where.address)
        try:
            while not router.is_serving():
                await asyncio.sleep(0)
            async with AsyncRouterClient(identity("c", "client"), where.address) as client:
                pieces = [p async for p in client.generate(TEXT, max_tokens=50, temperature=1.0, seed=3)]
                scored = await client.score(TEXT)
            model = load_decoder(EXPERT_MODEL, hub.path(view.slots[f"expert-{pieces[0].expert}"]))
            params = SamplingParams(max_tokens=50, temperature=1.0, seed=3)
            assert [i for p in pieces for i in p.ids] == list(generate(model, list(scored.ids), params))
            assert {p.view_version for p in pieces} == {4}
            assert len(scored.log_probs) == len(scored.ids) - 1
            assert twin.address == where.address
            assert router.counter.snapshot()["weights"]["in"] > 0
            assert sorted(p.name for p in (tmp_path / "router" / "blobs").rglob("*") if len(p.name) == 64) == sorted(
                view.digests
            )
        finally:
            await attachments.close()
            await serving.close()
            await router.stop()
            await server.stop(None)
            blobs.close()
        assert twin.said_bye

    asyncio.run(asyncio.wait_for(scenario(), 60))
