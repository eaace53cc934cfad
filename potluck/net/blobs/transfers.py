"""One blob on its way, as the client sees it: what is here, what was asked for, how long nothing was heard."""

from __future__ import annotations

import hashlib
from concurrent.futures import Future
from pathlib import Path
from typing import Any, BinaryIO

from potluck.errors import DataError, PotluckError
from potluck.ids import Digest, short
from potluck.net.blobs import wire
from potluck.net.blobs.store import BlobStore, Partial
from potluck.net.blobs.window import LARGE_CHUNK
from potluck.net.counters import Plane
from potluck.net.remote_errors import error_from_id

MAX_DAMAGES = 1
"""A damaged chunk or blob is fetched again once; the second time it is an error."""


class Transfer:
    """What a get and a put have in common: a number that changes with each new start, and two clocks."""

    def __init__(self, *, digest: Digest, plane: Plane) -> None:
        self.digest = digest
        self.plane = plane
        self.futures: list[Future[Any]] = []
        self.number = 0
        self.damages = 0
        self.heard_ms = 0
        """When the transfer last heard or asked; silence counts from here."""
        self.alive_ms = 0
        """When the server last said anything about it."""
        self.patience_ms = 0
        self._first_patience_ms = 0

    @property
    def where(self) -> str:
        return f"blob {short(self.digest)}"

    def open(self) -> None:
        """Opens what the transfer reads or writes; called once before it starts."""
        raise NotImplementedError

    def ask_again(self) -> wire.Message | None:
        """Starts over from what is here; returns what to say first, if anything."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def begin(self, now_ms: int, patience_ms: int) -> None:
        self.heard_ms = self.alive_ms = now_ms
        self.patience_ms = self._first_patience_ms = patience_ms

    def heard(self, now_ms: int) -> None:
        self.heard_ms = self.alive_ms = now_ms

    def progress(self) -> None:
        self.patience_ms = self._first_patience_ms

    def grow_patience(self, now_ms: int, most_ms: int) -> None:
        self.heard_ms = now_ms
        self.patience_ms = min(most_ms, 2 * self.patience_ms)

    def refusal(self, message: wire.No) -> PotluckError | None:
        """The error a refusal means; None if the transfer may try once more."""
        if message.error_id == "data.digest-mismatch" and self.damages < MAX_DAMAGES:
            self.damages += 1
            return None
        return error_from_id(message.error_id, message.message, message.fix)


class GetTransfer(Transfer):
    def __init__(self, *, digest: Digest, plane: Plane, store: BlobStore) -> None:
        super().__init__(digest=digest, plane=plane)
        self._store = store
        self._partial: Partial | None = None
        self._asked = 0
        self._size: int | None = None

    def open(self) -> None:
        self._partial = self._store.begin(self.digest)

    def close(self) -> None:
        if self._partial is not None:
            self._partial.close()

    @property
    def partial(self) -> Partial:
        assert self._partial is not None
        return self._partial

    @property
    def offset(self) -> int:
        return self.partial.offset

    @property
    def in_flight(self) -> int:
        return max(0, self._asked - self.offset)

    @property
    def wants_more(self) -> bool:
        # The first answer tells the size; until then one question is enough.
        if self._size is None:
            return self._asked == self.offset
        return self._asked < self._size

    @property
    def complete(self) -> bool:
        return self._size is not None and self.offset == self._size

    def ask_again(self) -> wire.Message | None:
        self._asked = self.offset
        self._size = None
        return None

    def ask(self, chunk_bytes: int, now_ms: int) -> wire.Get:
        if not self.in_flight:
            self.heard_ms = now_ms
        offset = self._asked
        length = chunk_bytes if self._size is None else min(chunk_bytes, self._size - offset)
        self._asked += length
        return wire.Get(transfer=self.number, digest=self.digest, offset=offset, length=length, plane=self.plane)

    def shows_loss(self, chunk: wire.Chunk) -> bool:
        """Whether one before it was lost: what was asked in order comes in order, on a connection and over several."""
        return chunk.offset > self.offset

    def accept(self, chunk: wire.Chunk) -> bool:
        """Takes a chunk in; False if it is damaged. One that is not the next is passed over."""
        if chunk.offset != self.offset:
            return True
        if hashlib.sha256(chunk.payload).digest() != chunk.sha256 or self._size not in (None, chunk.size):
            self.damages += 1
            return False
        if self._size is None:
            self._size = chunk.size
            self.partial.set_size(chunk.size)
            if chunk.offset != self.offset:  # what was here was longer than the blob
                self._asked = self.offset
                return True
            self._asked = min(self._asked, chunk.size)
        if chunk.offset + len(chunk.payload) > chunk.size or (not chunk.payload and chunk.offset < chunk.size):
            self.damages += 1
            return False
        self.partial.append(chunk.payload)
        self._asked = max(self._asked, self.offset)
        return True

    def finish(self) -> Path | None:
        """The blob's path; None if its bytes are not what its digest says, and have been thrown away."""
        try:
            return self.partial.finish()
        except DataError:
            self.damages += 1
            return None

    def damage_error(self) -> DataError:
        return DataError(
            "data.digest-mismatch",
            f"{self.where} came damaged twice",
            "the coordinator checks its copy now; if it was damaged, whoever made the blob must send it again",
        )


class PutTransfer(Transfer):
    def __init__(self, *, digest: Digest, plane: Plane, path: Path) -> None:
        super().__init__(digest=digest, plane=plane)
        self._path = path
        self._file: BinaryIO | None = None
        self._size = 0

    def open(self) -> None:
        self._file = self._path.open("rb")
        self._size = self._path.stat().st_size

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def ask_again(self) -> wire.Message | None:
        return wire.Put(transfer=self.number, digest=self.digest, size=self._size, plane=self.plane)

    def read(self, want: wire.Want) -> wire.Chunk:
        """The piece the server asked for."""
        assert self._file is not None
        self._file.seek(want.offset)
        payload = self._file.read(min(want.length, LARGE_CHUNK))
        return wire.Chunk(
            transfer=self.number,
            offset=want.offset,
            size=self._size,
            sha256=hashlib.sha256(payload).digest(),
            payload=payload,
        )
