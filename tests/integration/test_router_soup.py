"""Any specialist of a soup on request: a whole router over mutual TLS, and a real serving child that has the bank."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from expert_node.attach import Attachments
from expert_node.child import GroupNote
from expert_node.serve import Serving, Slot, SlotState
from potluck.config import to_mapping
from potluck.errors import NotReachable, PotluckError, UsageError
from potluck.ids import Digest, RunId, canonical_json, digest_bytes, digest_file
from potluck.lm.generate import SamplingParams, generate
from potluck.lm.model import load_decoder
from potluck.lm.soup import Soup
from potluck.lm.soup_config import SoupConfig
from router.view import SoupView, View, may_replace
from sampling.mixture import Mixture
from sampling.soup import fit_instantiate
from sampling.taskio import TaskCall
from tests.integration.conftest import EXPERT_MODEL, PATIENCE_S, TEXT, World
from tests.integration.test_router_serving import http, in_loop, lines

DOMAINS = ("law", "code:python, 3", "größte=1", "news")
BANK = SoupConfig(domains=len(DOMAINS), experts=3, hidden=8)
PARTITION = Digest("7" * 64)
CODE, NEWS = "soup:code:python%2C 3=0.6,law=0.4", "soup:news=1"
SAMPLING: dict[str, Any] = {"max_tokens": 24, "temperature": 1.0, "seed": 7}


class SoupWorld:
    """A published soup on top of the router's world, and a node that serves it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.paths: dict[Digest, Path] = {}
        manifest = {
            "kind": "labels", "version": 1, "partition": PARTITION, "tokens": "8" * 64, "sequence_length": 16,
            "domains": list(DOMAINS), "sizes": [1] * len(DOMAINS), "rows": 4, "excluded": 0, "labels": "9" * 64,
        }  # fmt: skip
        self.labels = world.store.put_bytes(canonical_json(manifest).encode())

    def view(self, seed: int = 0) -> View:
        soup = Soup(EXPERT_MODEL, BANK, seed=seed)
        soup.bank["experts"].normal_(0.0, 0.2, generator=torch.Generator().manual_seed(seed))
        slots = {"bank": self._put(soup.tensors()), "soup": self._put(soup.instantiate(torch.full((4,), 0.25)))}
        how: dict[str, Any] = {"slots": slots, "soup": SoupView(slot="bank", labels=self.labels, config=BANK)}
        return replace(self.world.one_view(), method="soup", default_slot="soup", **how)

    def materialised(self, view: View, weights: dict[str, float]) -> tuple[Path, list[float]]:
        """What the task makes of the mixture: its file, and the coefficients."""
        out = self.world.folder / "made" / digest_bytes(repr((view.slots, weights)).encode())
        out.mkdir(parents=True, exist_ok=True)
        mixture = Mixture(partition=PARTITION, weights={name: weights.get(name, 0.0) for name in DOMAINS})
        (out / "mixture.json").write_text(mixture.to_json(), encoding="utf-8")
        digest = digest_file(out / "mixture.json")
        paths = {**self.paths, digest: out / "mixture.json", self.labels: self.world.store.path(self.labels)}

        class Blobs:
            def path(self, wanted: str) -> Path:
                return paths[Digest(wanted)]

        inputs = {"weights": view.slots["bank"], "labels": self.labels, "mixture": digest}
        params = {"what": "instantiate", "model": to_mapping(EXPERT_MODEL), "soup": to_mapping(BANK)}
        made = fit_instantiate(TaskCall(params=params, inputs=inputs, blobs=Blobs(), out=out, progress=lambda *_: None))
        coefficients: Any = made.figures["coefficients"]
        return made.files["weights"], coefficients

    def slots(self, view: View, *, experts: int = BANK.experts) -> list[Slot]:
        bank = {"model": to_mapping(EXPERT_MODEL), "soup": to_mapping(replace(BANK, experts=experts))}
        shapes: dict[str, Any] = {"bank": bank, "soup": to_mapping(EXPERT_MODEL)}
        return [
            Slot(run=view.run, slot=slot, weights=weights, model_json=canonical_json(shapes[slot]))
            for slot, weights in view.slots.items()
        ]

    @asynccontextmanager
    async def node(self, address: str, name: str = "n") -> AsyncIterator[Serving]:
        attached: list[Attachments] = []

        async def fetch(digest: Digest) -> Path:
            return self.paths[digest]

        def publish(states: tuple[SlotState, ...]) -> None:
            for each in attached:
                each.publish(states)

        note = self.world.folder / f"{name}-note.json"
        serving = Serving(notes=GroupNote(note), fetch=fetch, publish=publish)
        attached.append(Attachments(self.world.identity(name, "node"), serving))
        try:
            await attached[0].dial([address])
            yield serving
        finally:
            await attached[0].close()
            await serving.close()

    def _put(self, tensors: dict[str, torch.Tensor]) -> Digest:
        path = self.world.folder / "soup.safetensors"
        save_file(tensors, path)
        digest = digest_file(path)
        self.paths[digest] = path.rename(self.world.folder / digest)
        return digest


