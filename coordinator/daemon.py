"""The coordinator's process: opens the home, replays, binds three ports, serves, drains."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import shutil
import socket
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from coordinator.admin import AdminService
from coordinator.backup import Backup, back_up
from coordinator.collector import COLLECT_EVERY_S, Collector
from coordinator.core.events import DrainRequested
from coordinator.core.machine import Machine
from coordinator.core.state import State
from coordinator.enrol import DEFAULT_EXPIRES_MS, Enrolment, EnrolService, issue_tokens
from coordinator.home import CoordinatorHome, Keys, Ports
from coordinator.journal import SqliteJournal
from coordinator.local_admin import Reach, renew_administrator
from coordinator.mixture_service import MixtureService
from coordinator.peers import AccessList
from coordinator.planning import evaluate_plan
from coordinator.recording import Recording
from coordinator.runtime import PlanEvaluator, Runtime
from coordinator.service import ArtifactService, NodeService
from coordinator.sessions import Sessions
from coordinator.snapshot import code_digest
from coordinator.snapshots import SNAPSHOT_ROWS, SnapshotFolder, SnapshotTaker
from coordinator.traffic import Traffic
from potluck.clock import SystemClock
from potluck.crashpoints import crash_here
from potluck.errors import JoinError, UsageError
from potluck.ids import Json, NodeId
from potluck.metrics_sinks import Recorder
from potluck.net.address import is_loopback, reachable_address
from potluck.net.blobs.server import BlobServer
from potluck.net.blobs.store import BlobStore
from potluck.net.blobs.unclaimed import MAX_UNCLAIMED_BYTES, Unclaimed
from potluck.net.channels import bind, new_server, server_credentials
from potluck.net.counters import ByteCounter, Plane
from potluck.net.guard import DOOR_ACCESS, Guard
from potluck.net.join import INSECURE, JoinString
from potluck.net.tls import fingerprint
from potluck.telemetry import logger
from potluck.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    artifact_pb2,
    artifact_pb2_grpc,
    mixture_pb2,
    mixture_pb2_grpc,
    node_pb2,
    node_pb2_grpc,
)

MID_PUT = "coordinator.mid-put"
DRAIN_S = 10.0
"""Nodes finish what they are in the middle of; what takes longer waits in their outboxes for our return."""
STOP_S = 1.0
SAVE_BYTES_S = 10.0
WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}
"""Addresses that mean all of this machine's, and how its own command line dials them."""
NO_PORTS = Ports(control=0, enrol=0, data=0)

log = logger("coordinator.daemon")


@dataclass(frozen=True, kw_only=True)
class Options:
    home: Path
    host: str = "0.0.0.0"
    port: int = 7470
    """Base port; 0: any free ones, the same again at the next start if they are still free."""
    advertise: str = ""
    """The host in join strings; empty: found out."""
    insecure: bool = False
    quota_bytes: int | None = None
    unclaimed_bytes: int | None = None
    """Most bytes a node may have sent that nothing names yet; None: the default, at most a quarter of the free disk."""
    snapshot_rows: int = SNAPSHOT_ROWS
    """Rows of the journal from one snapshot to the next."""

    def __post_init__(self) -> None:
        if self.insecure and not is_loopback(self.host):
            raise UsageError(
                "usage.insecure-not-loopback",
                f"--insecure was given, but --host {self.host} is not a loopback address",
                "use --host 127.0.0.1, or leave --insecure away",
            )
        if self.port and not 0 < self.port <= 65_533:
            raise UsageError("usage.bad-port", f"--port {self.port}", "allowed: 0, or 1 to 65533: two more follow it")
        if self.quota_bytes is not None and self.quota_bytes < 1:
            raise UsageError("usage.bad-quota", f"--quota-bytes {self.quota_bytes}", "give 1 or more, or leave it away")
        if self.unclaimed_bytes is not None and self.unclaimed_bytes < 1:
            what = f"--unclaimed-bytes {self.unclaimed_bytes}"
            raise UsageError("usage.bad-quota", what, "give 1 or more, or leave it away")
        if self.snapshot_rows < 1:
            raise UsageError("usage.bad-snapshot-rows", f"--snapshot-rows {self.snapshot_rows}", "give 1 or more")
        if self.advertise and not _fits_join_string(self.advertise):
            fix = "give a host name or an address, without scheme or port"
            raise UsageError("usage.bad-advertise", f"--advertise {self.advertise!r}", fix)


