"""A whole join and the guarded calls after it, against real gRPC servers on loopback."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from potluck.clock import ManualClock, SystemClock
from potluck.errors import JoinError, NotReachable, PotluckError, Refused, ResourceError, SpecError, UsageError
from potluck.ids import NodeId
from potluck.net import channels, tls
from potluck.net.counters import ByteCounter
from potluck.net.diagnose import diagnose
from potluck.net.guard import Guard, error_from_rpc, revoked_in, rpc_errors
from potluck.net.identity import Identity
from potluck.net.join import INSECURE, JoinString, enrol, new_token
from potluck.net.tls import CertificateAuthority, peer_of
from potluck.net.version import check_version, make_hello
from potluck.v1 import admin_pb2, admin_pb2_grpc, artifact_pb2, artifact_pb2_grpc, node_pb2, node_pb2_grpc

LOOPBACK = "127.0.0.1"


class Enrolment(node_pb2_grpc.EnrolServiceServicer):
    """The smallest coordinator that lets people in."""

    def __init__(self, authority: CertificateAuthority, tokens: dict[str, str], control_port: int) -> None:
        self._authority = authority
        self._tokens = tokens
        self._control_port = control_port

    async def Enrol(self, request: node_pb2.EnrolRequest, context: Any) -> node_pb2.EnrolResponse:
        check_version(request.hello.version)
        role = self._tokens.pop(request.token, None)
        if role is None:
            raise JoinError("join.token-used", "this join string was used before", "ask for a new one")
        node_id = NodeId(f"{role}-1")
        return node_pb2.EnrolResponse(
            node_id=node_id,
            role=role,
            certificate_pem=self._authority.issue(request.csr_pem, node_id=node_id, role=role),
            ca_pem=self._authority.ca_pem,
            curve_server_key="k" * 40,
            control_port=self._control_port,
            data_port=1,
        )


class Node(node_pb2_grpc.NodeServiceServicer):
    def __init__(self) -> None:
        self.callers: list[Any] = []

    async def RenewLease(self, request: node_pb2.RenewLeaseRequest, context: Any) -> node_pb2.RenewLeaseResponse:
        self.callers.append(peer_of(context))
        if request.fence == 13:
            raise SpecError("spec.unknown-key", "unknown key größe", "allowed here: 100% of größer")
        if request.fence == 14:
            raise ZeroDivisionError("inside")
        return node_pb2.RenewLeaseResponse(renewed=True, reason=f"fence {request.fence}")

    async def Session(self, requests: AsyncIterator[node_pb2.SessionUp], context: Any) -> AsyncIterator[Any]:
        async for _ in requests:
            yield node_pb2.SessionDown()


@dataclass
class House:
    authority: CertificateAuthority
    tokens: dict[str, str]
    insecure: bool
    control_port: int = 0
    enrol_port: int = 0
    fingerprint: str = INSECURE
    node: Node = field(default_factory=Node)
    revoked: set[NodeId] = field(default_factory=set)
    counter: ByteCounter = field(default_factory=ByteCounter)
    clock: Any = field(default_factory=SystemClock)
    guard: Guard | None = None

    def join_string(self, role: str = "node") -> str:
        token = new_token()
        self.tokens[token] = role
        return JoinString(host=LOOPBACK, port=self.enrol_port, fingerprint=self.fingerprint, token=token).format()

    async def enrol(self, role: str = "node") -> Identity:
        return await asyncio.to_thread(enrol, self.join_string(role), name="kitchen", hello=make_hello(boot_id="b"))


class Artifacts(artifact_pb2_grpc.ArtifactServiceServicer):
    async def Locate(self, request: artifact_pb2.LocateRequest, context: Any) -> artifact_pb2.LocateResponse:
        return artifact_pb2.LocateResponse()


@contextlib.asynccontextmanager
async def running(folder: Path, *, insecure: bool = False, clock: Any = None) -> AsyncIterator[House]:
    house = House(authority=CertificateAuthority.create(folder / "ca"), tokens={}, insecure=insecure)
    house.clock = clock or SystemClock()
    house.guard = Guard(is_revoked=revoked_in(house.revoked), counter=house.counter, clock=house.clock)
    control = channels.new_server([house.guard])
    node_pb2_grpc.add_NodeServiceServicer_to_server(house.node, control)
    artifact_pb2_grpc.add_ArtifactServiceServicer_to_server(Artifacts(), control)
    own, enrolment = house.authority.issue_server(), tls.self_signed_server()
    mutual = None if insecure else channels.server_credentials(own, client_ca_pem=house.authority.ca_pem)
    alone = None if insecure else channels.server_credentials(enrolment, client_ca_pem=None)
    house.fingerprint = INSECURE if insecure else tls.fingerprint(enrolment.certificate_pem)
    house.control_port = channels.bind(control, LOOPBACK, 0, mutual)
    door = channels.new_server([Guard()])
    node_pb2_grpc.add_EnrolServiceServicer_to_server(Enrolment(house.authority, house.tokens, house.control_port), door)
    house.enrol_port = channels.bind(door, LOOPBACK, 0, alone)
    await control.start()
    await door.start()
    try:
        yield house
    finally:
        await door.stop(None)
        await control.stop(None)


def in_house(
    folder: Path, story: Callable[[House], Awaitable[None]], *, insecure: bool = False, clock: Any = None
) -> None:
    async def tell() -> None:
        async with running(folder, insecure=insecure, clock=clock) as house:
            await story(house)

    asyncio.run(tell())


async def renew(identity: Identity, fence: int, **where: Any) -> node_pb2.RenewLeaseResponse:
    async with channels.open_channel(identity, **where) as channel:
        stub = node_pb2_grpc.NodeServiceStub(channel)
        with rpc_errors():
            answer: node_pb2.RenewLeaseResponse = await stub.RenewLease(node_pb2.RenewLeaseRequest(fence=fence))
        return answer


async def refused(identity: Identity, fence: int = 1, **where: Any) -> PotluckError:
    with pytest.raises(PotluckError) as caught:
        await renew(identity, fence, **where)
    return caught.value


@pytest.mark.parametrize("insecure", [False, True])
def test_a_joined_node_is_known_by_id_and_role_in_every_call(tmp_path: Path, insecure: bool) -> None:
    async def story(house: House) -> None:
        identity = await house.enrol()
        identity.save(tmp_path / "home")
        assert (await renew(Identity.load(tmp_path / "home"), 7)).reason == "fence 7"
        (caller,) = house.node.callers
        assert (caller.node_id, caller.role) == ("node-1", "node")

    in_house(tmp_path, story, insecure=insecure)


def test_a_token_lets_in_once(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        string = house.join_string()
        await asyncio.to_thread(enrol, string, name="a", hello=make_hello(boot_id="b"))
        with pytest.raises(JoinError) as caught:
            await asyncio.to_thread(enrol, string, name="a", hello=make_hello(boot_id="b"))
        assert caught.value.error_id == "join.token-used"
        assert caught.value.fix == "ask for a new one"

    in_house(tmp_path, story)


def test_a_wrong_fingerprint_stops_before_the_token_leaves(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        house.fingerprint = "0" * 64
        with pytest.raises(JoinError) as caught:
            await house.enrol()
        assert caught.value.error_id == "join.wrong-fingerprint"
        assert len(house.tokens) == 1

    in_house(tmp_path, story)


def test_another_version_may_not_join(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        hello = make_hello(boot_id="b")
        hello.version = "9.9.9"
        with pytest.raises(JoinError) as caught:
            await asyncio.to_thread(enrol, house.join_string(), name="a", hello=hello)
        assert caught.value.error_id == "join.version"

    in_house(tmp_path, story)


def test_an_error_keeps_its_class_id_message_and_fix_across_the_wire(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        error = await refused(await house.enrol(), 13)
        assert isinstance(error, SpecError)
        assert (error.error_id, error.message) == ("spec.unknown-key", "unknown key größe")
        assert error.fix == "allowed here: 100% of größer"

    in_house(tmp_path, story)


def test_an_unexpected_exception_reaches_the_caller_without_its_text(tmp_path: Path, capsys: Any) -> None:
    async def story(house: House) -> None:
        error = await refused(await house.enrol(), 14)
        assert error.error_id == "bug.internal"
        assert "inside" not in error.message.removesuffix("failed inside")

    in_house(tmp_path, story)
    assert "ZeroDivisionError" in capsys.readouterr().err


@pytest.mark.parametrize(("role", "allowed"), [("node", True), ("router", False), ("client", False), ("admin", False)])
def test_only_nodes_renew_leases(tmp_path: Path, role: str, allowed: bool) -> None:
    async def story(house: House) -> None:
        identity = await house.enrol(role)
        if allowed:
            await renew(identity, 1)
        else:
            assert (await refused(identity)).error_id == "join.wrong-role"

    in_house(tmp_path, story)


def test_a_revoked_node_is_refused_on_an_open_connection_and_its_streams_end(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        identity = await house.enrol()
        async with channels.open_channel(identity) as channel:
            stub = node_pb2_grpc.NodeServiceStub(channel)
            session = stub.Session()
            await session.write(node_pb2.SessionUp())
            await session.read()
            house.revoked.add(identity.node_id)
            assert house.guard is not None
            error = JoinError("join.revoked", "put out", "join again")
            assert await house.guard.abort_streams(identity.node_id, error) == 1
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await session.read()
            assert error_from_rpc(ended.value).error_id == "join.revoked"
            with pytest.raises(JoinError) as caught, rpc_errors():
                await stub.RenewLease(node_pb2.RenewLeaseRequest())
            assert caught.value.error_id == "join.revoked"

    in_house(tmp_path, story)


def test_a_certificate_that_expires_is_refused_although_its_connection_stands(tmp_path: Path) -> None:
    clock = ManualClock()
    clock.now_ms = SystemClock().unix_ms() - clock.unix_ms()

    async def story(house: House) -> None:
        identity = await house.enrol()
        async with channels.open_channel(identity) as channel:
            stub = node_pb2_grpc.NodeServiceStub(channel)
            await stub.RenewLease(node_pb2.RenewLeaseRequest())
            clock.advance(400 * 86_400_000)
            with pytest.raises(JoinError) as caught, rpc_errors():
                await stub.RenewLease(node_pb2.RenewLeaseRequest())
            assert caught.value.error_id == "join.certificate-expired"

    in_house(tmp_path, story, clock=clock)


def test_serialised_bytes_are_counted_both_ways_unary_and_streamed(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        identity = await house.enrol()
        up = node_pb2.SessionUp(items=[node_pb2.UpItem(bye=node_pb2.Bye(reason="x" * 50))])
        async with channels.open_channel(identity) as channel:
            stub = node_pb2_grpc.NodeServiceStub(channel)
            answer = await stub.RenewLease(node_pb2.RenewLeaseRequest(fence=7))
            session = stub.Session()
            for _ in range(3):
                await session.write(up)
                await session.read()
            await session.done_writing()
            assert await session.read() is grpc.aio.EOF
        counts = house.counter.snapshot()["control"]
        assert counts["in"] == node_pb2.RenewLeaseRequest(fence=7).ByteSize() + 3 * up.ByteSize()
        assert counts["out"] == answer.ByteSize()

    in_house(tmp_path, story)


def test_a_taken_port_is_said_so(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        own = house.authority.issue_server()
        credentials = channels.server_credentials(own, client_ca_pem=house.authority.ca_pem)
        with pytest.raises(ResourceError) as caught:
            channels.bind(channels.new_server(), LOOPBACK, house.control_port, credentials)
        assert caught.value.error_id == "resource.port-taken"

    in_house(tmp_path, story)


def test_a_method_nobody_listed_and_one_nobody_serves_are_refused(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        async with channels.open_channel(await house.enrol("admin")) as channel:
            with pytest.raises(Refused) as caught, rpc_errors():
                await admin_pb2_grpc.AdminServiceStub(channel).ListRuns(admin_pb2.ListRunsRequest())
            assert caught.value.error_id == "refused.unknown-call"
        strict = Guard(access={})
        assert strict._refusal("/x.Y/Z", tls.Peer(node_id=NodeId("n"), role="admin", not_after_unix_ms=2**53))

    in_house(tmp_path, story)


def test_without_tls_only_loopback_is_served() -> None:
    async def story() -> None:
        with pytest.raises(UsageError) as caught:
            channels.bind(channels.new_server(), "0.0.0.0", 0, None)
        assert caught.value.error_id == "usage.insecure-not-loopback"

    asyncio.run(story())


def test_a_closed_port_is_net_refused(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        identity = await house.enrol()
        error = await refused(identity, target="127.0.0.1:1")
        assert isinstance(error, NotReachable)
        assert error.error_id == "net.unreachable"
        assert (await diagnose(identity, target="127.0.0.1:1")).error_id == "net.refused"

    in_house(tmp_path, story)


def test_a_stranger_without_certificate_is_told_to_join(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        theirs = CertificateAuthority.create(tmp_path / "other")
        identity = await house.enrol()
        key, csr = tls.new_key_and_csr("x")
        forged = theirs.issue(csr, node_id=NodeId("node-1"), role="node")
        stranger = Identity(
            **{**identity.__dict__, "key_pem": key, "certificate_pem": forged},
        )
        assert (await refused(stranger)).error_id == "net.unreachable"
        assert (await diagnose(stranger)).error_id == "join.certificate-refused"

    in_house(tmp_path, story)


def test_a_coordinator_of_another_authority_is_recognised(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        identity = await house.enrol()
        other = CertificateAuthority.create(tmp_path / "other").ca_pem
        mistaken = Identity(**{**identity.__dict__, "ca_pem": other})
        assert (await diagnose(mistaken)).error_id == "join.other-authority"

    in_house(tmp_path, story)


def test_the_wrong_kind_of_server_is_recognised(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        identity = await house.enrol()
        error = await diagnose(identity, server_name=tls.ROUTER_NAME)
        assert error.error_id == "join.wrong-server"

    in_house(tmp_path, story)


def test_a_plaintext_server_is_recognised(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        authority = CertificateAuthority.create(tmp_path / "other")
        key, csr = tls.new_key_and_csr("x")
        identity = await house.enrol()
        secure = Identity(
            **{
                **identity.__dict__,
                "key_pem": key,
                "certificate_pem": authority.issue(csr, node_id=NodeId("n"), role="node"),
                "ca_pem": authority.ca_pem,
                "insecure": False,
            }
        )
        assert (await diagnose(secure)).error_id == "net.not-tls"

    in_house(tmp_path, story, insecure=True)
