"""AdminService: runs, nodes, ledger, invitations. Thin: questions go to `core.queries`, wishes become events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc.aio

from coordinator import wire, wire_admin
from coordinator.backup import Backup
from coordinator.collector import hold
from coordinator.core import queries
from coordinator.core.effects import Denied, Done, RunAccepted
from coordinator.core.events import (
    NodeDrained,
    NodeRestored,
    PeerRevoked,
    RunCancelled,
    RunPaused,
    RunResumed,
    RunSubmitted,
)
from coordinator.core.state import State
from coordinator.corpus import corpus_facts_json
from coordinator.enrol import DEFAULT_EXPIRES_MS, issue_tokens
from coordinator.plans.base import CorpusFacts
from coordinator.runtime import Runtime
from potluck.errors import DataError, Refused, SpecError, UsageError
from potluck.ids import NO_DIGEST, NodeId, RunId, short
from potluck.net.blobs.store import BlobStore
from potluck.net.counters import Plane
from potluck.net.tls import peer_of
from potluck.specs.choices import ChoicesSpec
from potluck.specs.contest import ContestSpec
from potluck.specs.crisp import CrispSpec
from potluck.specs.instantiate import InstantiateSpec
from potluck.specs.run import MAX_NAME, RunSpec, spec_from_json
from potluck.telemetry import logger
from potluck.v1 import admin_pb2, admin_pb2_grpc

MAX_SPEC_BYTES = 256 << 10
MAX_NAMED = 1000
"""Digests in one answer."""
WATCH_INTERVAL_S = 0.25
"""At most four answers a second to one watcher."""
WATCH_IDLE_S = 5.0
"""A watcher is checked on this often when nothing changes."""

log = logger("coordinator.admin")
Context = grpc.aio.ServicerContext[Any, Any]
BytesByPlane = Callable[[], dict[Plane, int]]


class AdminService(admin_pb2_grpc.AdminServiceServicer):
    def __init__(
        self,
        *,
        runtime: Runtime,
        store: BlobStore,
        bytes_by_plane: BytesByPlane,
        join_string: Callable[[str], str],
        shut_down: Callable[[bool], None],
        back_up: Callable[[Path], Awaitable[Backup]],
        put_out: Callable[[NodeId], Awaitable[int]],
    ) -> None:
        """
        Args:
            bytes_by_plane: what has crossed the machine's border, both ways, ever since the home exists.
            join_string: from a token to the string that carries it.
            shut_down: asks the daemon to end; True: at once.
            back_up: copies the home to a new place.
            put_out: ends the open calls of a peer that was revoked; returns how many there were.
        """
        self._runtime = runtime
        self._store = store
        self._bytes_by_plane = bytes_by_plane
        self._join_string = join_string
        self._shut_down = shut_down
        self._back_up = back_up
        self._put_out = put_out

    async def StartRun(self, request: admin_pb2.StartRunRequest, context: Context) -> admin_pb2.StartRunResponse:
        """Starts a run, or resumes the one with this very spec."""
        spec = _spec_of(request)
        event = RunSubmitted(
            now_ms=self._runtime.now_ms(),
            unix_ms=self._runtime.unix_ms(),
            request_id=request.request_id,
            run=spec.id,
            spec_json=spec.to_json(),
            corpus_json=_facts_json(spec, self._store),
            name=request.name[:MAX_NAME] or "run",
            priority=request.priority,
        )
        answer = await self._runtime.submit(event)
        if not isinstance(answer, RunAccepted):
            raise wire.refusal(answer)
        log.fact("run-submitted", run=answer.run, name=event.name, state=answer.state)
        return admin_pb2.StartRunResponse(run=answer.run, state=answer.state)

    async def ListRuns(self, request: admin_pb2.ListRunsRequest, context: Context) -> admin_pb2.ListRunsResponse:
        return wire_admin.run_list(await self._runtime.read(queries.run_infos))

    async def GetRun(self, request: admin_pb2.GetRunRequest, context: Context) -> admin_pb2.RunInfo:
        return wire_admin.run_info(await self._runtime.read(lambda state: _run_info(state, request.run)))

    async def WatchRun(self, request: admin_pb2.GetRunRequest, context: Context) -> AsyncIterator[admin_pb2.RunInfo]:
        """Sends the run whenever it changes, and ends when the run has ended."""
        run = await self._runtime.read(lambda state: named_run(state, request.run))
        version, last = -1, None
        while True:
            version = await self._runtime.changed(version, WATCH_IDLE_S)
            info = wire_admin.run_info(await self._runtime.read(lambda state: queries.run_info(state, run)))
            info.spec_json = ""
            if info != last:
                yield info
                last = info
            if info.state != wire_admin.RUNNING:
                return
            await asyncio.sleep(WATCH_INTERVAL_S)

    async def CancelRun(self, request: admin_pb2.CancelRunRequest, context: Context) -> admin_pb2.CancelRunResponse:
        run = await self._runtime.read(lambda state: named_run(state, request.run))
        answer = await self._runtime.submit(RunCancelled(now_ms=self._runtime.now_ms(), run=run))
        match answer:
            case Done():
                log.fact("run-cancelled", run=run)
                return admin_pb2.CancelRunResponse(cancelled=True)
            case Denied(reason=reason):
                return admin_pb2.CancelRunResponse(reason=reason)
            case _:
                raise wire.refusal(answer)

    async def PauseRun(self, request: admin_pb2.PauseRunRequest, context: Context) -> admin_pb2.PauseRunResponse:
        run = await self._runtime.read(lambda state: named_run(state, request.run))
        kind = RunResumed if request.resume else RunPaused
        answer = await self._runtime.submit(kind(now_ms=self._runtime.now_ms(), run=run))
        if not isinstance(answer, Done):
            raise wire.refusal(answer)
        log.fact("run-resumed" if request.resume else "run-paused", run=run)
        return admin_pb2.PauseRunResponse(run=run)

    async def DrainNode(self, request: admin_pb2.DrainNodeRequest, context: Context) -> admin_pb2.DrainNodeResponse:
        node = await self._runtime.read(lambda state: _named_node(state, request.node))
        kind = NodeRestored if request.undo else NodeDrained
        answer = await self._runtime.submit(kind(now_ms=self._runtime.now_ms(), node=node))
        if not isinstance(answer, Done):
            raise wire.refusal(answer)
        log.fact("node-restored" if request.undo else "node-drained", node=node)
        return admin_pb2.DrainNodeResponse(node=node)

    async def ListNodes(self, request: admin_pb2.ListNodesRequest, context: Context) -> admin_pb2.ListNodesResponse:
        infos, addresses = await self._runtime.read(
            lambda state: (queries.node_infos(state), dict(state.ephemeral.router_addresses))
        )
        return wire_admin.node_list(infos, addresses)

    async def GetLedger(self, request: admin_pb2.GetLedgerRequest, context: Context) -> admin_pb2.GetLedgerResponse:
        run = await self._runtime.read(lambda state: named_run(state, request.run))
        ledger = await self._runtime.read(lambda state: queries.ledger(state, run))
        return wire_admin.ledger(ledger, self._bytes_by_plane())

    async def Invite(self, request: admin_pb2.InviteRequest, context: Context) -> admin_pb2.InviteResponse:
        tokens = await issue_tokens(
            self._runtime,
            count=request.count or 1,
            expires_ms=request.expires_ms or DEFAULT_EXPIRES_MS,
            role=request.role or "node",
        )
        return admin_pb2.InviteResponse(join_strings=[self._join_string(token) for token in tokens])

    async def Shutdown(self, request: admin_pb2.ShutdownRequest, context: Context) -> admin_pb2.ShutdownResponse:
        self._shut_down(request.now)
        return admin_pb2.ShutdownResponse(message="stopping at once" if request.now else "draining, then stopping")

    async def Backup(self, request: admin_pb2.BackupRequest, context: Context) -> admin_pb2.BackupResponse:
        target = Path(request.target)
        if not target.is_absolute():
            raise UsageError("usage.bad-request", f"target = {request.target!r}", "give an absolute path")
        made = await self._back_up(target)
        lacking = len(made.missing) + len(made.damaged)
        log.fact("backed-up", target=target, events=made.events, blobs=len(made.blobs), lacking=lacking)
        return admin_pb2.BackupResponse(
            events=made.events,
            blobs=len(made.blobs),
            bytes=made.blob_bytes,
            missing=made.missing[:MAX_NAMED],
            damaged=made.damaged[:MAX_NAMED],
        )

    async def RevokePeer(self, request: admin_pb2.RevokePeerRequest, context: Context) -> admin_pb2.RevokePeerResponse:
        """Puts a peer out for good: its certificate and its data-plane key are worth nothing from here on."""
        peer, own = NodeId(request.peer), peer_of(context)
        if own is not None and own.node_id == peer:
            fix = "another administrator can put it out"
            raise Refused("refused.own-identity", f"{peer} is the identity that asks", fix)
        answer = await self._runtime.submit(PeerRevoked(now_ms=self._runtime.now_ms(), node=peer))
        if not isinstance(answer, Done):
            raise wire.refusal(answer)
        log.fact("revoked", node=peer)
        return admin_pb2.RevokePeerResponse(streams_ended=await self._put_out(peer))


def _facts_json(spec: RunSpec, store: BlobStore) -> str:
    """Of the texts that a spec names, which stay in the store from here on, as what else it names does.

    Raises:
        CorpusError: as `corpus_facts_json`.
        DataError: ``data.missing-blob``, of a soup or a model that was let go.
    """
    if isinstance(spec, ContestSpec):
        missing = hold(store, spec.digests)
        if missing:
            what = f"the store has no blob {short(missing[0])} of a model or its rows"
            raise DataError("data.missing-blob", what, "start the run that made it again, and name what it made now")
    if isinstance(spec, ChoicesSpec):
        missing = hold(store, spec.digests)
        if missing:
            what = f"the store has no blob {short(missing[0])} of a model or the questions"
            raise DataError("data.missing-blob", what, "ask again: a run that goes on publishes newer models")
        return CorpusFacts(shards=(), sources=()).to_json()
    if isinstance(spec, InstantiateSpec):
        missing = hold(store, spec.soup.digests)
        if missing:
            what = f"the store has no blob {short(missing[0])} of the soup"
            raise DataError("data.missing-blob", what, "ask again: a soup that is still trained publishes a newer one")
        if spec.corpus == NO_DIGEST:
            return CorpusFacts(shards=(), sources=()).to_json()
    return corpus_facts_json(spec.corpus, store, spec.target if isinstance(spec, CrispSpec) else NO_DIGEST)


def _spec_of(request: admin_pb2.StartRunRequest) -> RunSpec:
    if len(request.spec_json.encode()) > MAX_SPEC_BYTES:
        raise SpecError("spec.too-large", f"the spec has more than {MAX_SPEC_BYTES} bytes", "shorten it")
    if not request.request_id:
        raise SpecError("spec.no-request-id", "the request has no request_id", "give each new request its own")
    return spec_from_json(request.spec_json)


def named_run(state: State, text: str) -> RunId:
    """A run by id, unique prefix or name.

    Raises:
        Refused: ``refused.no-such-run``.
    """
    run = queries.find_run(state, text)
    if run is None:
        raise Refused("refused.no-such-run", f"no run, or more than one, is called {text!r}", "see `potluck run list`")
    return run


def _named_node(state: State, text: str) -> NodeId:
    node = queries.find_node(state, text)
    if node is None:
        raise Refused("refused.no-such-node", f"no node, or more than one, is called {text!r}", "see `potluck nodes`")
    return node


def _run_info(state: State, text: str) -> queries.RunInfo:
    return queries.run_info(state, named_run(state, text))
