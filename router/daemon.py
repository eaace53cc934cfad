"""The router put together: fleet, views, servers and the link to the coordinator, on one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from potluck import telemetry
from potluck.errors import PotluckError
from potluck.ids import Digest
from potluck.net.address import is_loopback, join_host_port, reachable_address
from potluck.net.blobs.client import BlobClient
from potluck.net.blobs.store import BlobStore
from potluck.net.channels import bind, new_server, open_channel, router_credentials
from potluck.net.counters import ByteCounter, Plane
from potluck.net.guard import Guard
from potluck.net.identity import Identity
from potluck.net.version import make_hello
from potluck.v1 import expert_pb2, expert_pb2_grpc, router_pb2, router_pb2_grpc
from router.attach import ExpertServicer
from router.book import Loaded, ViewBook
from router.counting import Counting
from router.desk import Desk
from router.fleet import Fleet
from router.http import HttpBridge
from router.loader import Loader
from router.patience import LONGEST_WAIT_S, Patience
from router.service import RouterServicer
from router.session import CoordinatorLink
from router.traffic import DomainCounts, Noise

INTRODUCTION_S = 5.0
"""How long the coordinator may take to hear of this router before it is called ready all the same."""
GRACE_S = 5.0
"""Time for open requests after the router was told to stop."""
SERVICE_NAMES = (
    expert_pb2.DESCRIPTOR.services_by_name["ExpertService"].full_name,
    router_pb2.DESCRIPTOR.services_by_name["RouterService"].full_name,
)

log = telemetry.logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Options:
    home: Path
    host: str
    """Address to bind; empty: all, or loopback when insecure."""
    advertise: str
    """Host that others dial; empty: found out."""
    port: int
    http: bool
    """Whether to answer JSON on the next port, on loopback."""
    patience_s: float = LONGEST_WAIT_S
    """How long a request waits for a first view and its replicas."""
    count_domains: bool = False
    """Whether to count requests by domain of their run's partition and tell the coordinator."""
    noise: Noise | None = None
    """What blurs such counts; None: they are exact."""


@dataclass(frozen=True, kw_only=True)
class Address:
    address: str
    """host:port for clients and nodes."""
    port: int
    http_port: int
    """0 when there is no bridge."""


