"""The Session stream: heartbeats and serving state up; wake-ups, revocations and lists down."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import grpc
import grpc.aio

from expert_node.backoff import Backoff
from expert_node.streams import Stream
from potluck.errors import JoinError, NotReachable, PotluckError, Refused
from potluck.net.diagnose import diagnose
from potluck.net.guard import error_from_rpc
from potluck.net.identity import Identity
from potluck.telemetry import logger
from potluck.v1 import common_pb2, node_pb2, node_pb2_grpc

HEARTBEAT_MS = 1000
"""Until the welcome says otherwise."""
BYE_SECONDS = 2.0
FATAL_REFUSALS = ("refused.revoked", "refused.old-process", "refused.data-key")

log = logger("expert_node.session")

_Stream = Stream[node_pb2.SessionUp, node_pb2.SessionDown]


class Session:
    """Keeps one stream open, dialled again whenever it breaks, until `close`."""

    def __init__(
        self,
        identity: Identity,
        channel: grpc.aio.Channel,
        *,
        hello: common_pb2.Hello,
        heartbeat: Callable[[], node_pb2.Heartbeat],
        serving: Callable[[], node_pb2.ServingState],
        on_up: Callable[[], None],
        on_down: Callable[[], None],
        on_item: Callable[[node_pb2.DownItem], Awaitable[None]],
    ) -> None:
        self._identity = identity
        self._stub = node_pb2_grpc.NodeServiceStub(channel)
        self._hello = hello
        self._heartbeat = heartbeat
        self._serving = serving
        self._on_up = on_up
        self._on_down = on_down
        self._on_item = on_item
        self._heartbeat_ms = HEARTBEAT_MS
        self._owes_serving = False
        self._nudge = asyncio.Event()
        self._leaving = False
        self._up = False
        self._was_up = False

    async def run(self) -> None:
        """Runs until `close`.

        Raises:
            JoinError, Refused: the coordinator wants nothing of this node any more.
        """
        backoff = Backoff()
        while not self._leaving:
            try:
                await self._stream(backoff)
            except grpc.RpcError as rpc:
                error = error_from_rpc(rpc)
                if is_fatal(error):
                    raise error from None
                await self._say_lost(error, backoff)
            finally:
                self._set_up(False)
            if not self._leaving:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(backoff.next_seconds()):
                        await self._nudge.wait()

    def say_serving(self) -> None:
        """Sends the serving state soon, as it is when it goes; several calls before that are one."""
        if self._up:
            self._owes_serving = True
            self._nudge.set()

    def beat(self) -> None:
        """Sends a heartbeat now: something worth telling has changed."""
        if self._up:
            self._nudge.set()

    def close(self) -> None:
        """Says bye; `run` returns soon after."""
        self._leaving = True
        self._nudge.set()

    async def _stream(self, backoff: Backoff) -> None:
        stream: _Stream = Stream(self._stub.Session)
        async with stream.writing(lambda: self._write(stream)):
            while (message := await stream.read()) is not None:
                for item in message.items:
                    await self._take(item, backoff)
            if not self._leaving and backoff.failures == 0:
                log.fact("session-ended", coordinator=self._identity.control_target)

    async def _write(self, stream: _Stream) -> None:
        hello = node_pb2.SessionHello(hello=self._hello)
        await stream.write(node_pb2.SessionUp(items=[node_pb2.UpItem(hello=hello)]))
        while not self._leaving:
            self._nudge.clear()
            if self._up:
                await stream.write(node_pb2.SessionUp(items=self._due()))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._heartbeat_ms / 1000):
                    await self._nudge.wait()
        bye = node_pb2.UpItem(bye=node_pb2.Bye(reason="the node is leaving"))
        await stream.write(node_pb2.SessionUp(items=[bye]))
        await stream.done_writing()
        # The coordinator ends the stream in answer; one that does not must not hold us.
        await asyncio.sleep(BYE_SECONDS)
        stream.cancel()

    def _due(self) -> list[node_pb2.UpItem]:
        items = [node_pb2.UpItem(heartbeat=self._heartbeat())]
        if self._owes_serving:
            self._owes_serving = False
            items.append(node_pb2.UpItem(serving=self._serving()))
        return items

    async def _take(self, item: node_pb2.DownItem, backoff: Backoff) -> None:
        if item.WhichOneof("item") == "welcome":
            if item.welcome.heartbeat_ms > 0:
                self._heartbeat_ms = item.welcome.heartbeat_ms
            if backoff.failures:
                log.fact("coordinator-back", coordinator=self._identity.control_target)
            backoff.reset()
            self._set_up(True)
            self.say_serving()
        await self._on_item(item)

    def _set_up(self, up: bool) -> None:
        if up == self._up:
            return
        self._up = up
        self._was_up = self._was_up or up
        (self._on_up if up else self._on_down)()

    async def _say_lost(self, error: PotluckError, backoff: Backoff) -> None:
        """Says once why the coordinator does not answer; probing finds causes that gRPC hides."""
        if backoff.failures or self._leaving:
            return
        cause = error
        if isinstance(error, NotReachable):
            cause = await diagnose(self._identity)
            if isinstance(cause, JoinError) and not self._was_up:
                raise cause
        log.fact("coordinator-lost", error_id=cause.error_id, message=cause.message, fix=cause.fix)


def is_fatal(error: PotluckError) -> bool:
    """True when asking again can never help: revoked, expired, another version, a newer process."""
    return isinstance(error, JoinError) or (isinstance(error, Refused) and error.error_id in FATAL_REFUSALS)