class Stop:
    """How a daemon is asked to end: once to drain, twice to end at once."""

    def __init__(self) -> None:
        self.requested = asyncio.Event()
        self.at_once = asyncio.Event()

    def request(self, at_once: bool = False) -> None:
        if at_once or self.requested.is_set():
            self.at_once.set()
        self.requested.set()


class Daemon:
    """Holds the parts; `run` gives them their order of coming and going."""

    def __init__(
        self,
        options: Options,
        stop: Stop,
        *,
        evaluate: PlanEvaluator = evaluate_plan,
        recorder: Recorder | None = None,
    ) -> None:
        self._options = options
        self._stop = stop
        self._boot_id = uuid.uuid4().hex
        self._home = CoordinatorHome(options.home)
        # First of all: it says whether the home is ours alone.
        self._journal = SqliteJournal(self._home.journal)
        self._keys: Keys = self._home.keys()
        self._store = BlobStore(self._home.blobs, options.quota_bytes)
        self._unclaimed = Unclaimed(options.unclaimed_bytes or _room_for_one(self._home.blobs))
        self._counter = ByteCounter()
        self._bytes_before = self._home.load_bytes()
        self._access = AccessList()
        self._sessions = Sessions()
        self._machine = Machine()
        self._clock = SystemClock()
        self._runtime = Runtime(
            machine=self._machine,
            journal=self._journal,
            clock=self._clock,
            evaluate=evaluate,
            deliver=self._sessions.deliver,
            snapshots=SnapshotTaker(
                SnapshotFolder(self._home.snapshots, code_digest(self._machine.state.settings)),
                self._clock.monotonic_ms,
                options.snapshot_rows,
            ),
        )
        self._recording = Recording(recorder, self._runtime)
        self._traffic = Traffic(runtime=self._runtime, store=self._store)
        self._enrolment = Enrolment(runtime=self._runtime, authority=self._keys.authority, access=self._access)
        self._guard = Guard(is_revoked=self._access.is_revoked, counter=self._counter)
        self._collecting = asyncio.Lock()
        """Held while blobs are deleted, or may not be."""
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        self._ports = NO_PORTS

    async def run(self, on_ready: Callable[[Mapping[str, Json]], None]) -> None:
        """Serves until asked to stop; `on_ready` gets the ready line's fields.

        Raises:
            ResourceError: ``resource.port-taken``, ``resource.disk-full``, ``resource.journal``.
            DataError: the journal or the keys cannot be read.
        """
        async with contextlib.AsyncExitStack() as leaving:
            leaving.push_async_callback(asyncio.to_thread, self._recording.close)
            leaving.callback(self._journal.close)
            leaving.callback(self._save_bytes)
            self._runtime.replay()
            self._access.refresh(self._machine.state)
            running = await leaving.enter_async_context(self._running())
            await leaving.enter_async_context(self._serving())
            join = await self._open_door()
            self._home.say_started(self._ports, self._boot_id)
            await self._health.set("", health_pb2.HealthCheckResponse.SERVING)
            on_ready(self._ready(join))
            await self._until_stopped(running)
            await self._health.enter_graceful_shutdown()
            if not running.done() and not self._stop.at_once.is_set():
                await self._drain()
            # Nothing is answered from here on; callers hear that we are stopping, and ask again later.
            # The runtime goes before the sessions: their end is ours, and must not cost a node its lease.
            running.cancel()
            await asyncio.wait((running,))
            self._sessions.end_all("the coordinator is stopping")
            await self._runtime.finish_snapshots()
            log.fact("stopped", home=self._options.home)

    # --- coming and going ------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _running(self) -> AsyncIterator[asyncio.Task[None]]:
        """The runtime's task, and those that save the counters and make room for blobs."""
        running = asyncio.create_task(self._runtime.run(self._boot_id))
        saving = asyncio.create_task(self._save_bytes_often())
        collecting = asyncio.create_task(self._collect_often())
        try:
            yield running
        finally:
            for task in (saving, collecting, running):
                task.cancel()
            await asyncio.wait((saving, collecting, running))
            if not running.cancelled() and (error := running.exception()) is not None:
                raise error

    @contextlib.asynccontextmanager
    async def _serving(self) -> AsyncIterator[None]:
        """The three servers, bound in the order in which they need each other's ports."""
        wanted, options = self._wanted_ports(), self._options
        data = BlobServer(
            self._store,
            host=options.host,
            port=wanted.data,
            keys=None if options.insecure else self._keys.curve,
            is_allowed=self._access.is_allowed,
            may_put=(lambda _: True) if options.insecure else self._access.may_put,
            unclaimed=self._unclaimed,
            is_bounded=self._access.is_bounded,
            before_commit=lambda _: crash_here(MID_PUT),
            counter=self._counter,
        )
        door = Guard(access=DOOR_ACCESS, counter=self._counter)
        control, enrol = new_server([self._guard]), new_server([door])
        async with contextlib.AsyncExitStack() as leaving:
            control_port = bind(control, options.host, wanted.control, self._control_credentials())
            enrol_port = bind(enrol, options.host, wanted.enrol, self._enrol_credentials())
            data_port = data.start()
            leaving.callback(data.close)
            self._ports = Ports(control=control_port, enrol=enrol_port, data=data_port)
            self._add_services(control, enrol)
            for server in (control, enrol):
                await server.start()
                leaving.push_async_callback(server.stop, STOP_S)
            yield

    def _add_services(self, control: grpc.aio.Server, enrol: grpc.aio.Server) -> None:
        heartbeat_ms = self._machine.state.settings.heartbeat_ms
        node = NodeService(
            runtime=self._runtime,
            store=self._store,
            sessions=self._sessions,
            recording=self._recording,
            traffic=self._traffic,
            unclaimed=self._unclaimed,
            boot_id=self._boot_id,
            heartbeat_ms=heartbeat_ms,
            ports=self._ports,
        )
        admin = AdminService(
            runtime=self._runtime,
            store=self._store,
            bytes_by_plane=self._bytes_by_plane,
            join_string=self._join_string,
            shut_down=self._stop.request,
            back_up=self._back_up,
            put_out=self._put_out,
        )
        node_pb2_grpc.add_NodeServiceServicer_to_server(node, control)
        artifact = ArtifactService(runtime=self._runtime, store=self._store)
        artifact_pb2_grpc.add_ArtifactServiceServicer_to_server(artifact, control)
        admin_pb2_grpc.add_AdminServiceServicer_to_server(admin, control)
        mixture = MixtureService(runtime=self._runtime, store=self._store, traffic=self._traffic)
        mixture_pb2_grpc.add_MixtureServiceServicer_to_server(mixture, control)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, control)
        names = [
            module.DESCRIPTOR.services_by_name[name].full_name
            for module, name in (
                (node_pb2, "NodeService"),
                (artifact_pb2, "ArtifactService"),
                (admin_pb2, "AdminService"),
                (mixture_pb2, "MixtureService"),
                (health_pb2, "Health"),
            )
        ]
        reflection.enable_server_reflection((*names, reflection.SERVICE_NAME), control)
        door = EnrolService(
            enrolment=self._enrolment,
            ca_pem=self._keys.authority.ca_pem,
            curve_server_key=self._keys.curve.public,
            ports=(self._ports.control, self._ports.data),
        )
        node_pb2_grpc.add_EnrolServiceServicer_to_server(door, enrol)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, enrol)
        at_the_door = [node_pb2.DESCRIPTOR.services_by_name["EnrolService"].full_name, names[-1]]
        reflection.enable_server_reflection((*at_the_door, reflection.SERVICE_NAME), enrol)

    async def _until_stopped(self, running: asyncio.Task[None]) -> None:
        asked = asyncio.ensure_future(self._stop.requested.wait())
        await asyncio.wait((running, asked), return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()

    async def _drain(self) -> None:
        """No more grants; waits a while for the nodes that are here and in the middle of something."""
        log.fact("draining", seconds=DRAIN_S)
        waiting = asyncio.ensure_future(self._drained())
        at_once = asyncio.ensure_future(self._stop.at_once.wait())
        await asyncio.wait((waiting, at_once), timeout=DRAIN_S, return_when=asyncio.FIRST_COMPLETED)
        for task in (waiting, at_once):
            task.cancel()
        await asyncio.wait((waiting, at_once))

    async def _drained(self) -> None:
        await self._runtime.submit(DrainRequested(now_ms=self._runtime.now_ms()))
        version = -1
        while await self._runtime.read(_someone_works):
            version = await self._runtime.changed(version, DRAIN_S)

    # --- who we are, and who may come --------------------------------------------------------------

    def _wanted_ports(self) -> Ports:
        """The ports asked for; with port 0 those of the last start, so that nodes find us where we were."""
        last = self._home.last_ports()
        if self._options.port == 0 and last is not None and _all_free(self._options.host, last):
            return last
        return Ports.from_base(self._options.port)

    def _control_credentials(self) -> grpc.ServerCredentials | None:
        if self._options.insecure:
            return None
        authority = self._keys.authority
        return server_credentials(authority.issue_server(), client_ca_pem=authority.ca_pem)

    def _enrol_credentials(self) -> grpc.ServerCredentials | None:
        if self._options.insecure:
            return None
        return server_credentials(self._keys.enrolment, client_ca_pem=None)

    async def _open_door(self) -> str | None:
        """Renews the local administrator's identity; at the first start, makes the one join string."""
        reach = Reach(
            host=WILDCARDS.get(self._options.host, self._options.host),
            control_port=self._ports.control,
            data_port=self._ports.data,
            insecure=self._options.insecure,
        )
        await renew_administrator(self._runtime, self._enrolment, self._keys, self._home.admin_identity, reach)
        if await self._runtime.read(_has_invited_nodes):
            return None
        (token,) = await issue_tokens(self._runtime, count=1, expires_ms=DEFAULT_EXPIRES_MS, role="node")
        return self._join_string(token)

    def _join_string(self, token: str) -> str:
        options = self._options
        found = options.host if options.host not in WILDCARDS else reachable_address()
        host = options.advertise or found
        seen = INSECURE if options.insecure else fingerprint(self._keys.enrolment.certificate_pem)
        return JoinString(host=host, port=self._ports.enrol, fingerprint=seen, token=token).format()

    async def _put_out(self, peer: NodeId) -> int:
        """Once its revocation is journalled: no new call, and the open ones end."""
        await self._runtime.read(self._access.refresh)
        error = JoinError("join.revoked", f"{peer} was put out", "ask for a new join string and join again")
        return await self._guard.abort_streams(peer, error)

    def _ready(self, join: str | None) -> dict[str, Json]:
        ports = {"control": self._ports.control, "enrol": self._ports.enrol, "data": self._ports.data}
        return {"event": "ready", **ports, "join": join, "home": str(self._options.home), "boot_id": self._boot_id}

    # --- bytes ---------------------------------------------------------------------------------------

    def _bytes_by_plane(self) -> dict[Plane, int]:
        now = self._counter.snapshot()
        return {plane: before + sum(now[plane].values()) for plane, before in self._bytes_before.items()}

    def _save_bytes(self) -> None:
        """The counters are for people; a disk that is full is the journal's to complain of."""
        try:
            self._home.save_bytes(self._bytes_by_plane())
        except OSError as error:
            log.fact("bytes-not-saved", reason=error)

    async def _save_bytes_often(self) -> None:
        while True:
            await asyncio.sleep(SAVE_BYTES_S)
            self._save_bytes()

    # --- room ----------------------------------------------------------------------------------------

    async def _collect_often(self) -> None:
        collector = Collector(runtime=self._runtime, store=self._store, folder=self._home.blobs)
        while True:
            await asyncio.sleep(COLLECT_EVERY_S)
            try:
                async with self._collecting:
                    await collector.make_room()
            except Exception as error:
                log.failure("collection-failed", error)

    async def _back_up(self, target: Path) -> Backup:
        async with self._collecting:
            return await back_up(self._journal, self._home, target, unix_ms=self._clock.unix_ms())


def _fits_join_string(host: str) -> bool:
    try:
        if ":" in host:
            ipaddress.IPv6Address(host.strip("[]"))
        text = JoinString(host=host, port=1, fingerprint=INSECURE, token="a" * 8).format()
        return JoinString.parse(text).host == host.strip("[]")
    except (JoinError, ValueError):
        return False


def _room_for_one(folder: Path) -> int:
    """How much one node may leave unclaimed: three such nodes must not fill the disk that the journal needs too."""
    return min(MAX_UNCLAIMED_BYTES, shutil.disk_usage(folder).free // 4)


def _someone_works(state: State) -> bool:
    return any(lease.node in state.ephemeral.sessions for lease in state.durable.leases.values())


def _has_invited_nodes(state: State) -> bool:
    return any(invite.role == "node" for invite in state.durable.invites.values())


def _all_free(host: str, ports: Ports) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in (ports.control, ports.enrol, ports.data):
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                return False
    return True
