"""NodeService and ArtifactService: from a message to an event, from an answer to a message.

A result reaches the core only when the store holds every digest it names; else the answer lists
what is missing, and the node puts it and asks again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc.aio

from coordinator import wire
from coordinator.collector import hold
from coordinator.core import queries
from coordinator.core.effects import CommitAccepted, TaskAccepted
from coordinator.core.events import LeaseRenewed, SessionClosed, WorkAsked
from coordinator.core.state import State
from coordinator.home import Ports
from coordinator.recording import Recording
from coordinator.runtime import Runtime
from coordinator.sessions import Sessions, Stream
from coordinator.traffic import Traffic
from potluck.errors import PotluckError, UsageError
from potluck.ids import Digest, Fence, NodeId, is_digest
from potluck.net.blobs.store import BlobStore
from potluck.net.blobs.unclaimed import Unclaimed
from potluck.net.tls import Peer, peer_of
from potluck.net.version import check_version, package_version
from potluck.telemetry import logger
from potluck.v1 import artifact_pb2, artifact_pb2_grpc, node_pb2, node_pb2_grpc

MAX_LOCATE = 1024

log = logger("coordinator.service")
Context = grpc.aio.ServicerContext[Any, Any]


def caller(context: Context) -> Peer:
    """Who is calling; the guard has let nobody else through."""
    peer = peer_of(context)
    assert peer is not None
    return peer


class NodeService(node_pb2_grpc.NodeServiceServicer):
    def __init__(
        self,
        *,
        runtime: Runtime,
        store: BlobStore,
        sessions: Sessions,
        recording: Recording,
        traffic: Traffic,
        unclaimed: Unclaimed,
        boot_id: str,
        heartbeat_ms: int,
        ports: Ports,
    ) -> None:
        self._runtime = runtime
        self._recording = recording
        self._traffic = traffic
        self._unclaimed = unclaimed
        self._store = store
        self._sessions = sessions
        self._boot_id = boot_id
        self._heartbeat_ms = heartbeat_ms
        self._ports = ports

    async def AcquireLease(
        self, request: node_pb2.AcquireLeaseRequest, context: Context
    ) -> node_pb2.AcquireLeaseResponse:
        node = caller(context).node_id
        useful, host = await self._runtime.read(lambda state: (_useful_to_hold(state), _host_of(state, node)))
        event = wire.lease_requested(request, node, self._runtime.now_ms())
        # Of hundreds of digests a request may name, the journal keeps those that can steer a grant.
        event = replace(event, held=tuple(digest for digest in event.held if digest in useful), host=host)
        return wire.lease_response(await self._runtime.submit(WorkAsked(now_ms=event.now_ms, asked=event)))

    async def RenewLease(self, request: node_pb2.RenewLeaseRequest, context: Context) -> node_pb2.RenewLeaseResponse:
        now_ms, node = self._runtime.now_ms(), caller(context).node_id
        event = LeaseRenewed(now_ms=now_ms, node=node, fence=Fence(request.fence))
        return wire.renew_response(await self._runtime.submit(event))

    async def Commit(self, request: node_pb2.CommitRequest, context: Context) -> node_pb2.CommitResponse:
        event = wire.checkpoint_committed(request, caller(context).node_id, self._runtime.now_ms())
        missing = hold(self._store, (event.child, event.weights, event.optimizer))
        if missing:
            return node_pb2.CommitResponse(reason="the store lacks these blobs", missing=missing)
        answer = await self._runtime.submit(event)
        if isinstance(answer, CommitAccepted):
            self._unclaimed.claim((event.child, event.weights, event.optimizer))
            await self._recording.commit(event)
        return wire.commit_response(answer)

    async def CompleteTask(
        self, request: node_pb2.CompleteTaskRequest, context: Context
    ) -> node_pb2.CompleteTaskResponse:
        event = wire.task_completed(request, caller(context).node_id, self._runtime.now_ms())
        missing = hold(self._store, (digest for _, digest in event.blobs))
        if missing:
            return node_pb2.CompleteTaskResponse(reason="the store lacks these blobs", missing=missing)
        answer = await self._runtime.submit(event)
        if isinstance(answer, TaskAccepted) and not answer.divergent:
            self._unclaimed.claim(digest for _, digest in event.blobs)
        return wire.task_response(answer)

    async def ReturnLease(self, request: node_pb2.ReturnLeaseRequest, context: Context) -> node_pb2.ReturnLeaseResponse:
        event = wire.lease_returned(request, caller(context).node_id, self._runtime.now_ms())
        if event.error_id:
            log.fact("lease-returned", node=event.node, fence=event.fence, error_id=event.error_id, why=event.message)
        await self._runtime.submit(event)
        return node_pb2.ReturnLeaseResponse(accepted=True)

    async def Greet(self, request: node_pb2.GreetRequest, context: Context) -> node_pb2.GreetResponse:
        """Who the caller is here, and who answers: for whoever wants to know whether a connection works."""
        peer = caller(context)
        enrolled, infos = await self._runtime.read(
            lambda state: (peer.node_id in state.durable.peers, queries.node_infos(state))
        )
        seen = next((info for info in infos if info.node == peer.node_id), None)
        return node_pb2.GreetResponse(
            node_id=peer.node_id,
            role=peer.role,
            known=enrolled,
            version=package_version(),
            unix_ms=self._runtime.unix_ms(),
            control_port=self._ports.control,
            enrol_port=self._ports.enrol,
            data_port=self._ports.data,
            state=seen.state if seen is not None else "",
            silent_ms=seen.silent_ms if seen is not None else 0,
        )

    async def Session(  # type: ignore[override]  # a coroutine that writes to its context is one too
        self, ups: AsyncIterator[node_pb2.SessionUp], context: Context
    ) -> None:
        """Runs until the node says bye, is lost, or is asked to leave. Only a bye is an orderly end."""
        peer = caller(context)
        items = _items(ups)
        hello = await self._hello(items)
        opened = wire.session_opened(hello, peer.node_id, peer.role, self._runtime.now_ms())
        stream = self._sessions.open(peer.node_id)
        welcome = node_pb2.Welcome(
            node_id=peer.node_id, boot_id=self._boot_id, version=package_version(), heartbeat_ms=self._heartbeat_ms
        )
        stream.send(node_pb2.DownItem(welcome=welcome))
        orderly = False
        try:
            await self._runtime.tell(opened)
            log.fact("session-opened", node=peer.node_id, role=peer.role, hostname=opened.hostname)
            orderly = await self._converse(items, stream, peer, context)
        finally:
            self._sessions.close(stream)
            log.fact("session-closed", node=peer.node_id, orderly=orderly)
            now_ms = self._runtime.now_ms()
            closed = SessionClosed(now_ms=now_ms, node=peer.node_id, boot_id=opened.boot_id, orderly=orderly)
            self._runtime.post(closed)

    async def _hello(self, items: AsyncIterator[node_pb2.UpItem]) -> node_pb2.SessionHello:
        first = await anext(items, None)
        if first is None or first.WhichOneof("item") != "hello":
            raise UsageError("usage.no-hello", "a session begins with a hello", "send SessionHello first")
        check_version(first.hello.hello.version)
        return first.hello

    async def _converse(
        self, items: AsyncIterator[node_pb2.UpItem], stream: Stream, peer: Peer, context: Context
    ) -> bool:
        """Both directions at once; whichever ends first ends the other."""
        reading = asyncio.ensure_future(self._listen(items, peer))
        writing = asyncio.ensure_future(stream.write_to(context))
        try:
            await asyncio.wait((reading, writing), return_when=asyncio.FIRST_COMPLETED)
            return reading.result() if reading.done() else False
        finally:
            for task in (reading, writing):
                task.cancel()
            for task in (reading, writing):
                with contextlib.suppress(asyncio.CancelledError, grpc.aio.BaseError):
                    await task

    async def _listen(self, items: AsyncIterator[node_pb2.UpItem], peer: Peer) -> bool:
        """Takes what the node says; True after a bye. A lost node looks like a clean end without one."""
        async for item in items:
            now_ms, node = self._runtime.now_ms(), peer.node_id
            match item.WhichOneof("item"):
                case "heartbeat":
                    beat = wire.heartbeat_received(item.heartbeat, node, now_ms)
                    await self._runtime.tell(beat)
                    await self._recording.heartbeat(beat)
                case "serving":
                    await self._runtime.tell(wire.serving_reported(item.serving, node, now_ms))
                case "traffic":
                    if peer.role != "router":
                        raise UsageError("usage.bad-request", f"a {peer.role} told of traffic", "only routers count it")
                    await self._traffic.take(item.traffic)
                case "bye":
                    return True
                case "hello" | None:
                    raise UsageError("usage.bad-request", "a second hello, or an empty item", "say hello once")
        return False


class ArtifactService(artifact_pb2_grpc.ArtifactServiceServicer):
    def __init__(self, *, runtime: Runtime, store: BlobStore) -> None:
        self._runtime = runtime
        self._store = store

    async def Locate(self, request: artifact_pb2.LocateRequest, context: Context) -> artifact_pb2.LocateResponse:
        bad = [text for text in request.digests if not is_digest(text)]
        if bad or len(request.digests) > MAX_LOCATE:
            what = f"digest {bad[0]!r}" if bad else f"{len(request.digests)} digests"
            raise UsageError("usage.bad-request", what, f"at most {MAX_LOCATE} digests of 64 hexadecimal digits")
        digests = [Digest(text) for text in request.digests]
        holders = await self._runtime.read(lambda state: _holders(state, frozenset(digests)))
        locations = [self._location(digest, holders.get(digest, [])) for digest in digests]
        return artifact_pb2.LocateResponse(locations=locations)

    def _location(self, digest: Digest, nodes: list[NodeId]) -> artifact_pb2.BlobLocation:
        try:
            size = self._store.size(digest)
        except PotluckError:
            return artifact_pb2.BlobLocation(digest=digest, nodes=nodes)
        return artifact_pb2.BlobLocation(digest=digest, at_hub=True, size_bytes=size, nodes=nodes)


def _useful_to_hold(state: State) -> frozenset[Digest]:
    """What open work would have to fetch: weights of heads, inputs of open tasks."""
    useful = {lineage.commits[-1].weights for lineage in state.durable.lineages.values() if lineage.commits}
    for run in state.durable.running():
        for task in run.open_tasks:
            useful.update(digest for _, digest in state.durable.tasks[task].wanted.inputs)
    return frozenset(useful)


def _host_of(state: State, node: NodeId) -> str:
    """The machine it runs on, as its session says; empty without one."""
    session = state.ephemeral.sessions.get(node)
    return session.opened.hostname if session is not None else ""


def _holders(state: State, digests: frozenset[Digest]) -> dict[Digest, list[NodeId]]:
    """Nodes that are here and said, when they last asked for work, that they have a blob."""
    holders: dict[Digest, list[NodeId]] = {}
    for node, facts in state.durable.nodes.items():
        if node in state.ephemeral.sessions:
            for digest in digests.intersection(facts.held):
                holders.setdefault(digest, []).append(node)
    return holders


async def _items(ups: AsyncIterator[node_pb2.SessionUp]) -> AsyncIterator[node_pb2.UpItem]:
    async for up in ups:
        for item in up.items:
            yield item
