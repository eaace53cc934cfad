"""The hub's end of the data plane: one thread, one ROUTER socket, CURVE with an allow-list.

Gets leave no state here: each names digest, offset and length. Puts do: one incoming file per digest.
"""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import zmq
from zmq.utils import z85

from potluck import telemetry
from potluck.clock import Clock, SystemClock
from potluck.errors import PotluckError, Refused, ResourceError, UsageError
from potluck.ids import Digest
from potluck.net.address import is_loopback, join_host_port
from potluck.net.blobs import wire
from potluck.net.blobs.curve import CurveKeys
from potluck.net.blobs.store import BlobStore
from potluck.net.blobs.unclaimed import Unclaimed
from potluck.net.blobs.uploads import Uploads
from potluck.net.blobs.window import LARGE_CHUNK
from potluck.net.counters import ByteCounter, Plane

ZAP_ENDPOINT = "inproc://zeromq.zap.01"
ZAP_DOMAIN = b"potluck"
ZAP_VERSION = b"1.0"
TICK_MS = 1_000
MESSAGES_A_TURN = 64
"""Then handshakes, the clock and a stop get their turn."""
SEND_QUEUE = 160
"""Messages per client; a client's window asks for 128 at most. One who does not read holds 80 MiB at worst."""
RECEIVE_QUEUE = 160
"""Messages per client, for the same reason; beyond it TCP holds the sender up. ZeroMQ's own default is 1000."""
DOUBT_EVERY_MS = 10_000
"""One client has a blob hashed so often: hashing holds all others up."""
MAX_DOUBTERS = 4096
OPEN_FILES = 32
MAX_VERIFIED = 256
TRUST_MS = 60_000
"""A blob that was hashed and found sound is not hashed again for so long."""

log = telemetry.logger(__name__)


