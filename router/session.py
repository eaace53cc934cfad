"""The router's Session with the coordinator: says where it can be dialled, takes views. Dials again for ever."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc
import grpc.aio

from potluck import telemetry
from potluck.errors import JoinError, NotReachable, PotluckError
from potluck.ids import RunId
from potluck.net.diagnose import diagnose
from potluck.net.guard import error_from_rpc
from potluck.net.identity import Identity
from potluck.v1 import common_pb2, node_pb2, node_pb2_grpc
from router.loader import Offer
from router.traffic import DomainCounts

HEARTBEAT_S = 1.0
FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 5.0
BYE_S = 2.0
"""How long the coordinator may take to end the stream after our bye."""

log = telemetry.logger(__name__)


class CoordinatorLink:
    """One stream, dialled again whenever it breaks. The router serves on meanwhile, whatever the coordinator says."""

    def __init__(
        self,
        identity: Identity,
        channel: grpc.aio.Channel,
        *,
        hello: common_pb2.Hello,
        address: str,
        on_view: Callable[[Offer], None],
        counts: DomainCounts | None = None,
    ) -> None:
        """
        Args:
            address: host:port that nodes and clients can dial.
            on_view: takes each view; must not block.
            counts: what to tell of requests; None: nothing.
        """
        self._identity = identity
        self._stub: Any = node_pb2_grpc.NodeServiceStub(channel)
        self._hello = node_pb2.SessionHello(hello=hello, router_address=address)
        self._on_view = on_view
        self._counts = counts
        self._leaving = asyncio.Event()
        self._lost = False
        self._welcomed = False
        self._first_outcome = asyncio.Event()
        self._last_error = ""
        self._pause_s = FIRST_PAUSE_S

    @property
    def why_down(self) -> str:
        """Why there is no session with the coordinator; empty while there is one."""
        if self._welcomed:
            return ""
        detail = f" ({self._last_error})" if self._last_error else ""
        return f"it has no session with the coordinator at {self._identity.control_target}{detail}"

    async def tried(self) -> None:
        """Returns once the coordinator has said welcome, or the first dial has failed."""
        await self._first_outcome.wait()

    def close(self) -> None:
        """Says bye; `run` returns soon after."""
        self._leaving.set()

    async def run(self) -> None:
        """Keeps the session until `close`. A lost or refusing coordinator is logged once, then tried on."""
        while not self._leaving.is_set():
            try:
                await self._stream()
            except grpc.RpcError as error:
                self._first_outcome.set()
                await self._say_lost(error_from_rpc(error))
            if not await self._left_within(self._pause_s):
                self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)

    async def _stream(self) -> None:
        call = self._stub.Session(self._up())
        ending = asyncio.create_task(self._cancel_late(call))
        try:
            async for message in call:
                for item in message.items:
                    self._take(item)
        except asyncio.CancelledError:
            if not self._leaving.is_set():
                raise
        finally:
            self._welcomed = False
            ending.cancel()
            call.cancel()

    async def _up(self) -> AsyncIterator[node_pb2.SessionUp]:
        yield node_pb2.SessionUp(items=[node_pb2.UpItem(hello=self._hello)])
        while not await self._left_within(HEARTBEAT_S):
            beat = node_pb2.Heartbeat(activity="routing")
            yield node_pb2.SessionUp(items=[node_pb2.UpItem(heartbeat=beat)])
            for message in self._traffic(asyncio.get_running_loop().time()):
                yield message
        for message in self._traffic(math.inf):
            yield message
        bye = node_pb2.Bye(reason="the router is leaving")
        yield node_pb2.SessionUp(items=[node_pb2.UpItem(bye=bye)])

    def _traffic(self, now_s: float) -> Iterator[node_pb2.SessionUp]:
        """Counts that wait. One that a breaking stream did not take is the first of the next stream."""
        if self._counts is None or not self._welcomed:
            return
        for counted in self._counts.sending(now_s):
            traffic = node_pb2.Traffic(run=counted.run, requests=counted.requests)
            yield node_pb2.SessionUp(items=[node_pb2.UpItem(traffic=traffic)])

    def _take(self, item: node_pb2.DownItem) -> None:
        match item.WhichOneof("item"):
            case "welcome":
                self._pause_s = FIRST_PAUSE_S
                self._welcomed, self._last_error = True, ""
                self._first_outcome.set()
                if self._lost:
                    log.fact("coordinator-back", coordinator=self._identity.control_target)
                self._lost = False
            case "view":
                view = item.view
                self._on_view(Offer(run=RunId(view.run), version=view.version, view_json=view.view_json))
            case _:
                pass  # meant for nodes, or of a later version

    async def _cancel_late(self, call: Any) -> None:
        await self._leaving.wait()
        await asyncio.sleep(BYE_S)
        call.cancel()

    async def _left_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._leaving.wait()
        return self._leaving.is_set()

    async def _say_lost(self, error: PotluckError) -> None:
        """Says once why the coordinator does not answer; probing finds causes that gRPC hides."""
        if self._lost or self._leaving.is_set():
            return
        self._lost = True
        if isinstance(error, NotReachable) and not isinstance(error, JoinError):
            error = await diagnose(self._identity)
        self._last_error = error.message
        log.fact("coordinator-lost", error_id=error.error_id, message=error.message, fix=error.fix)
