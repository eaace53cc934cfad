"""Blobs coming in at the hub: one file per digest, one sender at a time. Knows no sockets."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

from potluck import telemetry
from potluck.clock import Clock
from potluck.errors import DataError, Refused, ResourceError
from potluck.ids import Digest, short
from potluck.net.blobs import wire
from potluck.net.blobs.store import BlobStore, Partial
from potluck.net.blobs.unclaimed import Unclaimed
from potluck.net.blobs.window import Window
from potluck.net.counters import ByteCounter, Plane

TAKE_OVER_MS = 2_000
"""A sender silent for so long loses its upload to the next who offers the blob."""
IDLE_UPLOAD_MS = 60_000
MAX_UPLOADS = 256
MAX_UPLOADS_OF_ONE = 16
"""A client of ours sends four at once; after a lost connection as many again may be open until they are swept."""
MAX_WAITERS = 64
"""Connections that may wait for one blob: each node that did the same work, and some that came back."""

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


class Uploads:
    """Answers offers, takes chunks, asks for more. A route is the address of one client's connection."""

    def __init__(
        self,
        store: BlobStore,
        *,
        send: Callable[[bytes, wire.Message, Plane], bool],
        before_commit: Callable[[Digest], None],
        counter: ByteCounter,
        clock: Clock,
        unclaimed: Unclaimed | None = None,
        is_bounded: Callable[[str], bool] = lambda _: True,
    ) -> None:
        """
        Args:
            send: sends a message to a route; False if the client is gone or does not read.
            unclaimed: what counts against whom.
            is_bounded: whether what nobody claims counts against a user.
        """
        self._store = store
        self._send = send
        self._before_commit = before_commit
        self._counter = counter
        self._clock = clock
        self._unclaimed = unclaimed or Unclaimed()
        self._is_bounded = is_bounded
        self._uploads: dict[Digest, Upload] = {}
        self._windows: dict[bytes, Window] = {}

    def close(self) -> None:
        """Lets go of all; what has arrived stays for a later offer."""
        for upload in self._uploads.values():
            upload.partial.close()

    def offer(self, route: bytes, user: str, message: wire.Put) -> None:
        """Answers `Done`, `Wait` or the first `Want`.

        Args:
            user: the client's public key; empty without CURVE.

        Raises:
            ResourceError: ``resource.quota``, ``resource.unclaimed``, ``resource.disk-full`` or ``resource.uploads``.
            Refused: ``refused.partial-busy``.
        """
        now_ms = self._clock.monotonic_ms()
        if self._store.has(message.digest):
            self._send(route, wire.Done(transfer=message.transfer), message.plane)
            return
        upload = self._uploads.get(message.digest)
        if upload is not None and not self._may_take_over(upload, route, user, now_ms):
            if route not in upload.waiting and len(upload.waiting) >= MAX_WAITERS:
                raise ResourceError("resource.uploads", f"{MAX_WAITERS} wait for this blob", "try again later")
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

    def take_chunk(self, route: bytes, chunk: wire.Chunk, num_bytes: int) -> None:
        """Takes the next piece of a blob and asks for more; the last one makes the blob appear.

        Args:
            num_bytes: of the whole message, for the counter.

        Raises:
            DataError: ``data.digest-mismatch``: a piece came damaged twice, or the whole is not the blob.
            ResourceError: ``resource.disk-full``.
        """
        upload = next((u for u in self._uploads.values() if u.route == route and u.transfer == chunk.transfer), None)
        if upload is None or chunk.offset != upload.partial.offset or not chunk.payload:
            return  # asked for under an earlier number, or before a repeat
        self._counter.add(upload.plane, "in", num_bytes)
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

    def forget(self, route: bytes, transfer: int) -> None:
        """The client gave up."""
        for upload in list(self._uploads.values()):
            if upload.route == route and upload.transfer == transfer:
                self._drop(upload)

    def sweep(self, now_ms: int) -> None:
        """Lets go of uploads nobody continues."""
        for upload in list(self._uploads.values()):
            if now_ms - upload.heard_ms > IDLE_UPLOAD_MS:
                log.fact("upload-abandoned", blob=short(upload.digest), offset=upload.partial.offset)
                self._drop(upload)
        active = {upload.route for upload in self._uploads.values()}
        for route in self._windows.keys() - active:
            del self._windows[route]
        for digest in self._unclaimed.expired(now_ms):
            self._remove_piece(digest)

    def _may_take_over(self, upload: Upload, route: bytes, user: str, now_ms: int) -> bool:
        # A client that came back has a new route, but its key tells that it is the same.
        same = upload.route == route or (bool(user) and upload.user == user)
        return same or now_ms - upload.heard_ms >= TAKE_OVER_MS

    def _begin(self, route: bytes, user: str, message: wire.Put, now_ms: int) -> Upload:
        if len(self._uploads) >= MAX_UPLOADS:
            raise ResourceError("resource.uploads", f"{MAX_UPLOADS} uploads are open", "try again later")
        mine = [u.size for u in self._uploads.values() if u.user == user and (user or u.route == route)]
        if len(mine) >= MAX_UPLOADS_OF_ONE:
            what = f"{len(mine)} uploads of this machine are open"
            raise ResourceError("resource.uploads", what, f"send at most {MAX_UPLOADS_OF_ONE} blobs at once")
        if self._is_bounded(user):
            self._unclaimed.check(user, message.digest, sum(mine) + message.size)
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
        # Before it can be named, so that it cannot be claimed first.
        self._note(upload, upload.size, whole=True)
        try:
            upload.partial.finish(self._before_commit)
        except DataError:
            upload.partial.discard()
            self._unclaimed.claim((upload.digest,))
            raise
        except Exception:
            upload.partial.close()
            self._note(upload, upload.partial.offset, whole=False)
            raise
        for route, transfer in [(upload.route, upload.transfer), *upload.waiting.items()]:
            self._send(route, wire.Done(transfer=transfer), upload.plane)

    def _pump(self, route: bytes) -> None:
        """Asks a client for more, in turn from each of its uploads, as far as its window goes."""
        mine = [upload for upload in self._uploads.values() if upload.route == route]
        window = self._window(route)
        in_flight = sum(upload.asked - upload.partial.offset for upload in mine)
        while in_flight + window.chunk_bytes <= window.limit_bytes:
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

    def _drop(self, upload: Upload) -> None:
        upload.partial.close()
        del self._uploads[upload.digest]
        self._note(upload, upload.partial.offset, whole=False)

    def _note(self, upload: Upload, num_bytes: int, *, whole: bool) -> None:
        if self._is_bounded(upload.user):
            self._unclaimed.note(upload.user, upload.digest, num_bytes, self._clock.monotonic_ms(), whole=whole)

    def _remove_piece(self, digest: Digest) -> None:
        """Nobody has continued it for long; one that is coming in just now stays."""
        if digest in self._uploads:
            return
        with contextlib.suppress(Refused):
            self._store.begin(digest).discard()
            self._unclaimed.claim((digest,))
