"""A whole coordinator on loopback, spoken to by real clients over mutual TLS."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from coordinator.daemon import Daemon, Options, Stop
from potluck.errors import CorpusError, JoinError, PotluckError, Refused, ResourceError, SpecError, UsageError
from potluck.ids import Digest, Json
from potluck.net.blobs.client import BlobClient
from potluck.net.blobs.store import BlobStore
from potluck.net.channels import open_channel
from potluck.net.guard import rpc_errors
from potluck.net.identity import Identity
from potluck.net.join import enrol
from potluck.net.version import make_hello
from potluck.specs.sections import ModelShape
from potluck.specs.smalltalk import ExpertSpec, RouterSpec, SmallTalkSpec
from potluck.v1 import admin_pb2, admin_pb2_grpc, artifact_pb2, artifact_pb2_grpc, node_pb2, node_pb2_grpc

DEADLINE_S = 20.0
UNKNOWN = "e" * 64


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), 60))

    return run


class Coordinator:
    """A running daemon and the administrator it made."""

    def __init__(self, home: Path, ready: Mapping[str, Json]) -> None:
        self.ready = ready
        self.admin = Identity.load(home / "admin" / "identity")

    async def join(self, name: str, role: str = "node") -> Identity:
        async with open_channel(self.admin) as channel:
            answer = await admin_stub(channel).Invite(admin_pb2.InviteRequest(role=role), timeout=DEADLINE_S)
        return await asyncio.to_thread(enrol, answer.join_strings[0], name=name, hello=make_hello(boot_id="boot"))


@contextlib.asynccontextmanager
async def coordinator(home: Path, *, insecure: bool = False, port: int = 0) -> AsyncIterator[Coordinator]:
    stop = Stop()
    ready: asyncio.Future[Mapping[str, Json]] = asyncio.get_running_loop().create_future()
    options = Options(home=home, host="127.0.0.1", port=port, insecure=insecure)
    running = asyncio.create_task(Daemon(options, stop).run(ready.set_result))
    await asyncio.wait((running, ready), return_when=asyncio.FIRST_COMPLETED)
    try:
        if running.done():
            await running
        yield Coordinator(home, await ready)
    finally:
        stop.request(at_once=True)
        await running


def admin_stub(channel: grpc.aio.Channel) -> Any:
    return admin_pb2_grpc.AdminServiceStub(channel)


def node_stub(channel: grpc.aio.Channel) -> Any:
    return node_pb2_grpc.NodeServiceStub(channel)


def hello_up(boot_id: str = "boot", address: str = "") -> node_pb2.SessionUp:
    hello = node_pb2.SessionHello(hello=make_hello(boot_id=boot_id), router_address=address)
    return node_pb2.SessionUp(items=[node_pb2.UpItem(hello=hello)])


async def open_session(channel: grpc.aio.Channel, boot_id: str = "boot", address: str = "") -> Any:
    call = node_stub(channel).Session()
    await call.write(hello_up(boot_id, address))
    down = await call.read()
    assert down.items[0].welcome.heartbeat_ms == 1000
    return call


async def rest_of(call: Any) -> list[node_pb2.DownItem]:
    items: list[node_pb2.DownItem] = []
    while down := await call.read():  # EOF is false
        items.extend(down.items)
    return items


async def nodes_of(channel: grpc.aio.Channel) -> dict[str, admin_pb2.NodeInfo]:
    answer = await admin_stub(channel).ListNodes(admin_pb2.ListNodesRequest(), timeout=DEADLINE_S)
    return {node.node: node for node in answer.nodes}


async def until_node(channel: grpc.aio.Channel, node: str, holds: Callable[[admin_pb2.NodeInfo], bool]) -> None:
    """Asks until it holds; the test's deadline bounds it."""
    while not holds((await nodes_of(channel))[node]):
        pass


