"""Blobs on this node: fetched once, kept while there is room, and what the data plane moves for it."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Collection
from pathlib import Path

from potluck.errors import PotluckError
from potluck.ids import Digest
from potluck.net.blobs.client import BlobClient
from potluck.net.blobs.store import BlobStore
from potluck.net.counters import ByteCounter, Plane
from potluck.net.identity import Identity
from potluck.telemetry import logger

DEFAULT_LIMIT_BYTES = 32 << 30
TRIM_TO = 0.8
"""Part of the limit that stays: trimming a little at every turn would look at every file at every turn."""
MAX_HELD = 256

log = logger("expert_node.cache")


class Cache:
    """The node's blob store and its line to the coordinator's."""

    def __init__(self, folder: Path, identity: Identity, *, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        self.counter = ByteCounter()
        self._store = BlobStore(folder)
        self._client = BlobClient(identity, self._store, counter=self.counter)
        self._limit_bytes = limit_bytes

    async def get(self, digest: Digest, plane: Plane) -> Path:
        """The local file of a blob, fetched if it is not here, or is damaged here.

        Raises:
            NotReachable, DataError, ResourceError: it cannot be had.
        """
        await asyncio.to_thread(self._store.drop_if_damaged, digest)
        path = await asyncio.wrap_future(self._client.get(digest, plane))
        with contextlib.suppress(OSError):
            os.utime(path)  # Last used, for trimming and for `held`.
        return path

    async def put(self, digest: Digest, path: Path, plane: Plane) -> None:
        """Returns once the coordinator's store has it; what it has moves nothing."""
        await asyncio.wrap_future(self._client.put(digest, path, plane))

    def adopt(self, path: Path) -> None:
        """Takes over a delivered file: the next lease may want it. Blocks; a cache that cannot is no harm."""
        try:
            self._store.put_file(path, move=True)
        except (PotluckError, OSError) as error:
            log.fact("not-cached", file=path.name, why=error)

    def held(self) -> list[Digest]:
        """The newest digests here, at most 256. Blocks."""
        aged: list[tuple[float, Digest]] = []
        for digest, _ in self._store.blobs():
            with contextlib.suppress(PotluckError, OSError):
                aged.append((self._store.path(digest).stat().st_mtime, digest))
        return [digest for _, digest in sorted(aged, reverse=True)[:MAX_HELD]]

    def trim(self, keep: Collection[Digest]) -> None:
        """Drops the blobs longest unused once there are too many bytes. Blocks; call it between two leases."""
        if self._store.total_bytes > self._limit_bytes:
            gone = self._store.evict(int(self._limit_bytes * TRIM_TO), keep=keep)
            log.fact("cache-trimmed", blobs=len(gone), bytes_left=self._store.total_bytes)

    def clear(self, keep: Collection[Digest]) -> None:
        """Drops all but `keep`: the coordinator has the rest, and the disk has no room. Blocks, as `trim`."""
        gone = self._store.evict(0, keep=keep)
        if gone:
            log.fact("cache-cleared", blobs=len(gone), bytes_left=self._store.total_bytes)

    def close(self) -> None:
        self._client.close()
