"""The hub's end of the data plane: one thread, one ROUTER socket, CURVE with an allow-list.

Gets leave no state here: each names digest, offset and length. Puts do: one incoming file per digest.
"""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import zmq
from zmq.utils import z85

from potluck import telemetry
from potluck.clock import Clock, SystemClock
from potluck.errors import DataError, PotluckError, Refused, ResourceError, UsageError
from potluck.ids import Digest, short
from potluck.net.address import is_loopback, join_host_port
from potluck.net.blobs import wire
from potluck.net.blobs.curve import CurveKeys
from potluck.net.blobs.store import BlobStore, Partial
from potluck.net.blobs.window import LARGE_CHUNK, Window
from potluck.net.counters import ByteCounter, Plane

ZAP_ENDPOINT = "inproc://zeromq.zap.01"
ZAP_DOMAIN = b"potluck"
ZAP_VERSION = b"1.0"
TICK_MS = 1_000
MESSAGES_A_TURN = 64
"""Then handshakes, the clock and a stop get their turn."""
SEND_QUEUE = 512
"""Messages per client; a client's window asks for 128 at most."""
OPEN_FILES = 32
TAKE_OVER_MS = 2_000
"""A sender silent for so long loses its upload to the next who offers the blob."""
IDLE_UPLOAD_MS = 60_000
MAX_UPLOADS = 256
TRUST_MS = 60_000
"""A blob that was hashed and found sound is not hashed again for so long."""

log = telemetry.logger(__name__)


