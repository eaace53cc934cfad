"""Session streams: what waits goes together, who does not read loses the stream and not the news."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from coordinator.core.effects import SendView, Wake
from coordinator.sessions import MAX_QUEUED, Context, Sessions, Stream
from potluck.ids import NodeId, RunId
from potluck.v1 import node_pb2

NODE = NodeId("n1")


class Pipe:
    """Takes what is written, when it is let through: a client at the other end."""

    def __init__(self) -> None:
        self.messages: list[node_pb2.SessionDown] = []
        self.reading = asyncio.Event()
        self.reading.set()

    async def write(self, message: node_pb2.SessionDown) -> None:
        await self.reading.wait()
        self.messages.append(message)

    def kinds(self) -> list[list[str | None]]:
        return [[item.WhichOneof("item") for item in message.items] for message in self.messages]


def writing(stream: Stream, pipe: Pipe) -> asyncio.Task[None]:
    return asyncio.create_task(stream.write_to(cast(Context, pipe)))


async def turns(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def in_loop(scenario: Any) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_a_stream_that_is_broken_off_leaves_nothing_waiting() -> None:
    async def scenario() -> None:
        before = asyncio.all_tasks()
        task = writing(Sessions().open(NODE), Pipe())
        await turns()
        task.cancel()
        await turns()
        assert asyncio.all_tasks() == before

    in_loop(scenario)


def test_what_waits_is_sent_together_and_in_order() -> None:
    async def scenario() -> None:
        sessions, pipe = Sessions(), Pipe()
        stream = sessions.open(NODE)
        for _ in range(3):
            sessions.deliver(Wake(node=NODE))
        task = writing(stream, pipe)
        await turns()
        sessions.deliver(Wake(node=NODE))
        await turns()
        stream.end("enough")
        await task
        assert pipe.kinds() == [["wake"] * 3, ["wake"], ["bye"]]

    in_loop(scenario)


def test_a_node_that_does_not_read_is_told_to_come_again() -> None:
    async def scenario() -> None:
        sessions, pipe = Sessions(), Pipe()
        stream = sessions.open(NODE)
        pipe.reading.clear()
        task = writing(stream, pipe)
        for _ in range(MAX_QUEUED + 10):
            sessions.deliver(Wake(node=NODE))
        pipe.reading.set()
        await task
        assert pipe.messages[-1].items[-1].bye.reason.startswith("too slow")

    in_loop(scenario)


def test_large_news_do_not_share_a_message() -> None:
    async def scenario() -> None:
        sessions, pipe = Sessions(), Pipe()
        stream = sessions.open(NODE)
        for version in range(4):
            view = SendView(node=NODE, run=RunId("r"), version=version, view_json="x" * 200_000)
            sessions.deliver(view)
        task = writing(stream, pipe)
        await turns(20)
        stream.end("enough")
        await task
        assert all(message.ByteSize() < 1 << 19 for message in pipe.messages)
        assert [item.view.version for message in pipe.messages[:-1] for item in message.items] == [0, 1, 2, 3]

    in_loop(scenario)


def test_news_for_a_node_without_a_session_go_nowhere() -> None:
    async def scenario() -> None:
        sessions = Sessions()
        sessions.deliver(Wake(node=NODE))
        assert len(sessions) == 0

    in_loop(scenario)


def test_the_end_of_an_older_stream_does_not_close_the_newer() -> None:
    async def scenario() -> None:
        sessions = Sessions()
        older, newer = sessions.open(NODE), sessions.open(NODE)
        sessions.close(older)
        assert len(sessions) == 1
        sessions.close(newer)
        assert len(sessions) == 0

    in_loop(scenario)
