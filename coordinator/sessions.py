"""The open session streams: one a node, each with a bounded queue of what is to be sent down.

All that is sent can be derived from the state and is sent anew when a session opens; so a node that
does not read loses its stream, not its news.
"""

from __future__ import annotations

import asyncio

import grpc.aio

from coordinator.core.effects import Push
from coordinator.wire import down_item
from potluck.ids import NodeId
from potluck.telemetry import logger
from potluck.v1 import node_pb2

MAX_QUEUED = 256
"""Items a node may be behind before its stream is ended."""
MAX_MESSAGE_BYTES = 256 << 10
"""Of items sent together; far below the 1 MiB that a message may have."""

log = logger("coordinator.sessions")
Context = grpc.aio.ServicerContext[node_pb2.SessionUp, node_pb2.SessionDown]


class Stream:
    """What is to be sent to one node on one stream."""

    def __init__(self, node: NodeId) -> None:
        self.node = node
        self._queue: asyncio.Queue[node_pb2.DownItem] = asyncio.Queue(MAX_QUEUED)
        self._ending: node_pb2.Bye | None = None
        self._ended = asyncio.Event()

    def send(self, item: node_pb2.DownItem) -> None:
        if self._ending is not None:
            return
        try:
            self._queue.put_nowait(item)
        except asyncio.QueueFull:
            log.fact("session-too-slow", node=self.node, queued=MAX_QUEUED)
            self.end("too slow: open the session again")

    def end(self, reason: str) -> None:
        """Says bye after what is being sent now; what still waits is dropped."""
        if self._ending is None:
            self._ending = node_pb2.Bye(reason=reason)
            self._ended.set()

    async def write_to(self, context: Context) -> None:
        """Sends what comes, what waits together in one message, until `end`."""
        ended = asyncio.ensure_future(self._ended.wait())
        waiting: asyncio.Future[node_pb2.DownItem] | None = None
        try:
            while self._ending is None:
                waiting = asyncio.ensure_future(self._queue.get())
                await asyncio.wait((waiting, ended), return_when=asyncio.FIRST_COMPLETED)
                if not waiting.done():
                    break
                await context.write(self._gather(waiting.result()))
            await context.write(node_pb2.SessionDown(items=[node_pb2.DownItem(bye=self._ending)]))
        finally:
            ended.cancel()
            if waiting is not None:
                waiting.cancel()

    def _gather(self, first: node_pb2.DownItem) -> node_pb2.SessionDown:
        items, size = [first], first.ByteSize()
        while size < MAX_MESSAGE_BYTES and not self._queue.empty():
            items.append(self._queue.get_nowait())
            size += items[-1].ByteSize()
        return node_pb2.SessionDown(items=items)


class Sessions:
    def __init__(self) -> None:
        self._streams: dict[NodeId, Stream] = {}

    def open(self, node: NodeId) -> Stream:
        """A new stream takes the place of the node's older one, which is told so."""
        older = self._streams.get(node)
        if older is not None:
            older.end("a newer session of this node was opened")
        stream = self._streams[node] = Stream(node)
        return stream

    def close(self, stream: Stream) -> None:
        if self._streams.get(stream.node) is stream:
            del self._streams[stream.node]

    def deliver(self, push: Push) -> None:
        """Queues a push for its node; without a session it goes nowhere, and follows from the state later."""
        stream = self._streams.get(push.node)
        if stream is not None:
            stream.send(down_item(push))

    def end_all(self, reason: str) -> None:
        for stream in self._streams.values():
            stream.end(reason)

    def __len__(self) -> int:
        return len(self._streams)