class RouterDaemon:
    """One router on one home. `start`, then `stop`; make it inside the event loop."""

    def __init__(self, identity: Identity, options: Options) -> None:
        self._identity = identity
        self._options = options
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="scoring")
        self._counting_executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="counting")
        self._counts = DomainCounts(options.noise)
        self._store = BlobStore(options.home / "blobs")
        self.counter = ByteCounter()
        self._blobs = BlobClient(identity, self._store, counter=self.counter)
        self._patience = Patience(options.patience_s)
        self.fleet = Fleet(self._on_fleet_change)
        self.book = ViewBook(self._on_swap, self._why_empty)
        self.loader = Loader(
            home=options.home,
            book=self.book,
            fleet=self.fleet,
            fetch=self._fetch,
            executor=self._executor,
            patience=self._patience,
        )
        self._counting = self._new_counting() if options.count_domains else None
        on_answered = self._counting.answered if self._counting else _uncounted
        self._desk = Desk(self.book, self.fleet, self._executor, self._patience, on_answered)
        self._health = HealthServicer()
        self._health_changed = asyncio.Event()
        self._http = HttpBridge(self._desk, self.is_serving)
        self._server = new_server([Guard(counter=self.counter)])
        self._channel = open_channel(identity)
        self._link: CoordinatorLink | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def is_serving(self) -> bool:
        return self.book.is_serving(self.fleet.ready)

    async def start(self) -> Address:
        """Serves what the disk holds, then lets the coordinator in.

        Raises:
            ResourceError: ``resource.port-taken``.
            UsageError: ``usage.insecure-not-loopback``.
        """
        host = self._options.host or ("127.0.0.1" if self._identity.insecure else "0.0.0.0")
        await self._say_health()
        router_pb2_grpc.add_RouterServiceServicer_to_server(RouterServicer(self._desk), self._server)
        expert_pb2_grpc.add_ExpertServiceServicer_to_server(ExpertServicer(self.fleet), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        asked = (*SERVICE_NAMES, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(asked, self._server)
        port = bind(self._server, host, self._options.port, router_credentials(self._identity))
        http_port = await self._http.start("127.0.0.1", self._http_port(port)) if self._options.http else 0
        await self.loader.restore(self._kept)
        await self._server.start()
        where = Address(
            address=join_host_port(self._options.advertise or _reachable(host), port), port=port, http_port=http_port
        )
        self._link = CoordinatorLink(
            self._identity,
            self._channel,
            hello=make_hello(boot_id=os.urandom(8).hex()),
            address=where.address,
            on_view=self.loader.offer,
            counts=self._counts if self._options.count_domains else None,
        )
        loops = [self._link.run(), self.loader.run(), self._watch_health()]
        if self._counting is not None:
            log.fact("counting-requests-by-domain", noise=self._options.noise.epsilon if self._options.noise else None)
            loops.append(self._counting.run())
        self._tasks = [asyncio.create_task(loop) for loop in loops]
        self._patience.renew()
        return where

    async def introduced(self) -> None:
        """Returns once the coordinator names this router to clients; soon, too, when it does not answer."""
        assert self._link is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(INTRODUCTION_S):
                await self._link.tried()

    async def stop(self) -> None:
        """Stops taking requests, lets open ones end, says bye to nodes and coordinator."""
        await self._health.enter_graceful_shutdown()
        await self._http.close()
        if self._link is not None:
            self._link.close()
            await asyncio.wait(self._tasks[:1], timeout=GRACE_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        stopping = asyncio.create_task(self._server.stop(GRACE_S))
        self.fleet.close("the router is leaving")
        await stopping
        await self._channel.close(None)
        await asyncio.to_thread(self._blobs.close)
        await asyncio.to_thread(self._executor.shutdown)
        await asyncio.to_thread(self._counting_executor.shutdown)

    async def failed(self) -> None:
        """Returns when a loop that should run for ever has ended, raising what ended it."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    def _new_counting(self) -> Counting:
        return Counting(
            current=lambda: self.book.current,
            fetch=self._fetch,
            scratch=self._options.home,
            counts=self._counts,
            executor=self._counting_executor,
        )

    def _kept(self, digest: Digest) -> Path:
        """A blob on disk that is what it was; raises ``data.missing-blob``. Blocks: before anything is served."""
        self._store.drop_if_damaged(digest)
        return self._store.path(digest)

    async def _fetch(self, digest: Digest, plane: Plane) -> Path:
        await asyncio.to_thread(self._store.drop_if_damaged, digest)
        return await asyncio.wrap_future(self._blobs.get(digest, plane))

    def _http_port(self, port: int) -> int:
        return port + 1 if self._options.port else 0

    def _on_fleet_change(self) -> None:
        self.book.reconsider(self.fleet.ready)
        self._health_changed.set()
        self._patience.notify()

    def _why_empty(self) -> str:
        """Why no view is held: what a person can look at next."""
        offered = self.loader.why_empty
        down = self._link.why_down if self._link is not None else ""
        return offered or down or "no run has published an expert yet"

    def _on_swap(self) -> None:
        for loaded in self.book.current:
            log.fact("view-in-force", run=loaded.view.run, version=loaded.version)
        self._health_changed.set()
        self._patience.renew()
        if self._counting is not None:
            self._counting.wake()
        try:
            self.loader.keep()
            self._drop_unused()
        except (PotluckError, OSError) as error:
            # Serving matters more than the copy for the next start; the next swap writes it again.
            log.failure("view-not-kept", error)

    def _drop_unused(self) -> None:
        used = self.book.digests
        if self._counting is not None:
            if not self._counting.is_settled:
                return  # What its partitions list is not known yet; the next swap drops the rest.
            used |= self._counting.digests
        for digest in [digest for digest, _ in self._store.blobs() if digest not in used]:
            if not self.loader.wants(digest):
                self._store.delete(digest)

    async def _watch_health(self) -> None:
        while True:
            await self._health_changed.wait()
            self._health_changed.clear()
            await self._say_health()

    async def _say_health(self) -> None:
        serving = self.is_serving()
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in ("", *SERVICE_NAMES):
            with contextlib.suppress(asyncio.InvalidStateError):
                await self._health.set(service, status)


def _uncounted(_loaded: Loaded, _ids: tuple[int, ...]) -> None:
    """Counting is off."""


def _reachable(host: str) -> str:
    """What others dial when the router listens on `host`."""
    if host in ("0.0.0.0", "::", ""):
        return reachable_address()
    return "127.0.0.1" if is_loopback(host) and host == "localhost" else host
