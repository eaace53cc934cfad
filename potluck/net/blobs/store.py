"""A folder of blobs: ``ab/<digest>`` for whole ones, ``partial/`` for what is still coming in.

A blob appears by one rename, after its bytes were hashed and are on disk; so whoever sees a path may read it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from potluck import telemetry
from potluck.durable import FULL, sync_folder
from potluck.errors import DataError, InvariantViolation, Refused, ResourceError
from potluck.ids import READ_BYTES, Digest, digest_file, is_digest, short

PARTIAL = "partial"
STALE_PARTIAL_S = 7 * 86_400
"""An incoming blob nobody continued for so long is dropped at the next start."""

log = telemetry.logger(__name__)


def _nothing(_: Digest) -> None:
    return None


class BlobStore:
    """Used from any thread."""

    def __init__(self, folder: Path, quota_bytes: int | None = None) -> None:
        """Opens or makes the store.

        Args:
            folder: the store's own folder.
            quota_bytes: most bytes of whole blobs plus announced incoming ones; None for no limit.
        """
        self._folder = folder
        self._quota_bytes = quota_bytes
        self._lock = threading.Lock()
        self._reserved: dict[Digest, int] = {}
        self._sound: set[Digest] = set()
        """Hashed by this process, when they came in or later."""
        (folder / PARTIAL).mkdir(parents=True, exist_ok=True)
        self._drop_stale_partials()
        self._total_bytes = sum(size for _, size in self.blobs())

    @property
    def total_bytes(self) -> int:
        """Bytes of whole blobs."""
        return self._total_bytes

    @property
    def quota_bytes(self) -> int | None:
        return self._quota_bytes

    def has(self, digest: Digest) -> bool:
        return self._place(digest).is_file()

    def path(self, digest: Digest) -> Path:
        """Where a blob lies; its bytes are not hashed again.

        Raises:
            DataError: ``data.missing-blob``.
        """
        place = self._place(digest)
        if not place.is_file():
            raise DataError("data.missing-blob", f"blob {short(digest)} is not in {self._folder}", "fetch it first")
        return place

    def size(self, digest: Digest) -> int:
        return self.path(digest).stat().st_size

    def blobs(self) -> Iterator[tuple[Digest, int]]:
        """Every whole blob with its size in bytes, in order of digest."""
        for shelf in sorted(self._folder.glob("[0-9a-f][0-9a-f]")):
            for place in sorted(shelf.iterdir()):
                with contextlib.suppress(FileNotFoundError):
                    if is_digest(place.name):
                        yield Digest(place.name), place.stat().st_size

    def verify(self, digest: Digest) -> bool:
        """Hashes a blob again; False if it is damaged or not there."""
        try:
            return digest_file(self._place(digest)) == digest
        except OSError:
            return False

    def drop_if_damaged(self, digest: Digest) -> bool:
        """Hashes a blob unless this process has; a damaged one is deleted and True returned. Blocks.

        A copy that lay on the disk may have rotted there, and whoever reads it would not notice.
        """
        if digest in self._sound or not self.has(digest):
            return False
        if self.verify(digest):
            self._sound.add(digest)
            return False
        log.fact("blob-damaged", blob=short(digest), folder=self._folder)
        self.delete(digest)
        return True

    def delete(self, digest: Digest) -> int:
        """Removes a blob; returns the bytes freed, 0 if there was none."""
        place = self._place(digest)
        with self._lock:
            self._sound.discard(digest)
            try:
                size = place.stat().st_size
                place.unlink()
            except FileNotFoundError:
                return 0
            self._total_bytes -= size
        return size

    def evict(self, target_bytes: int, *, keep: Collection[Digest] = ()) -> list[Digest]:
        """Deletes the blobs longest on disk, except those to keep, until `target_bytes` or fewer are left."""
        aged = sorted((self._age_key(digest), digest) for digest, _ in self.blobs() if digest not in keep)
        gone = []
        for _, digest in aged:
            if self._total_bytes <= target_bytes:
                break
            self.delete(digest)
            gone.append(digest)
        return gone

    def put_file(self, path: Path, *, move: bool = False) -> Digest:
        """Takes a file in and returns its digest; `move` takes the file itself where the file system allows it.

        Raises:
            ResourceError: ``resource.quota`` or ``resource.disk-full``.
        """
        size = path.stat().st_size
        with disk_errors(self._folder):
            descriptor, name = tempfile.mkstemp(dir=self._folder / PARTIAL, suffix=".tmp")
            copy = Path(name)
            try:
                with os.fdopen(descriptor, "wb") as target:
                    digest = digest_file(path)
                    if not self.has(digest):
                        self._reserve(digest, size)
                        self._take(path, copy, target, digest, move)
            finally:
                copy.unlink(missing_ok=True)
        if move:
            path.unlink(missing_ok=True)
        return digest

    def _take(self, path: Path, copy: Path, target: BinaryIO, digest: Digest, move: bool) -> None:
        try:
            if not move or not _renamed(path, copy):
                with path.open("rb") as source:
                    shutil.copyfileobj(source, target, READ_BYTES)
                _sync(target)
            self._install(copy, digest, _nothing)
        finally:
            self._release(digest)

    def put_bytes(self, data: bytes) -> Digest:
        """Takes bytes in, e.g. a manifest; raises as `put_file` does."""
        with disk_errors(self._folder):
            descriptor, name = tempfile.mkstemp(dir=self._folder / PARTIAL, suffix=".tmp")
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(data)
                return self.put_file(Path(name), move=True)
            finally:
                Path(name).unlink(missing_ok=True)

    def begin(self, digest: Digest, size_bytes: int | None = None) -> Partial:
        """Opens the incoming file of a blob, and continues an earlier one: look at `Partial.offset`.

        Raises:
            Refused: ``refused.partial-busy`` if another transfer, of any process, has it open.
            ResourceError: ``resource.quota`` or ``resource.disk-full``.
        """
        if size_bytes is not None:
            self._reserve(digest, size_bytes)
        try:
            with disk_errors(self._folder):
                return Partial(self, self._folder / PARTIAL / f"{digest}.part", digest, size_bytes)
        except Exception:
            self._release(digest)
            raise

    def _reserve(self, digest: Digest, size_bytes: int) -> None:
        with self._lock:
            others = sum(size for other, size in self._reserved.items() if other != digest)
            wanted = self._total_bytes + others + size_bytes
            if self._quota_bytes is not None and wanted > self._quota_bytes:
                raise ResourceError(
                    "resource.quota",
                    f"blob {short(digest)} of {size_bytes} bytes does not fit: {self._total_bytes + others} of "
                    f"{self._quota_bytes} bytes are taken in {self._folder}",
                    "raise --quota-bytes, or cancel runs that are no longer needed",
                )
            self._reserved[digest] = size_bytes

    def _release(self, digest: Digest) -> None:
        with self._lock:
            self._reserved.pop(digest, None)

    def _install(self, source: Path, digest: Digest, before_commit: Callable[[Digest], None]) -> Path:
        """The one way in: `source` is whole and on disk, and becomes the blob."""
        place = self._place(digest)
        shelf = place.parent
        if not shelf.is_dir():
            shelf.mkdir(exist_ok=True)
            sync_folder(self._folder)
        before_commit(digest)
        with self._lock:
            known = place.stat().st_size if place.is_file() else 0
            os.replace(source, place)
            self._sound.add(digest)
            self._total_bytes += place.stat().st_size - known
            self._reserved.pop(digest, None)
        sync_folder(shelf)
        return place

    def _place(self, digest: Digest) -> Path:
        if not is_digest(digest):
            raise InvariantViolation("bug.not-a-digest", f"{digest!r} is no SHA-256 digest")
        return self._folder / digest[:2] / digest

    def _age_key(self, digest: Digest) -> int:
        try:
            return self._place(digest).stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def _drop_stale_partials(self) -> None:
        oldest = time.time() - STALE_PARTIAL_S
        for path in (self._folder / PARTIAL).iterdir():
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < oldest:
                    path.unlink()


class Partial:
    """One incoming blob. Its bytes arrive in order; `finish` checks them all and makes the blob appear."""

    def __init__(self, store: BlobStore, path: Path, digest: Digest, size_bytes: int | None) -> None:
        self._store = store
        self._path = path
        self._digest = digest
        self._size_bytes = size_bytes
        self._file = _open_locked(path, digest)
        self._hash = hashlib.sha256()
        self.offset = 0
        """Bytes that are here; the next ones to ask for start at it."""
        self._read_back()

    @property
    def size_bytes(self) -> int | None:
        return self._size_bytes

    def set_size(self, size_bytes: int) -> None:
        """Says how large the blob will be, once known; raises ``resource.quota`` if that is too much."""
        self._store._reserve(self._digest, size_bytes)
        self._size_bytes = size_bytes
        if self.offset > size_bytes:
            self.restart()

    def append(self, data: bytes | memoryview) -> None:
        """Adds the next bytes.

        Raises:
            ResourceError: ``resource.disk-full``; the incoming file is removed, for others need the room.
        """
        with self._full_disk_discards():
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) :]
        self._hash.update(data)
        self.offset += len(data)

    def restart(self) -> None:
        """Throws away what has come so far."""
        self._file.truncate(0)
        self._file.seek(0)
        self._hash = hashlib.sha256()
        self.offset = 0

    def finish(self, before_commit: Callable[[Digest], None] = _nothing) -> Path:
        """Checks the whole digest, syncs file and folder, and renames.

        Args:
            before_commit: called right before the rename.

        Raises:
            DataError: ``data.digest-mismatch``; the bytes are thrown away and the transfer may start again.
            ResourceError: ``resource.disk-full``; as in `append`.
        """
        if self._hash.hexdigest() != self._digest:
            self.restart()
            raise DataError(
                "data.digest-mismatch",
                f"the bytes that came for blob {short(self._digest)} have another digest",
                "the sender's copy is damaged: delete it there and make it again",
            )
        with self._full_disk_discards():
            os.fsync(self._file.fileno())
            place = self._store._install(self._path, self._digest, before_commit)
        self._file.close()
        return place

    def close(self) -> None:
        """Lets go; the bytes stay for a later `begin`."""
        self._file.close()
        self._store._release(self._digest)

    def discard(self) -> None:
        """Lets go and removes the bytes."""
        self._path.unlink(missing_ok=True)
        self.close()

    @contextlib.contextmanager
    def _full_disk_discards(self) -> Iterator[None]:
        try:
            with disk_errors(self._path):
                yield
        except ResourceError:
            self.discard()
            raise

    def _read_back(self) -> None:
        self._file.seek(0)
        while piece := self._file.read(READ_BYTES):
            self._hash.update(piece)
            self.offset += len(piece)
        if self._size_bytes is not None and self.offset > self._size_bytes:
            self.restart()


@contextlib.contextmanager
def disk_errors(where: Path) -> Iterator[None]:
    """Turns a full disk into ``resource.disk-full``."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise ResourceError(
                "resource.disk-full", f"no room left at {where}: {error.strerror}", "free some space or move the home"
            ) from error
        raise


def _open_locked(path: Path, digest: Digest) -> FileIO:
    while True:
        # Unbuffered: a buffer that could not be written would fail again at close.
        file = FileIO(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise Refused(
                "refused.partial-busy", f"blob {short(digest)} is coming in on another transfer", "wait for it"
            ) from None
        # Between open and lock the file may have become the blob itself, which nobody may write to.
        if path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno())):
            return file
        file.close()


def _renamed(source: Path, target: Path) -> bool:
    """Moves a file within one file system; False if it lies on another."""
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno == errno.EXDEV:
            return False
        raise
    with target.open("rb") as file:
        os.fsync(file.fileno())
    return True


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