@dataclass(kw_only=True)
class Upload:
    """One blob coming in, from one client at a time."""

    digest: Digest
    plane: Plane
    size: int
    partial: Partial
    route: bytes
    transfer: int
    asked: int
    heard_ms: int
    user: str
    damages: int = 0
    waiting: dict[bytes, int] = field(default_factory=dict)
    """Transfers of other clients that offered the same blob, by route; they hear `Done` too."""


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
        self._before_commit, self._on_damaged = before_commit, on_damaged
        self.counter = counter or ByteCounter()
        self._clock = clock or SystemClock()
        self._uploads: dict[Digest, Upload] = {}
        self._windows: dict[bytes, Window] = {}
        self._files: OrderedDict[Digest, tuple[int, int]] = OrderedDict()
        self._verified: OrderedDict[Digest, int] = OrderedDict()
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
        where = join_host_port(self._host, self._port) if self._port else f"{join_host_port(self._host, 0)[:-1]}*"
        try:
            self._router.bind(f"tcp://{where}")
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            if error.errno not in (zmq.EADDRINUSE, errno.EACCES):
                raise
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
        router.sndhwm = SEND_QUEUE
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
                        self._sweep(swept_ms)
                except Exception as error:
                    log.failure("blob-server-failed", error)
        finally:
            for upload in self._uploads.values():
                upload.partial.close()
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
            self._put(route, user, message)
        elif isinstance(message, wire.Chunk):
            self._take_chunk(route, message, num_bytes)
        elif isinstance(message, wire.Forget):
            self._forget(route, message.transfer)
        elif isinstance(message, wire.Doubt):
            self._doubt(message.digest)

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

    def _put(self, route: bytes, user: str, message: wire.Put) -> None:
        now_ms = self._clock.monotonic_ms()
        if self._store.has(message.digest):
            self._send(route, wire.Done(transfer=message.transfer), message.plane)
            return
        upload = self._uploads.get(message.digest)
        if upload is not None and not self._may_take_over(upload, route, user, now_ms):
            upload.waiting[route] = message.transfer
            self._send(route, wire.Wait(transfer=message.transfer), message.plane)
            return
        if upload is not None and upload.size != message.size:
            self._drop(upload)
            upload = None
        if upload is None:
            upload = self._begin(route, user, message, now_ms)
        upload.route, upload.user, upload.transfer, upload.heard_ms = route, user, message.transfer, now_ms
        upload.waiting.pop(route, None)
        upload.plane, upload.asked = message.plane, upload.partial.offset
        if upload.partial.offset == upload.size:
            self._finish(upload)
        else:
            self._pump(route)

    def _may_take_over(self, upload: Upload, route: bytes, user: str, now_ms: int) -> bool:
        # A client that came back has a new route, but its key tells that it is the same.
        same = upload.route == route or (bool(user) and upload.user == user)
        return same or now_ms - upload.heard_ms >= TAKE_OVER_MS

    def _begin(self, route: bytes, user: str, message: wire.Put, now_ms: int) -> Upload:
        if len(self._uploads) >= MAX_UPLOADS:
            raise ResourceError("resource.uploads", f"{MAX_UPLOADS} uploads are open", "try again later")
        partial = self._store.begin(message.digest, message.size)
        upload = Upload(
            digest=message.digest,
            plane=message.plane,
            size=message.size,
            partial=partial,
            route=route,
            transfer=message.transfer,
            asked=partial.offset,
            heard_ms=now_ms,
            user=user,
        )
        self._uploads[message.digest] = upload
        return upload

    def _take_chunk(self, route: bytes, chunk: wire.Chunk, num_bytes: int) -> None:
        upload = next((u for u in self._uploads.values() if u.route == route and u.transfer == chunk.transfer), None)
        if upload is None or chunk.offset != upload.partial.offset or not chunk.payload:
            return  # asked for under an earlier number, or before a repeat
        self.counter.add(upload.plane, "in", num_bytes)
        upload.heard_ms = self._clock.monotonic_ms()
        if hashlib.sha256(chunk.payload).digest() != chunk.sha256 or chunk.offset + len(chunk.payload) > upload.size:
            self._repeat_or_refuse(upload)
            return
        try:
            upload.partial.append(chunk.payload)
        except Exception:
            self._drop(upload)
            raise
        upload.asked = max(upload.asked, upload.partial.offset)
        self._window(route).received(len(chunk.payload), upload.heard_ms)
        if upload.partial.offset == upload.size:
            self._finish(upload)
        self._pump(route)

    def _repeat_or_refuse(self, upload: Upload) -> None:
        upload.damages += 1
        log.fact("chunk-damaged", blob=short(upload.digest), offset=upload.partial.offset, times=upload.damages)
        if upload.damages > 1:
            self._drop(upload)
            raise DataError(
                "data.digest-mismatch", f"blob {short(upload.digest)} came damaged twice", "check the sender's memory"
            )
        upload.asked = upload.partial.offset
        self._pump(upload.route)

    def _finish(self, upload: Upload) -> None:
        del self._uploads[upload.digest]
        try:
            upload.partial.finish(self._before_commit)
        except DataError:
            upload.partial.discard()
            raise
        except Exception:
            upload.partial.close()
            raise
        for route, transfer in [(upload.route, upload.transfer), *upload.waiting.items()]:
            self._send(route, wire.Done(transfer=transfer), upload.plane)

    def _pump(self, route: bytes) -> None:
        """Asks a client for more, in turn from each of its uploads, as far as its window goes."""
        mine = [upload for upload in self._uploads.values() if upload.route == route]
        window = self._window(route)
        in_flight = sum(upload.asked - upload.partial.offset for upload in mine)
        while in_flight < window.limit_bytes:
            hungry = [upload for upload in mine if upload.asked < upload.size]
            if not hungry:
                return
            upload = min(hungry, key=lambda u: u.asked - u.partial.offset)
            length = min(window.chunk_bytes, upload.size - upload.asked)
            if not self._send(
                route, wire.Want(transfer=upload.transfer, offset=upload.asked, length=length), upload.plane
            ):
                return
            upload.asked += length
            in_flight += length

    def _window(self, route: bytes) -> Window:
        return self._windows.setdefault(route, Window())

    def _forget(self, route: bytes, transfer: int) -> None:
        for upload in list(self._uploads.values()):
            if upload.route == route and upload.transfer == transfer:
                self._drop(upload)

    def _drop(self, upload: Upload) -> None:
        upload.partial.close()
        del self._uploads[upload.digest]

    def _doubt(self, digest: Digest) -> None:
        """A client got this blob damaged. Hashing is dear, so a blob found sound is left in peace for a while."""
        now_ms = self._clock.monotonic_ms()
        if not self._store.has(digest) or now_ms < self._verified.get(digest, now_ms):
            return
        if self._store.verify(digest):
            self._verified[digest] = now_ms + TRUST_MS
            if len(self._verified) > MAX_UPLOADS:
                self._verified.popitem(last=False)
            return
        log.fact("blob-damaged", blob=digest)
        self._store.delete(digest)
        self._on_damaged(digest)

    def _sweep(self, now_ms: int) -> None:
        for upload in list(self._uploads.values()):
            if now_ms - upload.heard_ms > IDLE_UPLOAD_MS:
                log.fact("upload-abandoned", blob=short(upload.digest), offset=upload.partial.offset)
                self._drop(upload)
        active = {upload.route for upload in self._uploads.values()}
        for route in self._windows.keys() - active:
            del self._windows[route]

    def _refuse(self, route: bytes, transfer: int, error: PotluckError) -> None:
        log.fact("blob-refused", error_id=error.error_id, reason=error.message)
        no = wire.No(transfer=transfer, error_id=error.error_id, message=error.message[:1000], fix=error.fix[:1000])
        self._send(route, no, None)

    def _send(self, route: bytes, message: wire.Message, plane: Plane | None) -> bool:
        """False if the client is gone or does not read; its own timer then asks anew."""
        frames = wire.encode(message)
        try:
            self._router.send_multipart([route, *frames], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                return False
            raise
        if plane is not None:
            self.counter.add(plane, "out", sum(len(frame) for frame in frames))
        return True
