"""Requests counted by domain on their way to a coordinator's twin, over mutual TLS."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from potluck.ids import Digest, RunId
from potluck.net.channels import bind, new_server, server_credentials
from potluck.net.guard import Guard
from potluck.v1 import node_pb2, node_pb2_grpc
from router.traffic import Noise
from router.view import View
from sampling.partition import Partition
from tests.integration.topic_partition import text_about

LOOPBACK = "127.0.0.1"
COUNTING: dict[str, Any] = {"count_domains": True}


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), 60))

    return run


class CoordinatorTwin(node_pb2_grpc.NodeServiceServicer):
    """Welcomes a router and adds up what it counts."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self.messages = 0
        self.port = 0
        self._changed = asyncio.Condition()
        self._said_bye = False

    async def Session(self, request_iterator: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        await anext(aiter(request_iterator))
        welcome = node_pb2.Welcome(node_id="r", heartbeat_ms=1000)
        yield node_pb2.SessionDown(items=[node_pb2.DownItem(welcome=welcome)])
        async for message in request_iterator:
            async with self._changed:
                for item in message.items:
                    self._take(item)
                self._changed.notify_all()

    def _take(self, item: node_pb2.UpItem) -> None:
        if item.HasField("traffic"):
            self.messages += 1
            self.counts.update({(item.traffic.run, name): n for name, n in item.traffic.requests.items()})
        self._said_bye = self._said_bye or item.HasField("bye")

    async def told(self, wanted: Counter[tuple[str, str]]) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self.counts.total() >= wanted.total())
        assert self.counts == wanted

    async def said_bye(self) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._said_bye)


@asynccontextmanager
async def listening(twin: CoordinatorTwin, world: Any) -> AsyncIterator[int]:
    """Its port; the same one when it listens again."""
    server = new_server([Guard()])
    node_pb2_grpc.add_NodeServiceServicer_to_server(twin, server)
    credentials = server_credentials(world.authority.issue_server(), client_ca_pem=world.authority.ca_pem)
    twin.port = bind(server, LOOPBACK, twin.port, credentials)
    await server.start()
    try:
        yield twin.port
    finally:
        await server.stop(None)


def of(world: Any, run: RunId, **topics: int) -> Counter[tuple[str, str]]:
    return Counter({(run, world.partition.domain_of(topic)): n for topic, n in topics.items()})


@in_loop
async def test_every_kind_of_request_is_counted_by_the_domain_of_its_text(router_world: Any) -> None:
    twin, view = CoordinatorTwin(), router_world.clustered_view()
    one = replace(router_world.one_view(), partition=router_world.partition.digest)
    by_routers = replace(router_world.view(), run=RunId("d" * 64), name="r", partition=router_world.partition.digest)
    async with listening(twin, router_world) as port, router_world.router(control_port=port, **COUNTING) as router:
        for each in (view, one, by_routers):
            router.offer(each, 1)
        await router.attach("n", view, one, by_routers)
        await router.serving()
        async with router.client() as client:
            for name in ("topics", "fox", "r"):
                while name not in {held.view.name for held in router.daemon.book.current}:
                    await asyncio.sleep(0)
            await client.route(text_about("birds"), run="topics")
            await client.score(text_about("ships"), run="topics", slot="expert-0")
            ids = router_world.tokenizer.encode(text_about("stars")).ids
            async for _ in client.generate(ids, run="topics", max_tokens=3):
                pass
            await client.score(text_about("bread"), run=one.run)
            await client.route(text_about("birds"), run="r")
            await client.route("   ", run="topics")
        expected = of(router_world, view.run, birds=1, ships=1, stars=1)
        expected += of(router_world, one.run, bread=1) + of(router_world, by_routers.run, birds=1)
        await twin.told(expected)


@in_loop
async def test_nothing_is_counted_unless_it_is_asked_for(router_world: Any) -> None:
    await ask_each(router_world, (router_world.clustered_view(),), {})


@in_loop
async def test_nothing_is_counted_of_runs_without_a_partition_by_clusters(router_world: Any) -> None:
    sources = Partition(tokenizer=Digest("0" * 64), sequence_length=16, domains=("a",), sizes=(1,), centroids=None)
    plain, by_source = router_world.view(), router_world.store.put_bytes(sources.to_json().encode())
    by_source_view = replace(router_world.one_view(), run=RunId("b" * 64), name="sources", partition=by_source)
    await ask_each(router_world, (plain, by_source_view), COUNTING)


async def ask_each(world: Any, views: tuple[View, ...], options: dict[str, Any]) -> None:
    """Asks a router about each view, lets it leave, and finds that it has told of nothing."""
    twin = CoordinatorTwin()
    async with listening(twin, world) as port:
        async with world.router(control_port=port, **options) as router, router.client() as client:
            for view in views:
                router.offer(view, 1)
            await router.attach("n", *views)
            while not {view.run for view in views} <= {held.view.run for held in router.daemon.book.current}:
                await asyncio.sleep(0)
            for view in views:
                await client.score(text_about("birds"), run=view.run)
            await router.daemon.introduced()
        await twin.said_bye()
    assert twin.messages == 0


@in_loop
async def test_counts_outlive_a_lost_coordinator_and_a_router_tells_its_last_ones_when_it_leaves(
    router_world: Any,
) -> None:
    twin, view = CoordinatorTwin(), router_world.clustered_view()
    async with listening(twin, router_world) as port:
        pass  # Its port is known, and nobody is there.
    async with router_world.router(control_port=port, **COUNTING) as router, router.client() as client:
        router.offer(view, 1)
        await router.attach("n", view)
        await router.serving()
        await client.route(text_about("birds"))
        async with listening(twin, router_world):
            await twin.told(of(router_world, view.run, birds=1))
        await client.route(text_about("birds"))
        await client.route(text_about("stars"))
        async with listening(twin, router_world):
            await twin.told(of(router_world, view.run, birds=2, stars=1))
    twin = CoordinatorTwin()
    async with listening(twin, router_world) as port:
        how = {**COUNTING, "noise": Noise(epsilon=1e6, seed=lambda: 0)}
        async with router_world.router(control_port=port, **how) as router, router.client() as client:
            await client.route(text_about("bread"))  # the partition comes back from disk, too
            while not router.daemon._counts._tallies:
                await asyncio.sleep(0)
            await router.daemon.introduced()
        await twin.said_bye()
    assert twin.counts == of(router_world, view.run, bread=1)


@in_loop
async def test_no_answer_waits_for_its_request_to_be_placed(router_world: Any) -> None:
    twin, view = CoordinatorTwin(), router_world.clustered_view()
    async with listening(twin, router_world) as port, router_world.router(control_port=port, **COUNTING) as router:
        router.offer(view, 1)
        await router.attach("n", view)
        await router.serving()
        may_go_on = threading.Event()
        router.daemon._counting_executor.submit(may_go_on.wait)
        try:
            async with router.client() as client:
                pieces = [p async for p in client.generate(text_about("ships"), max_tokens=3)]
                scored = await client.score(text_about("ships"))
            assert pieces[-1].finish
            assert scored.log_probs
            assert not twin.counts
        finally:
            may_go_on.set()
        await twin.told(of(router_world, view.run, ships=2))