def spec(corpus: str) -> SmallTalkSpec:
    shape = ModelShape(hidden=16, layers=1, heads=2, ffn=32)
    return SmallTalkSpec(
        corpus=Digest(corpus),
        routers=RouterSpec(model=shape, chunk_sequences=64),
        experts=ExpertSpec(model=shape, num=2, chunk_sequences=64),
    )


@in_loop
async def test_a_node_joins_asks_for_work_and_is_seen_until_it_says_bye(tmp_path: Path) -> None:
    async with coordinator(tmp_path) as c, open_channel(c.admin) as admin:
        identity = await asyncio.to_thread(
            enrol, str(c.ready["join"]), name="Lab Box", hello=make_hello(boot_id="boot")
        )
        assert (identity.node_id, identity.role) == ("n2-lab-box", "node")
        async with open_channel(identity) as channel:
            call = await open_session(channel)
            request = node_pb2.AcquireLeaseRequest(request_id=1, boot_id="boot", free_memory_bytes=1 << 30)
            lease = await node_stub(channel).AcquireLease(request, timeout=DEADLINE_S)
            assert lease.none.reason
            beat = node_pb2.Heartbeat(activity="idle", step=7)
            await call.write(node_pb2.SessionUp(items=[node_pb2.UpItem(heartbeat=beat)]))
            await until_node(admin, "n2-lab-box", lambda node: node.state == "live" and node.step == 7)
            await call.write(node_pb2.SessionUp(items=[node_pb2.UpItem(bye=node_pb2.Bye(reason="done"))]))
            await until_node(admin, "n2-lab-box", lambda node: node.state == "gone")


@in_loop
async def test_a_node_whose_connection_breaks_is_gone(tmp_path: Path) -> None:
    async with coordinator(tmp_path) as c, open_channel(c.admin) as admin:
        identity = await c.join("box")
        async with open_channel(identity) as channel:
            await open_session(channel)
            await until_node(admin, identity.node_id, lambda node: node.state == "live")
        await until_node(admin, identity.node_id, lambda node: node.state == "gone")


@in_loop
async def test_a_newer_session_of_the_same_node_takes_the_place_of_the_older(tmp_path: Path) -> None:
    async with coordinator(tmp_path) as c, open_channel(c.admin) as admin:
        identity = await c.join("box")
        async with open_channel(identity) as channel:
            older = await open_session(channel, "boot")
            newer = await open_session(channel, "boot")
            items = await rest_of(older)
            assert items[-1].WhichOneof("item") == "bye"
            beat = node_pb2.SessionUp(items=[node_pb2.UpItem(heartbeat=node_pb2.Heartbeat(step=3))])
            await newer.write(beat)
            await until_node(admin, identity.node_id, lambda node: node.state == "live" and node.step == 3)


@in_loop
async def test_a_session_that_does_not_begin_with_a_hello_is_refused(tmp_path: Path) -> None:
    async with coordinator(tmp_path) as c, open_channel(await c.join("box")) as channel:
        call = node_stub(channel).Session()
        await call.write(node_pb2.SessionUp(items=[node_pb2.UpItem(heartbeat=node_pb2.Heartbeat())]))
        with pytest.raises(UsageError) as caught, rpc_errors():
            await rest_of(call)
        assert caught.value.error_id == "usage.no-hello"


@in_loop
async def test_a_program_of_another_release_is_refused(tmp_path: Path) -> None:
    async with coordinator(tmp_path) as c:
        hello = make_hello(boot_id="boot")
        hello.version = "99.0.0"
        with pytest.raises(JoinError) as caught:
            await asyncio.to_thread(enrol, str(c.ready["join"]), name="new", hello=hello)
        assert caught.value.error_id == "join.version"


