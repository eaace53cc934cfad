"""Requests while the experts change: a view is replaced as a whole, a replica is lost."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from typing import Any

import pytest

from potluck.errors import NotReachable
from potluck.ids import RunId
from tests.integration.router_answers import collect, in_loop, pieces_of

TEXT = "the quick brown fox jumps over the lazy dog, said the größte Füchsin"
RUN = RunId("a" * 64)


@in_loop
async def test_a_request_never_mixes_two_views(router_world: Any) -> None:
    old, new = router_world.view(seed=100), router_world.view(seed=200)
    async with router_world.router() as router, router.client() as client:
        router.offer(old, 1)
        node = await router.attach("n", old)
        await router.serving()
        under_old = client.generate(TEXT, max_tokens=60, slot="expert-1", temperature=1.0)
        first = await anext(under_old)
        router.offer(new, 2)
        await node.serve(old, new)
        while (await client.route(TEXT)).view_version == 1:
            await asyncio.sleep(0)
        rest = [piece async for piece in under_old]
        under_new = [piece async for piece in client.generate(TEXT, max_tokens=2, slot="expert-1")]
    assert {(p.view_version, p.weights) for p in (first, *rest)} == {(1, old.slots["expert-1"])}
    assert {(p.view_version, p.weights) for p in under_new} == {(2, new.slots["expert-1"])}
    assert node.requests == [old.slots["expert-1"], new.slots["expert-1"]]


@in_loop
async def test_a_request_whose_view_is_replaced_before_its_first_token_is_answered_under_the_new_one(
    router_world: Any,
) -> None:
    old, new = router_world.view(seed=100), router_world.view(seed=200)
    async with router_world.router() as router, router.client() as client:
        router.offer(old, 1)
        node = await router.attach("n", old)
        await router.serving()
        released = threading.Event()
        blocked = asyncio.get_running_loop().run_in_executor(router.daemon._executor, released.wait)
        before = router.daemon._desk._num_waiting
        generating = asyncio.create_task(pieces_of(client.generate(TEXT, max_tokens=3)))
        scoring = asyncio.create_task(client.score(TEXT))
        while router.daemon._desk._num_waiting < before + 2:  # both have taken the old view
            await asyncio.sleep(0)
        replaced = replace(router.daemon.book.newest, view=new, version=2)
        router.daemon.book.install(replaced, router.daemon.fleet.ready)
        await node.serve(new)
        while router.daemon.book.newest.version == 1:
            await asyncio.sleep(0)
        released.set()
        await blocked
        pieces, scored = await generating, await scoring
    assert {piece.view_version for piece in pieces} == {scored.view_version} == {2}
    assert set(node.requests) <= set(new.slots.values())


@in_loop
async def test_a_new_view_waits_for_its_replicas_while_the_old_is_served(router_world: Any) -> None:
    old, new = router_world.view(seed=100), router_world.view(seed=200)
    async with router_world.router() as router, router.client() as client:
        router.offer(old, 1)
        node = await router.attach("n", old)
        await router.serving()
        router.offer(new, 2)
        while router.daemon.book.find(RUN).version == 1:  # type: ignore[union-attr]
            await asyncio.sleep(0)
        assert (await client.route(TEXT)).view_version == 1
        await node.serve(new)
        while (await client.route(TEXT)).view_version == 1:
            await asyncio.sleep(0)
        await router.serving()


@in_loop
async def test_before_the_first_token_the_next_replica_is_tried(router_world: Any) -> None:
    async with router_world.router() as router, router.client() as client:
        view = router_world.view()
        router.offer(view, 1)
        await router.attach("dies", view, dies_after=0)
        await router.attach("refuses", view, fails="resource.memory")
        await router.attach("works", view)
        while len(router.daemon.fleet.nodes) < 3:
            await asyncio.sleep(0)
        await router.serving()
        pieces = [p async for p in client.generate(TEXT, max_tokens=3, slot="expert-0")]
    assert sum(len(p.ids) for p in pieces) == 3


@in_loop
async def test_a_replica_lost_after_the_first_token_is_a_resumable_error(router_world: Any) -> None:
    async with router_world.router() as router, router.client() as client:
        view = router_world.view()
        router.offer(view, 1)
        await router.attach("dies", view, dies_after=5)
        await router.serving()
        ids: list[int] = []
        with pytest.raises(NotReachable, match=r"after \d tokens") as caught:
            await collect(client.generate(TEXT, max_tokens=9, slot="expert-0"), ids)
        assert caught.value.error_id == "net.replica-lost"
        assert "as ids" in caught.value.fix
        await router.attach("works", view)
        await router.serving()
        prompt = router_world.tokenizer.encode(TEXT).ids
        rest = [i async for p in client.generate([*prompt, *ids], max_tokens=4, slot="expert-0") for i in p.ids]
    assert 0 < len(ids) <= 5  # the last ones may die with the node
    assert f"after {len(ids)} tokens" in caught.value.message
    assert len(rest) == 4
