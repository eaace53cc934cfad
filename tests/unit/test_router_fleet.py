"""Replicas, credits and what waits for a node, without any wire."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from typing import Any

import pytest

from potluck.errors import NotReachable, PotluckError, ResourceError, UsageError
from potluck.ids import Digest, RunId
from router.fleet import (
    CREDIT_TOKENS,
    MAX_REQUESTS_PER_REPLICA,
    Attachment,
    Cancel,
    Down,
    Failed,
    Fleet,
    GiveCredit,
    ReplicaLost,
    Sampling,
    SayBye,
    Scores,
    StartGenerate,
    StartScore,
    Tokens,
)
from router.view import ReplicaKey

KEY = ReplicaKey(run=RunId("run"), slot="expert-0", weights=Digest("a" * 64))
SAMPLING = Sampling(max_tokens=200)


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 20))


def fleet_of(*nodes: str, on_change: Callable[[], None] = lambda: None) -> tuple[Fleet, list[Attachment]]:
    fleet = Fleet(on_change)
    attachments = [fleet.attach(node) for node in nodes]
    for attachment in attachments:
        fleet.set_ready(attachment, {KEY}, {})
    return fleet, attachments


async def sent(attachment: Attachment) -> list[Down]:
    return await anext(attachment.outbox.batches(64))


async def collect(fleet: Fleet, got: list[int], sampling: Sampling = SAMPLING) -> None:
    async with aclosing(fleet.generate(KEY, (1,), sampling)) as pieces:
        async for piece in pieces:
            got += piece.ids


async def begun(attachment: Attachment) -> int:
    (work,) = await sent(attachment)
    assert isinstance(work, StartGenerate | StartScore)
    return work.request


def test_credit_comes_back_only_for_what_the_consumer_has_taken() -> None:
    async def test() -> None:
        fleet, (node,) = fleet_of("n")
        pieces = fleet.generate(KEY, (1,), SAMPLING)
        first = asyncio.ensure_future(anext(pieces))
        request = await begun(node)
        for i in range(CREDIT_TOKENS):
            node.receive(request, Tokens(ids=(i,), finish=""))
        await first
        for _ in range(CREDIT_TOKENS // 2 - 1):
            await anext(pieces)
        assert node.outbox._take(64) == []  # the last one is not written yet
        await anext(pieces)
        assert await sent(node) == [GiveCredit(request=request, tokens=CREDIT_TOKENS // 2)]
        await pieces.aclose()
        assert await sent(node) == [Cancel(request=request)]

    run(test())


def test_a_consumer_that_never_reads_holds_up_no_other() -> None:
    async def test() -> None:
        fleet, (node,) = fleet_of("n")
        slow = fleet.generate(KEY, (1,), SAMPLING)
        first = asyncio.ensure_future(anext(slow))
        slow_request = await begun(node)
        for i in range(CREDIT_TOKENS):
            node.receive(slow_request, Tokens(ids=(i,), finish=""))
        await first
        got: list[int] = []
        fast = asyncio.create_task(collect(fleet, got))
        fast_request = await begun(node)
        for i in range(5):
            node.receive(fast_request, Tokens(ids=(i,), finish="length" if i == 4 else ""))
        await fast
        assert got == [0, 1, 2, 3, 4]
        await slow.aclose()

    run(test())


def test_a_node_that_sends_beyond_its_credit_is_cut_off() -> None:
    async def test() -> None:
        fleet, (node,) = fleet_of("n")
        got: list[int] = []
        task = asyncio.create_task(collect(fleet, got))
        request = await begun(node)
        node.receive(request, Tokens(ids=tuple(range(CREDIT_TOKENS + 1)), finish=""))
        with pytest.raises(NotReachable, match="more than it may"):
            await task
        assert await sent(node) == [Cancel(request=request)]

    run(test())


def test_a_node_that_sends_more_tokens_than_asked_is_cut_off() -> None:
    async def test() -> None:
        fleet, (node,) = fleet_of("n")
        task = asyncio.create_task(collect(fleet, [], Sampling(max_tokens=1)))
        node.receive(await begun(node), Tokens(ids=(1, 2), finish="length"))
        with pytest.raises(NotReachable, match="no such tokens"):
            await task

    run(test())


def test_a_lost_replica_before_the_first_token_hands_over_and_after_it_ends_the_request() -> None:
    async def test() -> None:
        fleet, nodes = fleet_of("a", "b")
        got: list[int] = []
        task = asyncio.create_task(collect(fleet, got))
        await begun(nodes[0])
        fleet.detach(nodes[0], "killed")
        request = await begun(nodes[1])
        nodes[1].receive(request, Tokens(ids=(7, 8), finish=""))
        fleet.detach(nodes[1], "killed")
        with pytest.raises(ReplicaLost, match="after 2 tokens") as caught:
            await task
        assert (got, caught.value.error_id, caught.value.grpc_status) == ([7, 8], "net.replica-lost", "ABORTED")

    run(test())


def test_a_mistake_of_the_user_is_not_tried_elsewhere() -> None:
    async def test() -> None:
        fleet, nodes = fleet_of("a", "b")
        task = asyncio.create_task(collect(fleet, []))
        error: PotluckError = UsageError("usage.bad-sampling", "no")
        nodes[0].receive(await begun(nodes[0]), Failed(error=error))
        with pytest.raises(UsageError):
            await task
        assert not nodes[1].jobs

    run(test())


def test_scores_in_pieces_are_joined_and_a_wrong_number_is_refused() -> None:
    async def test() -> None:
        fleet, (node,) = fleet_of("n")
        task = asyncio.create_task(fleet.score(KEY, (1, 2, 3, 4)))
        request = await begun(node)
        node.receive(request, Scores(log_probs=(-1.0,)))
        node.receive(request, Scores(log_probs=(-2.0, -3.0)))
        assert await task == (-1.0, -2.0, -3.0)
        task = asyncio.create_task(fleet.score(KEY, (1, 2)))
        node.receive(await begun(node), Scores(log_probs=(-1.0, -2.0)))
        with pytest.raises(NotReachable, match="no such scores"):
            await task

    run(test())


def test_the_least_loaded_replica_is_asked_and_full_ones_are_not() -> None:
    async def test() -> None:
        fleet, nodes = fleet_of("a", "b")
        tasks = [asyncio.create_task(collect(fleet, [])) for _ in range(2 * MAX_REQUESTS_PER_REPLICA)]
        await asyncio.sleep(0)
        assert [len(node.jobs) for node in nodes] == [MAX_REQUESTS_PER_REPLICA] * 2
        with pytest.raises(ResourceError) as caught:
            await collect(fleet, [])
        assert caught.value.error_id == "resource.busy"
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # They were never sent, so there is nothing to cancel at the nodes.
        assert [node.outbox._take(64) for node in nodes] == [[], []]

    run(test())


def test_a_second_stream_of_a_node_replaces_the_first() -> None:
    async def test() -> None:
        changes: list[int] = []
        fleet, (old,) = fleet_of("n", on_change=lambda: changes.append(1))
        new = fleet.attach("n")
        assert fleet.ready == frozenset()
        fleet.set_ready(new, {KEY}, {})
        fleet.detach(old, "late")
        assert fleet.ready == {KEY}
        assert len(changes) == 3

    run(test())


def test_a_bye_goes_last_and_ends_the_batches() -> None:
    async def test() -> None:
        fleet, (node,) = fleet_of("n")
        task = asyncio.create_task(collect(fleet, []))
        await asyncio.sleep(0)
        fleet.close("leaving")
        (batch,) = [batch async for batch in node.outbox.batches(64)]
        assert isinstance(batch[0], StartGenerate)
        assert batch[1:] == [SayBye(reason="leaving")]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run(test())