@pytest.fixture
def soup_world(router_world: World) -> SoupWorld:
    torch.set_num_threads(1)
    return SoupWorld(router_world)


async def both_ready(router: Any, view: View) -> None:
    while not {view.key("soup"), view.key("bank")} <= router.daemon.fleet.ready:
        await asyncio.sleep(0)


@in_loop
async def test_models_of_two_mixtures_generate_together_what_plain_models_of_their_weights_generate(
    soup_world: SoupWorld,
) -> None:
    view = soup_world.view()
    async with (
        soup_world.world.router(http=True) as router,
        router.client() as client,
        soup_world.node(router.address) as serving,
    ):
        router.offer(view, 3)
        await serving.assign(soup_world.slots(view))
        await both_ready(router, view)

        async def generated(model: str) -> list[Any]:
            return [piece async for piece in client.generate(TEXT, model=model, **SAMPLING)]

        names = (CODE, NEWS, CODE, NEWS, CODE)
        answers = await asyncio.gather(*(generated(name) for name in names))
        plain = [piece async for piece in client.generate(TEXT, **SAMPLING)]
        scored = await client.score(TEXT, model=CODE)
        made = await client.instantiate("soup: law = 4e-1, code:python%2C%203=0.6")
        first, again = await client.instantiate("soup:law=1"), await client.instantiate("soup:law=1.0,news=0")
        _, over_http = await http(router.http_port, "POST", "/generate", {"text": TEXT, "model": CODE, **SAMPLING})
        _, made_over_http = await http(router.http_port, "POST", "/instantiate", {"model": CODE})
        _, scored_over_http = await http(router.http_port, "POST", "/score", {"text": TEXT, "model": CODE})
    weights = {CODE: {"code:python, 3": 0.6, "law": 0.4}, NEWS: {"news": 1.0}}
    prompt = soup_world.world.tokenizer.encode(TEXT).ids
    files = {name: soup_world.materialised(view, weights[name]) for name in weights}
    models = {name: load_decoder(EXPERT_MODEL, path) for name, (path, _) in files.items()}
    texts = {name: list(generate(model, prompt, SamplingParams(**SAMPLING))) for name, model in models.items()}
    natural = load_decoder(EXPERT_MODEL, soup_world.paths[view.slots["soup"]])
    assert texts[CODE] != texts[NEWS]
    for name, pieces in zip(names, answers, strict=True):
        assert [i for piece in pieces for i in piece.ids] == texts[name]
        assert {(p.model, p.expert, p.weights, p.view_version) for p in pieces} == {
            (CODE if name == CODE else "soup:news=1.0", -1, view.slots["bank"], 3)
        }
    assert [i for piece in plain for i in piece.ids] == list(generate(natural, prompt, SamplingParams(**SAMPLING)))
    assert {(p.model, p.expert, p.weights) for p in plain} == {("", 0, view.slots["soup"])}
    assert (scored.model, scored.expert) == (CODE, -1)
    assert scored.log_probs == pytest.approx(soup_world.world.reference_log_probs(models[CODE], scored.ids), abs=1e-6)
    path, coefficients = files[CODE]
    assert (made.digest, made.cached, made.node, made.model) == (digest_file(path), True, "n", CODE)
    assert made.coefficients == pytest.approx(coefficients, abs=0)
    assert (made.view_version, made.run, made.weights) == (3, view.run, view.slots["bank"])
    assert (first.cached, again.cached, first.digest, first.build_ms) == (False, True, again.digest, again.build_ms)
    assert [i for piece in lines(over_http) for i in piece["ids"]] == texts[CODE]
    assert json.loads(made_over_http) == {**dataclasses.asdict(made), "coefficients": list(made.coefficients)}
    assert json.loads(scored_over_http)["model"] == CODE


