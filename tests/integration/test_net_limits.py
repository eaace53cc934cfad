"""Limits of every server, met by peers that go beyond them: refused with a stable id, and others served meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import zmq
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from potluck.errors import PotluckError, ResourceError
from potluck.ids import NodeId, digest_bytes
from potluck.net import channels, guard
from potluck.net.blobs import wire
from potluck.net.blobs.client import BlobClient
from potluck.net.blobs.curve import new_curve_keys
from potluck.net.blobs.server import RECEIVE_QUEUE, SEND_QUEUE, BlobServer
from potluck.net.blobs.store import BlobStore
from potluck.net.blobs.window import LARGE_CHUNK
from potluck.net.channels import MAX_MESSAGE_BYTES
from potluck.net.guard import ANYONE, DEFAULT_ACCESS, DOOR_ACCESS, EVERY_ROLE, MAX_CALLS, Guard, rpc_errors
from potluck.net.identity import Identity
from potluck.net.tls import INSECURE_AGENT
from potluck.v1 import node_pb2, node_pb2_grpc

LOOPBACK = "127.0.0.1"


class Node(node_pb2_grpc.NodeServiceServicer):
    """Answers as large as the fence says; a session goes on until its caller leaves."""

    def __init__(self) -> None:
        self.error: PotluckError | None = None

    async def RenewLease(self, request: node_pb2.RenewLeaseRequest, context: Any) -> node_pb2.RenewLeaseResponse:
        if self.error is not None:
            raise self.error
        return node_pb2.RenewLeaseResponse(reason="x" * request.fence)

    async def Session(self, requests: AsyncIterator[node_pb2.SessionUp], context: Any) -> AsyncIterator[Any]:
        async for _ in requests:
            yield node_pb2.SessionDown()


@contextlib.asynccontextmanager
async def serving(node: Node, **options: Any) -> AsyncIterator[int]:
    server = channels.new_server([Guard(**options)])
    node_pb2_grpc.add_NodeServiceServicer_to_server(node, server)
    healthy = health.aio.HealthServicer()  # type: ignore[attr-defined]
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    reflection.enable_server_reflection(("potluck.v1.NodeService", reflection.SERVICE_NAME), server)
    port = channels.bind(server, LOOPBACK, 0, None)
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


def named(port: int, node: str = "n1", role: str = "node", **limits: int) -> grpc.aio.Channel:
    """A peer's channel with the peer's own idea of limits: none."""
    agent = f"{INSECURE_AGENT}{role}/{node}"
    options = [("grpc.primary_user_agent", agent), *((f"grpc.{name}", value) for name, value in limits.items())]
    return grpc.aio.insecure_channel(f"{LOOPBACK}:{port}", options=options)


def told(story: Callable[[Node, int], Awaitable[None]], **options: Any) -> None:
    async def tell() -> None:
        node = Node()
        async with serving(node, **options) as port:
            await asyncio.wait_for(story(node, port), 30)

    asyncio.run(tell())


async def error_of(call: Awaitable[Any]) -> PotluckError:
    with pytest.raises(PotluckError) as caught, rpc_errors():
        await call
    return caught.value


def test_a_request_above_one_mebibyte_is_refused_and_the_connection_goes_on() -> None:
    async def story(_: Node, port: int) -> None:
        async with named(port, max_send_message_length=-1) as channel:
            stub: Any = node_pb2_grpc.NodeServiceStub(channel)
            huge = node_pb2.CommitRequest(figures_json="x" * MAX_MESSAGE_BYTES)
            error = await error_of(stub.Commit(huge))
            assert isinstance(error, ResourceError)
            assert error.error_id == "resource.refused-by-grpc"
            await stub.RenewLease(node_pb2.RenewLeaseRequest(fence=1))

    told(story)


def test_an_answer_above_one_mebibyte_is_never_sent() -> None:
    async def story(_: Node, port: int) -> None:
        async with named(port, max_receive_message_length=-1) as channel:
            stub: Any = node_pb2_grpc.NodeServiceStub(channel)
            error = await error_of(stub.RenewLease(node_pb2.RenewLeaseRequest(fence=MAX_MESSAGE_BYTES)))
            assert error.error_id == "resource.refused-by-grpc"
            await stub.RenewLease(node_pb2.RenewLeaseRequest(fence=MAX_MESSAGE_BYTES - 64))

    told(story)


def test_our_own_clients_take_and_send_no_more_than_one_mebibyte() -> None:
    for options in (channels.client_options(), channels.server_options()):
        limits = dict(options)
        assert limits["grpc.max_receive_message_length"] == limits["grpc.max_send_message_length"] == 1 << 20


def test_one_peer_has_so_many_calls_open_and_another_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MAX_CALLS", 5)

    async def story(_: Node, port: int) -> None:
        async with named(port) as channel, named(port) as second, named(port, "n2") as other:
            stub: Any = node_pb2_grpc.NodeServiceStub(channel)
            sessions = [stub.Session() for _ in range(5)]
            for session in sessions:
                await session.write(node_pb2.SessionUp())
                await session.read()
            same: Any = node_pb2_grpc.NodeServiceStub(second)
            assert (await error_of(same.RenewLease(node_pb2.RenewLeaseRequest()))).error_id == "resource.too-many-calls"
            others: Any = node_pb2_grpc.NodeServiceStub(other)
            await others.RenewLease(node_pb2.RenewLeaseRequest())
            await sessions[0].done_writing()
            assert await sessions[0].read() is grpc.aio.EOF
            await same.RenewLease(node_pb2.RenewLeaseRequest())

    assert MAX_CALLS < channels.MAX_STREAMS  # else the connection would make the caller wait without a word
    told(story)


def test_a_stranger_holds_so_many_calls_of_the_door_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MAX_STRANGER_CALLS", 3)

    async def story(_: Node, port: int) -> None:
        async with grpc.aio.insecure_channel(f"{LOOPBACK}:{port}") as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            watches = [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(3)]
            for watch in watches:
                await watch.read()
            assert (await error_of(stub.Check(health_pb2.HealthCheckRequest()))).error_id == "resource.too-many-calls"
            watches[0].cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watches[0].read()
            while True:  # the server hears of the end a little later
                try:
                    with rpc_errors():
                        await stub.Check(health_pb2.HealthCheckRequest())
                    return
                except ResourceError:
                    await asyncio.sleep(0)

    told(story, access=DOOR_ACCESS)


def test_strangers_of_many_addresses_together_hold_so_many_calls_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MAX_STRANGERS", 2)
    door = Guard(access=DOOR_ACCESS)
    door._strangers.update({"ipv4:10.0.0.1": 1, "ipv4:10.0.0.2": 1})
    refusal = door._crowded(None, "ipv4:10.0.0.3")
    assert refusal is not None
    assert refusal.error_id == "resource.too-many-calls"


@pytest.mark.parametrize("error_id", ["", "x", "bad id.with\nline", "é.é", "a." + "b" * 80, "Refused.big"])
@pytest.mark.parametrize("text", ["世" * 5000, "\n\r\0", "100% größer", "\U0001f600" * 3000, ""])
def test_an_error_of_any_id_and_text_reaches_the_caller_with_a_stable_id(error_id: str, text: str) -> None:
    async def story(node: Node, port: int) -> None:
        node.error = PotluckError(error_id, text, text)
        async with named(port) as channel:
            stub: Any = node_pb2_grpc.NodeServiceStub(channel)
            error = await error_of(stub.RenewLease(node_pb2.RenewLeaseRequest()))
            assert error.error_id == "bug.remote"
            assert text.startswith(error.message.removeprefix("INTERNAL: "))
            assert text.startswith(error.fix)

    told(story)


def test_every_method_of_every_service_is_listed_for_roles_and_strangers_have_only_the_door() -> None:
    assert {name for name, roles in DEFAULT_ACCESS.items() if roles == ANYONE} == {"/potluck.v1.EnrolService/"}
    assert {name.split(".")[0].strip("/") for name in DOOR_ACCESS} == {"potluck", "grpc"}
    assert "/potluck.v1.EnrolService/" in DOOR_ACCESS
    assert len(DOOR_ACCESS) == 4
    for name in ("Health", "ServerReflection"):
        assert all(roles == EVERY_ROLE for method, roles in DEFAULT_ACCESS.items() if method.endswith(f".{name}/"))


def test_a_stranger_asks_neither_health_nor_reflection_of_a_server_for_peers() -> None:
    async def story(_: Node, port: int) -> None:
        async with grpc.aio.insecure_channel(f"{LOOPBACK}:{port}") as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            error = await error_of(stub.Check(health_pb2.HealthCheckRequest()))
            assert error.error_id == "join.no-certificate"
            asking: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            error = await error_of(asking.ServerReflectionInfo(iter([request])).read())
            assert error.error_id == "join.no-certificate"

    told(story)


def test_a_client_that_asks_and_never_reads_is_sent_so_much_and_others_are_served(tmp_path: Path) -> None:
    hub, data = BlobStore(tmp_path / "hub"), b"b" * LARGE_CHUNK
    digest = hub.put_bytes(data)
    keys, own, hostile = new_curve_keys(), new_curve_keys(), new_curve_keys()
    server = BlobServer(hub, host=LOOPBACK, keys=keys, is_allowed=lambda _: True)
    with contextlib.ExitStack() as stack:
        port = server.start()
        stack.callback(server.close)
        assert server._router.sndhwm == SEND_QUEUE
        assert server._router.rcvhwm == RECEIVE_QUEUE
        context = stack.enter_context(zmq.Context())
        dealer = stack.enter_context(context.socket(zmq.DEALER))
        dealer.rcvhwm, dealer.linger = 1, 0
        dealer.curve_publickey, dealer.curve_secretkey = hostile.public.encode(), hostile.secret.encode()
        dealer.curve_serverkey = keys.public.encode()
        dealer.connect(f"tcp://{LOOPBACK}:{port}")
        get = wire.Get(transfer=1, digest=digest, offset=0, length=LARGE_CHUNK, plane="weights")
        for _ in range(3 * SEND_QUEUE):
            dealer.send_multipart(wire.encode(get))
        identity = Identity(
            node_id=NodeId("n"),
            role="node",
            key_pem=b"",
            certificate_pem=b"",
            ca_pem=b"",
            curve_public=own.public,
            curve_secret=own.secret,
            curve_server_key=keys.public,
            host=LOOPBACK,
            control_port=1,
            data_port=port,
        )
        with BlobClient(identity, BlobStore(tmp_path / "own")) as client:
            assert digest_bytes(client.get(digest, "weights").result(20).read_bytes()) == digest
            # What it asked for lies in the queue to it, which is full; the rest was let fall.
            assert server.counter.snapshot()["weights"]["out"] < (2 * SEND_QUEUE) * (LARGE_CHUNK + 512)


def test_a_client_may_not_have_blobs_hashed_over_and_over(tmp_path: Path) -> None:
    hub = BlobStore(tmp_path)
    digests = [hub.put_bytes(bytes([number])) for number in range(3)]
    damaged: list[str] = []
    server = BlobServer(hub, host=LOOPBACK, keys=None, on_damaged=damaged.append)
    for digest in digests:
        hub.path(digest).write_bytes(b"rotten")
        server._doubt("one", digest)
    assert damaged == digests[:1]
    server._doubt("other", digests[1])
    assert damaged == digests[:2]