@in_loop
async def test_a_routers_address_is_told_to_nodes_and_to_people(tmp_path: Path) -> None:
    async with coordinator(tmp_path) as c, open_channel(c.admin) as admin:
        router, node = await c.join("door", "router"), await c.join("box")
        async with open_channel(node) as node_channel, open_channel(router) as router_channel:
            call = await open_session(node_channel)
            _keep = await open_session(router_channel, address="10.0.0.9:7473")
            while (item := (await call.read()).items[-1]).WhichOneof("item") != "routers":
                pass
            assert list(item.routers.addresses) == ["10.0.0.9:7473"]
            assert (await nodes_of(admin))[router.node_id].address == "10.0.0.9:7473"


@in_loop
async def test_a_token_is_good_for_one_enrolment(tmp_path: Path) -> None:
    async with coordinator(tmp_path) as c:
        join = str(c.ready["join"])
        await asyncio.to_thread(enrol, join, name="one", hello=make_hello(boot_id="a"))
        with pytest.raises(JoinError) as caught:
            await asyncio.to_thread(enrol, join, name="two", hello=make_hello(boot_id="b"))
        assert caught.value.error_id == "join.token-spent"
        with pytest.raises(JoinError) as caught:
            await asyncio.to_thread(enrol, join[:-4] + "AAAA", name="two", hello=make_hello(boot_id="b"))
        assert caught.value.error_id == "join.unknown-token"


@in_loop
async def test_an_invitation_for_another_role_is_refused_unspent(tmp_path: Path) -> None:
    async with coordinator(tmp_path) as c:
        join, hello = str(c.ready["join"]), make_hello(boot_id="a")
        with pytest.raises(JoinError, match="for a node, not a router") as caught:
            await asyncio.to_thread(enrol, join, name="one", hello=hello, wanted_role="router")
        assert caught.value.error_id == "join.wrong-role"
        identity = await asyncio.to_thread(enrol, join, name="one", hello=hello, wanted_role="node")
        assert identity.role == "node"


@in_loop
async def test_tokens_sent_at_the_same_time_give_different_ids(tmp_path: Path) -> None:
    async with coordinator(tmp_path) as c, open_channel(c.admin) as admin:
        answer = await admin_stub(admin).Invite(admin_pb2.InviteRequest(count=6), timeout=DEADLINE_S)
        joins = (
            asyncio.to_thread(enrol, join, name="box", hello=make_hello(boot_id="a")) for join in answer.join_strings
        )
        ids = [identity.node_id for identity in await asyncio.gather(*joins)]
        assert len(set(ids)) == 6


@in_loop
async def test_an_expired_token_is_refused(tmp_path: Path) -> None:
    async with coordinator(tmp_path) as c, open_channel(c.admin) as admin:
        invite = admin_pb2.InviteRequest(count=1, expires_ms=1)
        answer = await admin_stub(admin).Invite(invite, timeout=DEADLINE_S)
        with pytest.raises(JoinError) as caught:
            await asyncio.to_thread(enrol, answer.join_strings[0], name="late", hello=make_hello(boot_id="a"))
        assert caught.value.error_id == "join.token-expired"


@in_loop
async def test_roles_keep_to_their_calls(tmp_path: Path) -> None:
    async with coordinator(tmp_path) as c:
        client = await c.join("reader", "client")
        async with open_channel(client) as channel:
            for call in (
                admin_stub(channel).ListRuns(admin_pb2.ListRunsRequest()),
                node_stub(channel).AcquireLease(node_pb2.AcquireLeaseRequest()),
            ):
                with pytest.raises(JoinError) as caught, rpc_errors():
                    await call
                assert caught.value.error_id == "join.wrong-role"