class BlobServer:
    """Serves a store. `start` binds and returns the port; `close` ends the thread."""

    def __init__(
        self,
        store: BlobStore,
        *,
        host: str,
        port: int = 0,
        keys: CurveKeys | None,
        is_allowed: Callable[[str], bool] = lambda _: False,
        may_put: Callable[[str], bool] = lambda _: True,
        unclaimed: Unclaimed | None = None,
        is_bounded: Callable[[str], bool] = lambda _: True,
        before_commit: Callable[[Digest], None] = lambda _: None,
        on_damaged: Callable[[Digest], None] = lambda _: None,
        counter: ByteCounter | None = None,
        clock: Clock | None = None,
    ) -> None:
        """The callbacks are called on the server's thread.

        Args:
            keys: the server's CURVE keys; None for plain TCP, on loopback only.
            is_allowed: whether a client's public key (Z85) may talk at all; asked at each handshake and each message.
            may_put: whether it may send blobs; asked at each put.
            unclaimed: what counts against whom; None: a new one of the default size.
            is_bounded: whether what it sends and nothing names yet counts against it.
            before_commit: called right before a verified, synced blob gets its name.
            on_damaged: called after a blob of this store proved damaged and was removed.
        """
        if keys is None and not is_loopback(host):
            raise UsageError(
                "usage.insecure-not-loopback",
                f"--insecure was given, but {host} is not a loopback address",
                "use 127.0.0.1, or leave --insecure away",
            )
        self._store = store
        self._host, self._port = host, port
        self._keys = keys
        self._is_allowed, self._may_put = is_allowed, may_put
        self._on_damaged = on_damaged
        self.counter = counter or ByteCounter()
        self._clock = clock or SystemClock()
        self._uploads = Uploads(
            store,
            send=self._send,
            before_commit=before_commit,
            counter=self.counter,
            clock=self._clock,
            unclaimed=unclaimed,
            is_bounded=is_bounded,
        )
        self._files: OrderedDict[Digest, tuple[int, int]] = OrderedDict()
        self._verified: OrderedDict[Digest, int] = OrderedDict()
        self._doubted: OrderedDict[str, int] = OrderedDict()
        """When each user's next doubt is looked into."""
        self._thread = threading.Thread(target=self._run, name="blob-server", daemon=True)

    def start(self) -> int:
        """Binds, starts the thread and returns the port.

        Raises:
            ResourceError: ``resource.port-taken``.
        """
        self._context: zmq.Context[Any] = zmq.Context()
        self._zap = self._context.socket(zmq.ROUTER)
        self._zap.linger = 0
        self._zap.bind(ZAP_ENDPOINT)
        self._router = self._context.socket(zmq.ROUTER)
        self._configure(self._router)
        where = join_host_port(self._host, self._port)
        try:
            self._router.bind(f"tcp://{join_host_port(_address(self._host), self._port)}")
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise ResourceError(
                "resource.port-taken",
                f"cannot listen on {where} for blobs: {error.strerror}",
                "stop the program that uses the port, or choose another with --port (0 takes any free one)",
            ) from None
        self._port = int(self._router.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2])
        self._stop_reading, self._stop_writing = socket.socketpair()
        self._thread.start()
        return self._port

    @property
    def port(self) -> int:
        return self._port

    def close(self) -> None:
        """Stops at once; unfinished uploads can be continued at the next start."""
        if not self._thread.is_alive():
            return
        self._stop_writing.send(b"x")
        self._thread.join()

    def __enter__(self) -> BlobServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _configure(self, router: zmq.Socket[Any]) -> None:
        router.linger = 0
        router.maxmsgsize = wire.MAX_MESSAGE_BYTES
        router.sndhwm, router.rcvhwm = SEND_QUEUE, RECEIVE_QUEUE
        # An unreachable or slow client must be an error here, not a silent loss or a halt of everybody.
        router.router_mandatory = 1
        router.heartbeat_ivl, router.heartbeat_timeout = 1_000, 3_000
        if ":" in self._host:
            router.ipv6 = True
        if self._keys is not None:
            router.curve_server = True
            router.curve_publickey = self._keys.public.encode()
            router.curve_secretkey = self._keys.secret.encode()
            router.zap_domain = ZAP_DOMAIN

    def _run(self) -> None:
        poller = zmq.Poller()
        for waiting in (self._router, self._zap, self._stop_reading):
            poller.register(waiting, zmq.POLLIN)
        swept_ms = self._clock.monotonic_ms()
        try:
            while True:
                ready = dict(poller.poll(TICK_MS))
                if self._stop_reading.fileno() in ready:
                    return
                try:
                    if self._zap in ready:
                        self._answer_handshake()
                    if self._router in ready:
                        self._receive_some()
                    if self._clock.monotonic_ms() - swept_ms >= TICK_MS:
                        swept_ms = self._clock.monotonic_ms()
                        self._uploads.sweep(swept_ms)
                except Exception as error:
                    log.failure("blob-server-failed", error)
        finally:
            self._uploads.close()
            for descriptor, _ in self._files.values():
                os.close(descriptor)
            self._context.destroy(linger=0)
            self._stop_reading.close()
            self._stop_writing.close()

    def _answer_handshake(self) -> None:
        """ZAP (RFC 27): without an answer here CURVE admits any key."""
        frames = self._zap.recv_multipart()
        split = frames.index(b"") + 1
        version, request_id, domain, _, _, mechanism, *credentials = frames[split:]
        user = z85.encode(credentials[0]) if mechanism == b"CURVE" and credentials else b""
        good = version == ZAP_VERSION and domain == ZAP_DOMAIN and user and self._is_allowed(user.decode())
        if not good:
            log.fact("data-key-refused", key=user.decode() or "(none)")
        status = [b"200", b"OK", user] if good else [b"400", b"key not allowed", b""]
        self._zap.send_multipart([*frames[:split], ZAP_VERSION, request_id, *status, b""])

    def _receive_some(self) -> None:
        for _ in range(MESSAGES_A_TURN):
            try:
                frames = self._router.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            route, body = frames[0].bytes, frames[1:]
            try:
                user = self._user_of(body)
                message = wire.decode([frame.buffer for frame in body])
            except ValueError as error:
                log.fact("blob-message-refused", reason=str(error))
                continue
            num_bytes = sum(len(frame.buffer) for frame in body)
            try:
                self._handle(route, user, message, num_bytes)
            except PotluckError as error:
                self._refuse(route, message.transfer, error)
            except Exception as error:
                log.failure("blob-message-failed", error)
                self._refuse(route, message.transfer, PotluckError("bug.internal", "the blob server failed inside"))

    def _user_of(self, body: list[zmq.Frame]) -> str:
        if self._keys is None:
            return ""
        try:
            user = body[0].get("User-Id")
        except (zmq.ZMQError, IndexError):
            raise ValueError("a message without a key") from None
        return user.decode() if isinstance(user, bytes) else str(user)

    def _handle(self, route: bytes, user: str, message: wire.Message, num_bytes: int) -> None:
        # A key put out stays connected: the handshake looks at it once, so look again here.
        if self._keys is not None and not self._is_allowed(user):
            raise Refused("refused.data-key", "this machine's data key is no longer allowed", "join again")
        if isinstance(message, wire.Get):
            self.counter.add(message.plane, "in", num_bytes)
            self._get(route, message)
        elif isinstance(message, wire.Put):
            self.counter.add(message.plane, "in", num_bytes)
            if not self._may_put(user):
                raise Refused("refused.may-not-put", "this identity may not send blobs", "use a node or admin identity")
            self._uploads.offer(route, user, message)
        elif isinstance(message, wire.Chunk):
            self._uploads.take_chunk(route, message, num_bytes)
        elif isinstance(message, wire.Forget):
            self._uploads.forget(route, message.transfer)
        elif isinstance(message, wire.Doubt):
            self._doubt(user, message.digest)

    def _get(self, route: bytes, message: wire.Get) -> None:
        descriptor, size = self._open(message.digest)
        length = min(message.length, LARGE_CHUNK, max(0, size - message.offset))
        payload = os.pread(descriptor, length, message.offset)
        chunk = wire.Chunk(
            transfer=message.transfer,
            offset=message.offset,
            size=size,
            sha256=hashlib.sha256(payload).digest(),
            payload=payload,
        )
        self._send(route, chunk, message.plane)

    def _open(self, digest: Digest) -> tuple[int, int]:
        status = self._store.path(digest).stat()
        known = self._files.pop(digest, None)
        # A blob that was removed and came again is another file under the same name.
        if known is None or not os.path.samestat(os.fstat(known[0]), status):
            if known is not None:
                os.close(known[0])
            known = os.open(self._store.path(digest), os.O_RDONLY), status.st_size
        self._files[digest] = known
        if len(self._files) > OPEN_FILES:
            _, (oldest, _) = self._files.popitem(last=False)
            os.close(oldest)
        return known

    def _doubt(self, user: str, digest: Digest) -> None:
        """A client got this blob damaged. Hashing is dear: blob and client are both left alone for a while after."""
        now_ms = self._clock.monotonic_ms()
        if not self._store.has(digest) or now_ms < self._verified.get(digest, now_ms):
            return
        if now_ms < self._doubted.get(user, now_ms):
            return
        self._doubted[user] = now_ms + DOUBT_EVERY_MS
        if len(self._doubted) > MAX_DOUBTERS:
            self._doubted.popitem(last=False)
        if self._store.verify(digest):
            self._verified[digest] = now_ms + TRUST_MS
            if len(self._verified) > MAX_VERIFIED:
                self._verified.popitem(last=False)
            return
        log.fact("blob-damaged", blob=digest)
        self._store.delete(digest)
        self._on_damaged(digest)

    def _refuse(self, route: bytes, transfer: int, error: PotluckError) -> None:
        log.fact("blob-refused", error_id=error.error_id, reason=error.message)
        no = wire.No(transfer=transfer, error_id=error.error_id, message=error.message[:1000], fix=error.fix[:1000])
        self._send(route, no, None)

    def _send(self, route: bytes, message: wire.Message, plane: Plane | None) -> bool:
        """False if the client is gone or does not read; its own timer then asks anew."""
        frames = wire.encode(message)
        num_bytes = sum(len(frame) for frame in frames)
        if plane is not None:  # before, so that nobody who has the answer finds it uncounted
            self.counter.add(plane, "out", num_bytes)
        try:
            self._router.send_multipart([route, *frames], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if plane is not None:
                self.counter.add(plane, "out", -num_bytes)
            if error.errno in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                return False
            raise
        return True


def _address(host: str) -> str:
    """ZeroMQ binds to addresses only."""
    return "127.0.0.1" if host == "localhost" else host