@in_loop
async def test_what_is_wrong_with_a_model_s_name_is_told_by_grpc_and_http(soup_world: SoupWorld) -> None:
    view, plain = soup_world.view(), soup_world.world.view()
    other = replace(plain, run=RunId("d" * 64), name="no-soup")
    wrong: dict[str, tuple[str, dict[str, str], str]] = {
        "not a name": ("usage.bad-model", {"model": "code"}, "soup:code=0.6,law=0.4"),
        "no domain": ("usage.empty-soup", {"model": "soup:"}, "soup:code=0.6,law=0.4"),
        "unknown": ("usage.unknown-domain", {"model": "soup:new=1"}, "nearest of its 4 domains: news"),
        "negative": ("usage.bad-weight", {"model": "soup:law=2,news=-1"}, "decimal numbers"),
        "sum": ("usage.weights-do-not-sum", {"model": "soup:law=1,news=3"}, "soup:law=0.25,news=0.75"),
        "no soup": ("usage.no-soup", {"model": NEWS, "run": "no-soup"}, "fox"),
        "two things": ("usage.slot-and-model", {"model": NEWS, "slot": "soup"}, "one of them"),
        "the bank itself": ("usage.slot-is-soup", {"slot": "bank"}, "soup:code=0.6,law=0.4"),
        "another slot": ("usage.unknown-slot", {"slot": "dense"}, "slots of run fox: soup"),
    }
    async with soup_world.world.router(http=True) as router, router.client() as client:
        router.offer(other, 1)
        router.offer(view, 1)
        while len(router.daemon.book.current) < 2:
            await asyncio.sleep(0)
        for error_id, how, fix in wrong.values():
            with pytest.raises(UsageError) as caught:
                await client.score(TEXT, **how)
            assert (caught.value.error_id, fix in caught.value.fix) == (error_id, True), caught.value
            with pytest.raises(UsageError) as caught:
                _ = [piece async for piece in client.generate(TEXT, **how)]
            assert caught.value.error_id == error_id
            if "slot" not in how:
                with pytest.raises(UsageError) as caught:
                    await client.instantiate(**how)
                assert caught.value.error_id == error_id
            status, text = await http(router.http_port, "POST", "/score", {"text": TEXT, **how})
            assert (status, json.loads(text)["error"]["id"]) == (400, error_id)
        unpublished = replace(view, run=RunId("e" * 64), name="young", slots={"soup": view.slots["soup"]})
        router.offer(unpublished, 1)
        while len(router.daemon.book.current) < 3:
            await asyncio.sleep(0)
        for run, error_id in (("fox", "net.no-replica"), ("young", "net.no-soup")):
            with pytest.raises(NotReachable, match=r"soup|no node has it ready") as missing:
                await client.instantiate(NEWS, run=run)
            assert missing.value.error_id == error_id


@in_loop
async def test_a_newer_soup_replaces_the_old_one_and_what_was_made_of_it(soup_world: SoupWorld) -> None:
    old, new = soup_world.view(seed=0), soup_world.view(seed=1)
    async with (
        soup_world.world.router(patience_s=PATIENCE_S) as router,
        router.client() as client,
        soup_world.node(router.address) as serving,
    ):
        router.offer(old, 1)
        await serving.assign(soup_world.slots(old))
        await both_ready(router, old)
        before = await client.instantiate(NEWS)
        router.offer(new, 2)
        await serving.assign(soup_world.slots(new))
        while (after := await client.instantiate(NEWS)).view_version == 1:
            pass
        # Back to the old one: its models are made anew.
        await both_ready(router, new)
        router.offer(old, 3)
        await serving.assign(soup_world.slots(old))
        while (back := await client.instantiate(NEWS)).view_version == 2:
            pass
    assert (after.view_version, after.weights) == (2, new.slots["bank"])
    assert after.digest == digest_file(soup_world.materialised(new, {"news": 1.0})[0]) != before.digest
    assert (back.view_version, back.digest, back.cached) == (3, before.digest, False)


