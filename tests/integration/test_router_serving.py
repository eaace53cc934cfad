"""A whole router over mutual TLS, with nodes that dial it and real, random models."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from grpc_health.v1 import health_pb2

from potluck.client import AsyncRouterClient, RouterClient
from potluck.errors import JoinError, NotReachable, PotluckError, UsageError
from potluck.ids import NodeId, RunId
from potluck.lm.generate import SamplingParams, generate
from potluck.lm.score import prefix_mean_nll
from potluck.net.channels import open_channel
from potluck.net.tls import ROUTER_NAME, CertificateAuthority, new_key_and_csr
from potluck.v1 import expert_pb2_grpc
from router.choose import choose
from sampling.scoring import to_fixed_point
from tests.integration.router_answers import collect, in_loop

PREFIX, VOCAB = 8, 300
TEXT = "the quick brown fox jumps over the lazy dog, said the größte Füchsin"
RUN = RunId("a" * 64)
PATIENCE_S = 30.0


def random_rows(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1, VOCAB, (count, PREFIX)).astype(np.uint16)


@in_loop
async def test_the_expert_chosen_is_the_one_the_offline_columns_choose(router_world: Any) -> None:
    rows = random_rows(64)
    scores = [prefix_mean_nll(model, rows, prefix=PREFIX, batch_size=16) for model in router_world.routers]
    offline = np.argmin(np.stack([to_fixed_point(s)[0] for s in scores]), axis=0)
    async with router_world.router() as router, router.client() as client:
        view = router_world.view()
        router.offer(view, 1)
        await router.attach("n", view)
        await router.serving()
        routed = [await client.route([int(i) for i in row]) for row in rows]
    assert [r.expert for r in routed] == offline.tolist()
    assert len(set(offline.tolist())) > 1


@in_loop
async def test_generation_equals_the_model_token_by_token(router_world: Any) -> None:
    async with router_world.router() as router, router.client() as client:
        view = router_world.view()
        router.offer(view, 1)
        await router.attach("n", view)
        await router.serving()
        for sampling in ({}, {"temperature": 1.0, "top_k": 20, "top_p": 0.9, "seed": 7}):
            pieces = [p async for p in client.generate(TEXT, max_tokens=40, **sampling)]
            ids = [i for p in pieces for i in p.ids]
            model = router_world.models[view.slots[f"expert-{pieces[0].expert}"]]
            prompt = router_world.tokenizer.encode(TEXT).ids
            assert ids == list(generate(model, prompt, SamplingParams(max_tokens=40, **sampling)))
            assert pieces[-1].finish in ("eod", "length")
            assert "".join(p.text for p in pieces) == whole(router_world.tokenizer.decode(ids))


def whole(text: str) -> str:
    """Without the end of a text that stops in the middle of a character."""
    return text.rstrip("\ufffd") if text.endswith("\ufffd") else text


@in_loop
async def test_scores_are_the_experts_log_probabilities_in_rows(router_world: Any) -> None:
    async with router_world.router() as router, router.client() as client:
        view = router_world.view()
        router.offer(view, 1)
        await router.attach("n", view)
        await router.serving()
        scored = await client.score(TEXT)
        dense = await client.score(TEXT, slot="dense")
        named = await client.score(TEXT, run="fox", slot="expert-2")
    weights = view.slots[f"expert-{scored.expert}"]
    assert scored.weights == weights
    assert scored.log_probs == pytest.approx(
        router_world.reference_log_probs(router_world.models[weights], scored.ids), abs=1e-6
    )
    assert len(scored.log_probs) == len(scored.ids) - 1
    assert (dense.expert, dense.weights) == (-1, view.slots["dense"])
    assert (named.expert, named.weights) == (2, view.slots["expert-2"])


@in_loop
async def test_a_run_of_one_model_is_answered_by_its_default_slot(router_world: Any) -> None:
    view = router_world.one_view()
    async with router_world.router(http=True) as router, router.client() as client:
        router.offer(view, 1)
        await router.attach("n", view)
        await router.serving()
        routed, short = await client.route(TEXT), await client.route([5])
        scored = await client.score(TEXT)
        named = await client.score(TEXT, slot="specialist")
        generated = [piece async for piece in client.generate(TEXT, max_tokens=4)]
        _, text = await http(router.http_port, "POST", "/route", {"text": TEXT})
        with pytest.raises(UsageError, match="model, specialist"):
            await client.score(TEXT, slot="expert-0")
    model, specialist = view.slots["model"], view.slots["specialist"]
    assert (routed.expert, routed.prefix_nll, routed.weights) == (0, (), model)
    assert (routed.prefix_tokens, short.prefix_tokens) == (PREFIX, 1)
    assert (scored.expert, scored.weights) == (0, model)
    assert scored.log_probs == pytest.approx(
        router_world.reference_log_probs(router_world.models[model], scored.ids), abs=1e-6
    )
    assert (named.expert, named.weights) == (-1, specialist)
    assert {(p.expert, p.weights) for p in generated} == {(0, model)}
    assert json.loads(text) == {**dataclasses.asdict(routed), "prefix_nll": []}


@in_loop
async def test_a_client_that_goes_away_is_cancelled_down_to_the_node(router_world: Any) -> None:
    async with router_world.router() as router, router.client() as client:
        view = router_world.view()
        router.offer(view, 1)
        node = await router.attach("n", view)
        await router.serving()
        generating = client.generate([5, 6, 7], max_tokens=1000, slot="expert-0")
        await anext(generating)
        await generating.aclose()
        await asyncio.wait_for(node.cancelled.wait(), PATIENCE_S)
        assert max(node.sent.values()) < 1000


@in_loop
async def test_generate_ends_before_a_stop_string_and_its_work_ends_on_the_node(router_world: Any) -> None:
    how: dict[str, Any] = {"slot": "expert-0", "temperature": 1.0, "seed": 7}
    async with router_world.router(http=True) as router, router.client() as client:
        view = router_world.view()
        router.offer(view, 1)
        node = await router.attach("n", view)
        await router.serving()
        free = [piece async for piece in client.generate(TEXT, max_tokens=40, **how)]
        text, free_ids = "".join(p.text for p in free), [i for p in free for i in p.ids]
        stops = (text[start : start + 4] for start in range(len(text) // 3, len(text)))
        stop = next(stop for stop in stops if "\ufffd" not in stop)  # so that decoding the ids shows it too
        assert len(free_ids) == 40, "the seed should give a text that does not end by itself"
        pieces = [p async for p in client.generate(TEXT, max_tokens=1000, stop=["\0never\0", stop], **how)]
        await asyncio.wait_for(node.cancelled.wait(), PATIENCE_S)
        _, answer = await http(router.http_port, "POST", "/generate", {"text": TEXT, "stop": [stop], **how})
        at_the_end = [p async for p in client.generate(TEXT, max_tokens=40, stop=[text[-1] + "\0"], **how)]
        status, refused = await http(router.http_port, "POST", "/generate", {"text": TEXT, "stop": [""]})
        assert (status, json.loads(refused)["error"]["id"]) == (400, "usage.bad-stop")
        status, refused = await http(router.http_port, "POST", "/generate", {"text": TEXT, "stop": "x"})
        assert (status, json.loads(refused)["error"]["id"]) == (400, "usage.bad-value")
    ids = [i for p in pieces for i in p.ids]
    assert "".join(p.text for p in pieces) == text[: text.index(stop)]
    assert [p.finish for p in pieces] == [""] * (len(pieces) - 1) + ["stop"]
    assert ids == free_ids[: len(ids)]
    decode = router_world.tokenizer.decode
    assert stop in decode(ids)
    assert stop not in decode(ids[:-1])
    assert "".join(piece["text"] for piece in lines(answer)) == text[: text.index(stop)]
    assert (at_the_end[-1].finish, "".join(p.text for p in at_the_end)) == ("length", text)


@in_loop
async def test_health_follows_view_and_replicas(router_world: Any) -> None:
    async with router_world.router() as router, router.client() as client:
        await router.not_serving()
        with pytest.raises(NotReachable) as caught:
            await client.route(TEXT)
        assert caught.value.error_id == "net.no-view"
        view = router_world.view()
        router.offer(replace(view, slots={"expert-0": view.slots["expert-0"]}), 1)
        node = await router.attach("n", view)
        await router.not_serving()
        router.offer(view, 2)
        await router.serving()
        await node.leave()
        await router.not_serving()
        with pytest.raises(NotReachable) as caught:
            await client.score(TEXT)
        assert caught.value.error_id == "net.no-replica"


@in_loop
async def test_requests_that_come_before_the_first_view_wait_for_it_and_for_its_replicas(router_world: Any) -> None:
    view = router_world.view()
    async with router_world.router(patience_s=PATIENCE_S) as router, router.client() as client:
        routing = asyncio.create_task(client.route(TEXT))
        scoring = asyncio.create_task(client.score(TEXT))
        generating = asyncio.create_task(collect(client.generate(TEXT, max_tokens=3), ids := []))
        router.offer(view, 1)
        routed = await routing
        assert not scoring.done()
        assert not generating.done()
        await router.attach("n", view)
        assert (await scoring).expert == routed.expert
        await generating
    assert 1 <= len(ids) <= 3


@in_loop
async def test_a_missing_view_has_a_cause(router_world: Any) -> None:
    async with router_world.router() as router, router.client() as client:
        with pytest.raises(NotReachable, match="no session with the coordinator"):
            await client.route(TEXT)
        view = router_world.view()
        router.offer(replace(view, slots={"expert-0": view.slots["expert-0"]}), 1)
        await router.health(health_pb2.HealthCheckResponse.NOT_SERVING)
        with pytest.raises(NotReachable, match="run fox has not published expert-1, expert-2") as caught:
            await client.route(TEXT)
        assert caught.value.error_id == "net.no-view"


@in_loop
async def test_a_router_starts_from_its_disk_without_the_coordinator(router_world: Any) -> None:
    view = router_world.view()
    async with router_world.router() as router, router.client() as client:
        router.offer(view, 5)
        await router.attach("n", view)
        await router.serving()
        before = await client.route(TEXT)
    async with router_world.router() as router, router.client() as client:
        assert await client.route(TEXT) == before
        await router.attach("n", view)
        await router.serving()


@in_loop
async def test_several_runs_come_back_from_disk_and_the_newest_is_meant(router_world: Any) -> None:
    first = router_world.view()
    second = replace(first, run=RunId("b" * 64), name="second", routers=first.routers[::-1])
    async with router_world.router() as router, router.client() as client:
        router.offer(first, 1)
        router.offer(second, 3)
        await router.attach("n", first, second)
        await router.serving()
        while (await client.route(TEXT)).run != second.run:
            await asyncio.sleep(0)
        before = [await client.route(TEXT, run=name) for name in ("", "fox", "second")]
    for _ in range(2):
        async with router_world.router() as router, router.client() as client:
            assert [await client.route(TEXT, run=name) for name in ("", "fox", "second")] == before


@in_loop
async def test_short_and_wrong_requests(router_world: Any) -> None:
    async with router_world.router() as router, router.client() as client:
        view = router_world.view()
        router.offer(view, 1)
        await router.attach("n", view)
        await router.serving()
        two = await client.route([5, 6])
        one = await client.route([5])
        alone = await client.score([5])
        wrong: dict[str, Callable[[], Any]] = {
            "usage.empty-text": lambda: client.route(""),
            "usage.bad-token": lambda: client.route([VOCAB]),
            "usage.unknown-run": lambda: client.route(TEXT, run="nothing"),
            "usage.unknown-slot": lambda: client.score(TEXT, slot="expert-9"),
            "usage.too-long": lambda: client.route("x" * 70_000),
        }
        for error_id, call in wrong.items():
            with pytest.raises(UsageError) as caught:
                await call()
            assert caught.value.error_id == error_id
        with pytest.raises(UsageError) as caught:
            await anext(client.generate(TEXT, temperature=-1.0))
        assert caught.value.error_id == "usage.bad-sampling"
        with pytest.raises(UsageError, match="max_tokens = 1025") as caught:
            await anext(client.generate(TEXT, max_tokens=1025))
        assert caught.value.error_id == "usage.bad-sampling"
        assert "1 to 1024" in caught.value.fix
    expected = [
        float(prefix_mean_nll(m, np.array([[5, 6]], np.uint16), prefix=2, batch_size=1)[0])
        for m in router_world.routers
    ]
    assert two.prefix_nll == pytest.approx(expected, abs=1e-5)
    assert two.expert == choose(np.array(two.prefix_nll))
    assert (two.prefix_tokens, one.prefix_tokens) == (2, 1)
    assert (one.expert, set(one.prefix_nll), alone.log_probs) == (0, {0.0}, ())


@in_loop
async def test_roles_are_checked_and_a_closed_port_has_a_cause(router_world: Any) -> None:
    async with router_world.router() as router:
        async with open_channel(
            router_world.identity("c", "client"), target=router.address, server_name=ROUTER_NAME
        ) as channel:
            call: Any = expert_pb2_grpc.ExpertServiceStub(channel).Attach()
            with pytest.raises(grpc.RpcError) as refused:
                await call.read()
        assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED  # type: ignore[attr-defined]
        async with Stranger(router_world, router.address) as error:
            assert isinstance(error, JoinError)
        address = router.address
    async with AsyncRouterClient(router_world.identity("c", "client"), address) as client:
        with pytest.raises(NotReachable) as caught:
            await client.route(TEXT)
    assert caught.value.error_id == "net.refused"


class Stranger:
    """What a client of another authority is told."""

    def __init__(self, router_world: Any, address: str) -> None:
        other = CertificateAuthority.create(router_world.folder / "other-ca")
        key, csr = new_key_and_csr("x")
        certificate = other.issue(csr, node_id=NodeId("x"), role="client")
        self._identity = replace(router_world.identity("x", "client"), key_pem=key, certificate_pem=certificate)
        self._address = address

    async def __aenter__(self) -> PotluckError:
        async with AsyncRouterClient(self._identity, self._address) as client:
            with pytest.raises(PotluckError) as caught:
                await client.route(TEXT)
        return caught.value

    async def __aexit__(self, *_: object) -> None:
        pass


@in_loop
async def test_the_synchronous_client_streams_too(router_world: Any) -> None:
    async with router_world.router() as router:
        view = router_world.view()
        router.offer(view, 1)
        await router.attach("n", view)
        await router.serving()
        identity = router_world.identity("c", "client")

        def use() -> tuple[Any, Any, list[Any]]:
            with RouterClient(identity, router.address) as client:
                return client.route(TEXT), client.score(TEXT), list(client.generate(TEXT, max_tokens=4))

        routed, scored, pieces = await asyncio.to_thread(use)
    assert routed.expert == scored.expert == pieces[0].expert
    assert sum(len(p.ids) for p in pieces) <= 4


async def http(port: int, method: str, path: str, body: Any = None, headers: str = "") -> tuple[int, str]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = json.dumps(body).encode() if body is not None else b""
    writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    answer = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    head, _, rest = answer.partition("\r\n\r\n")
    return int(head.split(" ")[1]), rest


def lines(chunked: str) -> Iterator[Any]:
    for line in chunked.splitlines():
        if line.startswith(("{", "data: ")):
            yield json.loads(line.removeprefix("data: "))


@in_loop
async def test_the_http_bridge_answers_as_grpc_does(router_world: Any) -> None:
    async with router_world.router(http=True) as router, router.client() as client:
        assert (await http(router.http_port, "GET", "/health"))[0] == 503
        view = router_world.view()
        router.offer(view, 1)
        await router.attach("n", view)
        await router.serving()
        port = router.http_port
        assert (await http(port, "GET", "/health")) == (200, '{"status": "SERVING"}')
        status, text = await http(port, "POST", "/route", {"text": TEXT})
        assert (status, json.loads(text)["expert"]) == (200, (await client.route(TEXT)).expert)
        status, text = await http(port, "POST", "/score", {"ids": [5, 6, 7], "slot": "dense"})
        assert (status, len(json.loads(text)["log_probs"])) == (200, 2)
        for headers in ("", "Accept: text/event-stream\r\n"):
            status, text = await http(port, "POST", "/generate", {"text": TEXT, "max_tokens": 5}, headers)
            ids = [i for piece in lines(text) for i in piece["ids"]]
            assert (status, ids) == (200, [i async for p in client.generate(TEXT, max_tokens=5) for i in p.ids])
        wrong = [
            ("POST", "/route", {"text": ""}, "", 400),
            ("POST", "/generate", {"text": TEXT, "max_tokens": "many"}, "", 400),
            ("GET", "/nowhere", None, "", 404),
            ("GET", "/route", None, "", 405),
            ("POST", "/route", {"text": TEXT}, "Origin: http://evil\r\n", 403),
        ]
        for method, path, body, headers, status in wrong:
            assert (await http(port, method, path, body, headers))[0] == status