@in_loop
async def test_a_result_is_not_taken_before_the_store_has_its_blobs(tmp_path: Path) -> None:
    async with coordinator(tmp_path / "c") as c:
        identity = await c.join("box")
        payload = tmp_path / "weights"
        payload.write_bytes(b"weights")
        digest = Digest(hashlib.sha256(b"weights").hexdigest())
        with BlobClient(identity, BlobStore(tmp_path / "cache")) as blobs:
            await asyncio.wrap_future(blobs.put(digest, payload, "weights"))
        commit = node_pb2.CommitRequest(
            request_id=1,
            fence=1,
            lineage=UNKNOWN,
            start_step=0,
            end_step=5,
            child="a" * 64,
            weights=digest,
            optimizer="b" * 64,
        )
        async with open_channel(identity) as channel:
            answer = await node_stub(channel).Commit(commit, timeout=DEADLINE_S)
            assert not answer.accepted
            assert list(answer.missing) == ["a" * 64, "b" * 64]
            commit.child = commit.optimizer = digest
            answer = await node_stub(channel).Commit(commit, timeout=DEADLINE_S)
            assert not answer.accepted
            assert not answer.missing
            assert "no run wants this lineage" in answer.reason
            locate = artifact_pb2.LocateRequest(digests=[digest, UNKNOWN])
            stub: Any = artifact_pb2_grpc.ArtifactServiceStub(channel)
            found = await stub.Locate(locate, timeout=DEADLINE_S)
            assert [(at.at_hub, at.size_bytes) for at in found.locations] == [(True, 7), (False, 0)]


@in_loop
async def test_figures_that_are_not_finite_never_reach_the_journal(tmp_path: Path) -> None:
    async with coordinator(tmp_path) as c, open_channel(await c.join("box")) as channel:
        request = node_pb2.CompleteTaskRequest(request_id=1, fence=1, task=UNKNOWN, figures_json='{"loss": NaN}')
        with pytest.raises(PotluckError) as caught, rpc_errors():
            await node_stub(channel).CompleteTask(request, timeout=DEADLINE_S)
        assert caught.value.error_id == "data.bad-figures"


@in_loop
async def test_a_client_may_fetch_blobs_but_not_send_them(tmp_path: Path) -> None:
    async with coordinator(tmp_path / "c") as c:
        client = await c.join("reader", "client")
        payload = tmp_path / "payload"
        payload.write_bytes(b"x")
        digest = Digest(hashlib.sha256(b"x").hexdigest())
        with BlobClient(client, BlobStore(tmp_path / "cache")) as blobs:
            putting = asyncio.wrap_future(blobs.put(digest, payload, "corpus"))
            with pytest.raises(Refused) as caught:
                await putting
        assert caught.value.error_id == "refused.may-not-put"


@in_loop
async def test_a_run_whose_corpus_is_not_at_the_hub_is_refused(tmp_path: Path) -> None:
    async with coordinator(tmp_path) as c, open_channel(c.admin) as admin:
        request = admin_pb2.StartRunRequest(request_id="1", spec_json=spec(UNKNOWN).to_json(), name="demo")
        with pytest.raises(CorpusError) as caught, rpc_errors():
            await admin_stub(admin).StartRun(request, timeout=DEADLINE_S)
        assert caught.value.error_id == "corpus.not-at-hub"


@pytest.mark.parametrize(
    ("spec_json", "error_id"),
    [
        ("not json", "spec.not-json"),
        ("[]", "spec.not-json"),
        ("{}", "spec.missing-key"),
        ('{"corpus": "x", "speed": 3}', "spec.unknown-key"),
    ],
)
@in_loop
async def test_a_spec_that_cannot_be_run_is_refused_by_name(tmp_path: Path, spec_json: str, error_id: str) -> None:
    async with coordinator(tmp_path) as c, open_channel(c.admin) as admin:
        request = admin_pb2.StartRunRequest(request_id="1", spec_json=spec_json, name="demo")
        with pytest.raises(SpecError) as caught, rpc_errors():
            await admin_stub(admin).StartRun(request, timeout=DEADLINE_S)
        assert caught.value.error_id == error_id


@in_loop
async def test_asking_for_a_run_that_is_not_there_says_so(tmp_path: Path) -> None:
    async with coordinator(tmp_path) as c, open_channel(c.admin) as admin:
        stub = admin_stub(admin)
        for call in (
            stub.GetRun(admin_pb2.GetRunRequest(run="none")),
            stub.CancelRun(admin_pb2.CancelRunRequest(run="none")),
            stub.GetLedger(admin_pb2.GetLedgerRequest(run="none")),
            stub.WatchRun(admin_pb2.GetRunRequest(run="none")).read(),
        ):
            with pytest.raises(Refused) as caught, rpc_errors():
                await call
            assert caught.value.error_id == "refused.no-such-run"