def test_a_view_waits_for_its_soup_while_the_old_soup_is_served(soup_world: SoupWorld) -> None:
    old, new = soup_world.view(seed=0), soup_world.view(seed=1)
    ready = {view.key(slot) for view, slot in ((old, "soup"), (old, "bank"), (new, "soup"))}
    assert not may_replace(old, new, ready)
    assert may_replace(old, new, ready | {new.key("bank")})
    assert may_replace(old, new, ready - {old.key("bank")})
    assert View.from_json(new.to_json()) == new


@in_loop
async def test_without_room_for_both_the_old_soup_gives_way_and_one_too_large_says_what_it_needs(
    soup_world: SoupWorld,
) -> None:
    old, new = soup_world.view(seed=0), soup_world.view(seed=1)
    async with (
        soup_world.world.router() as router,
        router.client() as client,
        soup_world.node(router.address) as serving,
    ):
        router.offer(old, 1)
        await serving.assign(soup_world.slots(old))
        await both_ready(router, old)
        # Its true size shows only when it is loaded; what is told of it is what counts before.
        await serving.assign(soup_world.slots(new, experts=10**12))
        while new.key("soup") not in router.daemon.fleet.ready or old.key("bank") in router.daemon.fleet.ready:
            await asyncio.sleep(0)
        router.offer(new, 2)
        while router.daemon.book.current[-1].version == 1:
            await asyncio.sleep(0)
        while not any(state.state == "failed" for state in serving.states):
            await asyncio.sleep(0)
        plain = await client.score(TEXT)  # What the node said before its answer has arrived too.
        with pytest.raises(
            NotReachable, match=r"node n: \[resource.memory\] a soup of 1000000000000 experts"
        ) as caught:
            await client.instantiate(NEWS)
        states = {state.slot.slot: state.state for state in serving.states}
    assert caught.value.error_id == "net.no-replica"
    assert plain.weights == new.slots["soup"]
    assert states == {"soup": "ready", "bank": "failed"}


@in_loop
async def test_before_the_first_token_the_next_node_that_has_the_soup_is_tried(soup_world: SoupWorld) -> None:
    view = soup_world.view()
    async with (
        soup_world.world.router() as router,
        router.client() as client,
        soup_world.node(router.address, "works") as serving,
    ):
        router.offer(view, 1)
        await router.attach("refuses", view, fails="resource.memory")
        await serving.assign(soup_world.slots(view))
        while len(router.daemon.fleet.nodes) < 2 or len(serving.states) < 2 or not all_ready(serving):
            await asyncio.sleep(0)
        answers = [[piece async for piece in client.generate(TEXT, model=NEWS, **SAMPLING)] for _ in range(3)]
    model = load_decoder(EXPERT_MODEL, soup_world.materialised(view, {"news": 1.0})[0])
    expected = list(generate(model, soup_world.world.tokenizer.encode(TEXT).ids, SamplingParams(**SAMPLING)))
    assert [[i for piece in pieces for i in piece.ids] for pieces in answers] == [expected] * 3


def all_ready(serving: Serving) -> bool:
    return all(state.state == "ready" for state in serving.states)


@in_loop
async def test_a_router_that_starts_from_its_last_view_answers_for_soups_without_a_coordinator(
    soup_world: SoupWorld,
) -> None:
    view = soup_world.view()
    async with soup_world.world.router() as router:
        router.offer(view, 5)
        while not router.daemon.book.current:
            await asyncio.sleep(0)
    async with (
        soup_world.world.router() as router,
        router.client() as client,
        soup_world.node(router.address) as serving,
    ):
        with pytest.raises(PotluckError) as caught:
            await client.instantiate(CODE)
        await serving.assign(soup_world.slots(view))
        await both_ready(router, view)
        made = await client.instantiate(CODE)
    assert caught.value.error_id == "net.no-replica"
    assert (made.view_version, made.cached) == (5, False)
    assert made.digest == digest_file(soup_world.materialised(view, {"code:python, 3": 0.6, "law": 0.4})[0])
