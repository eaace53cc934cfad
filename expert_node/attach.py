"""The node's dialled streams to routers: one Attach stream each carries all requests, so no inbound port is needed."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

import grpc
import grpc.aio

from expert_node.backoff import Backoff
from expert_node.frames import Message
from expert_node.serve import Serving, SlotState
from expert_node.streams import Stream
from potluck.errors import PotluckError
from potluck.net.channels import open_channel
from potluck.net.guard import error_from_rpc
from potluck.net.identity import Identity
from potluck.net.tls import ROUTER_NAME
from potluck.net.version import package_version
from potluck.telemetry import logger
from potluck.v1 import expert_pb2 as pb
from potluck.v1 import expert_pb2_grpc, node_pb2

MAX_TOKENS_PER_MESSAGE = 64
"""The writer sends what waits, up to this: one message a token costs five times the CPU (measured)."""
MAX_WAITING = 65_536
"""Answers that wait for one router; credits bound them far below, so more means that it does not read."""

log = logger("expert_node.attach")

_Stream = Stream[pb.AttachUp, pb.AttachDown]


class Attachments:
    """One attachment for each router the coordinator names."""

    def __init__(self, identity: Identity, serving: Serving) -> None:
        self._identity = identity
        self._serving = serving
        self._streams: dict[str, Attachment] = {}

    async def dial(self, addresses: Sequence[str]) -> None:
        """Replaces the list of routers."""
        gone = [self._streams.pop(address) for address in list(self._streams) if address not in addresses]
        for address in addresses:
            if address not in self._streams:
                self._streams[address] = Attachment(self._identity, address, self._serving)
        await asyncio.gather(*(stream.close() for stream in gone))

    def publish(self, states: tuple[SlotState, ...]) -> None:
        for stream in self._streams.values():
            stream.publish(states)

    async def close(self) -> None:
        await self.dial(())


class Attachment:
    """One stream to one router, dialled again whenever it breaks."""

    def __init__(self, identity: Identity, address: str, serving: Serving) -> None:
        self._identity = identity
        self._address = address
        self._serving = serving
        self._waiting: deque[pb.AttachUpItem] = deque()
        self._work = asyncio.Event()
        self._leaving = False
        self._open: _Stream | None = None
        self._task = asyncio.create_task(self._run(), name=f"attach {address}")

    def publish(self, states: tuple[SlotState, ...]) -> None:
        self._put(pb.AttachUpItem(serving=serving_message(states)))

    def answer(self, request: int, message: Message) -> None:
        """Queues one answer of the serving child."""
        match message["type"]:
            case "tokens":
                chunk = pb.TokenChunk(request=request, ids=message["ids"], finish=message["finish"])
                self._put(pb.AttachUpItem(tokens=chunk))
            case "scores":
                self._put(pb.AttachUpItem(scores=pb.ScoreChunk(request=request, log_probs=message["log_probs"])))
            case "instantiated":
                made = pb.Instantiated(
                    request=request,
                    digest=message["digest"],
                    cached=message["cached"],
                    build_ms=message["build_ms"],
                    coefficients=message["coefficients"],
                )
                self._put(pb.AttachUpItem(instantiated=made))
            case "failed":
                failed = pb.WorkFailed(request=request, error_id=message["error_id"], message=message["message"])
                self._put(pb.AttachUpItem(failed=failed))

    async def close(self) -> None:
        """Says bye and ends."""
        self._leaving = True
        self._work.set()
        done, _ = await asyncio.wait([self._task], timeout=1.0)
        if not done:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        backoff = Backoff()
        channel = open_channel(self._identity, target=self._address, server_name=ROUTER_NAME)
        try:
            while not self._leaving:
                try:
                    await self._stream(channel, backoff)
                except grpc.RpcError as error:
                    self._say_lost(error_from_rpc(error), backoff)
                except Exception as error:  # The daemon's loop: whatever it was, dial again.
                    log.failure("attach-failed", error, router=self._address)
                finally:
                    self._open = None
                    self._serving.forget_asker(self)
                    self._waiting.clear()
                if not self._leaving:
                    await backoff.pause()
        finally:
            await channel.close(None)

    def _say_lost(self, error: PotluckError, backoff: Backoff) -> None:
        if backoff.failures == 0:
            log.fact("router-lost", router=self._address, error_id=error.error_id, message=error.message)

    async def _stream(self, channel: grpc.aio.Channel, backoff: Backoff) -> None:
        stream: _Stream = Stream(expert_pb2_grpc.ExpertServiceStub(channel).Attach)
        hello = pb.AttachHello(node_id=self._identity.node_id, version=package_version())
        first = [pb.AttachUpItem(hello=hello), pb.AttachUpItem(serving=serving_message(self._serving.states))]
        self._open = stream
        async with stream.writing(lambda: self._write(stream, first)):
            while (message := await stream.read()) is not None:
                if backoff.failures:
                    backoff.reset()
                    log.fact("router-back", router=self._address)
                for item in message.items:
                    if self._take(item):
                        return

    async def _write(self, stream: _Stream, first: list[pb.AttachUpItem]) -> None:
        await stream.write(pb.AttachUp(items=first))
        while True:
            await self._work.wait()
            self._work.clear()
            while self._waiting:
                await stream.write(pb.AttachUp(items=take_batch(self._waiting)))
            if self._leaving:
                bye = pb.AttachUpItem(bye=node_pb2.Bye(reason="the node is leaving"))
                await stream.write(pb.AttachUp(items=[bye]))
                await stream.done_writing()
                return

    def _take(self, item: pb.AttachDownItem) -> bool:
        """Does what the router asks; says whether it said bye."""
        match item.WhichOneof("item"):
            case "generate":
                work = item.generate
                names = ("weights", "max_tokens", "temperature", "top_k", "top_p", "seed", "credit")
                command = {name: getattr(work, name) for name in names}
                command |= {"type": "generate", "ids": list(work.ids), "mixture": _mixture(work)}
                self._serving.ask(self, work.request, command)
            case "score":
                score = item.score
                command = {"type": "score", "ids": list(score.ids), "weights": score.weights}
                self._serving.ask(self, score.request, {**command, "mixture": _mixture(score)})
            case "instantiate":
                wanted = item.instantiate
                command = {"type": "instantiate", "weights": wanted.weights, "mixture": _mixture(wanted)}
                self._serving.ask(self, wanted.request, command)
            case "credit":
                self._serving.credit(self, item.credit.request, item.credit.tokens)
            case "cancel":
                self._serving.cancel(self, item.cancel.request)
            case "bye":
                log.fact("router-leaves", router=self._address, reason=item.bye.reason)
                return True
            case _:
                pass  # An item of a later version.
        return False

    def _put(self, item: pb.AttachUpItem) -> None:
        if len(self._waiting) >= MAX_WAITING and self._open is not None:
            log.fact("router-does-not-read", router=self._address, waiting=len(self._waiting))
            self._open.cancel()  # Its requests are forgotten with the stream; it is dialled again.
            return
        self._waiting.append(item)
        self._work.set()


def _mixture(work: pb.GenerateWork | pb.ScoreWork | pb.InstantiateWork) -> list[list[float]]:
    return [[share.domain, share.weight] for share in work.mixture]


def take_batch(waiting: deque[pb.AttachUpItem]) -> list[pb.AttachUpItem]:
    """What waits, in order, chunks of one request joined, at most 64 tokens or items, scores alone."""
    batch: list[pb.AttachUpItem] = []
    tokens = 0
    while waiting and tokens < MAX_TOKENS_PER_MESSAGE and len(batch) < MAX_TOKENS_PER_MESSAGE:
        if waiting[0].WhichOneof("item") == "scores" and batch:
            break  # Large: in a message of its own.
        item = waiting.popleft()
        tokens += len(item.tokens.ids)
        last = batch[-1] if batch else None
        if last is not None and _continues(last, item):
            last.tokens.ids.extend(item.tokens.ids)
            last.tokens.finish = item.tokens.finish
        else:
            batch.append(item)
        if item.WhichOneof("item") == "scores":
            break
    return batch


def _continues(last: pb.AttachUpItem, item: pb.AttachUpItem) -> bool:
    both = last.WhichOneof("item") == item.WhichOneof("item") == "tokens"
    return both and last.tokens.request == item.tokens.request


def serving_message(states: tuple[SlotState, ...]) -> node_pb2.ServingState:
    return node_pb2.ServingState(
        slots=[
            node_pb2.ServingSlot(
                run=s.slot.run, slot=s.slot.slot, weights=s.slot.weights, state=s.state, reason=s.reason[:500]
            )
            for s in states
        ]
    )
