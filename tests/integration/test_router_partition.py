"""A router that places text by a partition."""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest
from grpc_health.v1 import health_pb2

from potluck.errors import NotReachable
from potluck.ids import Digest
from tests.integration.topic_partition import text_about
from tests.reference.topics import TOPICS


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), 60))

    return run


@in_loop
async def test_text_goes_to_the_expert_of_the_domain_that_its_prefix_lies_in(router_world: Any) -> None:
    view = router_world.clustered_view()
    domains, domain_of = router_world.partition.partition.domains, router_world.partition.domain_of
    async with router_world.router() as router, router.client() as client:
        router.offer(view, 1)
        await router.attach("n", view)
        await router.serving()
        routed = {topic: await client.route(text_about(topic)) for topic in TOPICS}
        scored = await client.score(text_about("stars"))
        blank = await client.route(" \n ")
        (token,) = {(await client.route([5])).prefix_tokens}
    assert {topic: domains[r.expert] for topic, r in routed.items()} == {topic: domain_of(topic) for topic in TOPICS}
    assert {r.prefix_nll for r in routed.values()} == {()}
    assert scored.weights == view.slots[f"expert-{domains.index(domain_of('stars'))}"] == routed["stars"].weights
    assert (blank.expert, token) == (0, 1)


@in_loop
async def test_only_the_prefix_decides(router_world: Any) -> None:
    view = router_world.clustered_view()
    async with router_world.router() as router, router.client() as client:
        router.offer(view, 1)
        await router.attach("n", view)
        await router.serving()
        birds = await client.route(text_about("birds"))
        both = await client.route(text_about("birds") + " " + text_about("bread", words=400))
    assert both.expert == birds.expert


@in_loop
async def test_what_the_partition_lists_is_kept_and_serves_the_next_start_without_coordinator(
    router_world: Any,
) -> None:
    view = router_world.clustered_view()
    text = text_about("ships")
    async with router_world.router() as router, router.client() as client:
        router.offer(view, 1)
        await router.attach("n", view)
        await router.serving()
        before = await client.route(text)
    kept = {digest for digest, _ in router_world.store.blobs()}
    assert kept == {view.tokenizer, *router_world.partition.listed}
    async with router_world.router() as router, router.client() as client:
        assert await client.route(text) == before


@in_loop
async def test_a_new_version_keeps_the_partition_that_is_in_memory(router_world: Any) -> None:
    view = router_world.clustered_view()
    text = text_about("ships")
    async with router_world.router() as router, router.client() as client:
        router.offer(view, 1)
        await router.attach("n", view)
        await router.serving()
        before = await client.route(text)
        for digest in [digest for digest, _ in router_world.store.blobs()]:
            router_world.store.delete(digest)
        router.offer(view, 2)
        while (after := await client.route(text)).view_version == 1:
            await asyncio.sleep(0)
    assert replace(after, view_version=1) == before


@in_loop
async def test_without_the_extra_the_cause_names_it(router_world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    view = router_world.clustered_view()
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.setitem(sys.modules, "sklearn.feature_extraction.text", None)
    async with router_world.router() as router, router.client() as client:
        router.offer(view, 1)
        while "loading failed" not in router.daemon.loader.why_empty:
            await asyncio.sleep(0)
        with pytest.raises(NotReachable, match=r"pip install 'potluck\[cluster\]'") as caught:
            await client.route("text")
    assert caught.value.error_id == "net.no-view"


@in_loop
async def test_a_partition_of_other_than_one_domain_an_expert_is_not_served(router_world: Any) -> None:
    view = router_world.clustered_view()
    more = replace(view, experts=5, slots={**view.slots, "expert-4": Digest("4" * 64)})
    async with router_world.router() as router, router.client() as client:
        router.offer(more, 1)
        while "loading failed" not in router.daemon.loader.why_empty:
            await asyncio.sleep(0)
        with pytest.raises(NotReachable, match="4 domains for 5 experts"):
            await client.route("text")
        await router.health(health_pb2.HealthCheckResponse.NOT_SERVING)