@in_loop
async def test_health_is_served_to_whoever_has_a_certificate(tmp_path: Path) -> None:
    async with coordinator(tmp_path) as c, open_channel(await c.join("reader", "client")) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE_S)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


@in_loop
async def test_whoever_has_a_certificate_can_ask_what_services_there_are(tmp_path: Path) -> None:
    async with coordinator(tmp_path) as c, open_channel(await c.join("reader", "client")) as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        answer = await stub.ServerReflectionInfo(iter([request])).read()
        names = {service.name for service in answer.list_services_response.service}
        assert {"potluck.v1.NodeService", "potluck.v1.AdminService", "grpc.health.v1.Health"} <= names


@in_loop
async def test_a_restarted_coordinator_is_where_it_was_and_knows_its_nodes(tmp_path: Path) -> None:
    async with coordinator(tmp_path) as c:
        identity = await c.join("box")
        first, old_admin = c.ready, c.admin
    async with coordinator(tmp_path) as c:
        assert c.ready["join"] is None
        assert [c.ready[name] for name in ("control", "enrol", "data")] == [
            first[name] for name in ("control", "enrol", "data")
        ]
        assert c.admin.node_id == old_admin.node_id
        for known in (identity, c.admin, old_admin):
            async with open_channel(known) as channel:
                stub: Any = health_pb2_grpc.HealthStub(channel)
                await stub.Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE_S)
        async with open_channel(identity) as channel:
            await open_session(channel)
        assert (await c.join("other")).node_id == "n3-other"


@in_loop
async def test_a_join_string_made_before_a_restart_is_good_after_it(tmp_path: Path) -> None:
    async with coordinator(tmp_path) as c:
        join = str(c.ready["join"])
    async with coordinator(tmp_path):
        identity = await asyncio.to_thread(enrol, join, name="box", hello=make_hello(boot_id="a"))
        assert identity.node_id == "n2-box"


@in_loop
async def test_a_stopping_coordinator_says_bye_and_takes_no_lease_away(tmp_path: Path) -> None:
    async with coordinator(tmp_path) as c:
        identity = await c.join("box")
        channel = open_channel(identity)
        call = await open_session(channel)
    items = await rest_of(call)
    assert items[-1].WhichOneof("item") == "bye"
    await channel.close(None)


@in_loop
async def test_two_coordinators_do_not_share_a_home_or_a_port(tmp_path: Path) -> None:
    async with coordinator(tmp_path / "one") as c:
        with pytest.raises(ResourceError) as caught:
            async with coordinator(tmp_path / "one"):
                pass
        assert caught.value.error_id == "resource.locked"
        with pytest.raises(ResourceError) as caught:
            async with coordinator(tmp_path / "two", port=int(str(c.ready["control"]))):
                pass
        assert caught.value.error_id == "resource.port-taken"


@in_loop
async def test_without_tls_everything_works_on_loopback_and_nowhere_else(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        Options(home=tmp_path, host="0.0.0.0", insecure=True)
    assert caught.value.error_id == "usage.insecure-not-loopback"
    payload = tmp_path / "payload"
    payload.write_bytes(b"x")
    async with coordinator(tmp_path / "c", insecure=True) as c:
        identity = await asyncio.to_thread(enrol, str(c.ready["join"]), name="box", hello=make_hello(boot_id="a"))
        async with open_channel(identity) as channel:
            await open_session(channel)
        with BlobClient(identity, BlobStore(tmp_path / "cache")) as blobs:
            digest = Digest(hashlib.sha256(b"x").hexdigest())
            assert await asyncio.wrap_future(blobs.put(digest, payload, "corpus")) == digest
