"""Making room in the blob store: what nothing needs any more goes, oldest first, and only when room is short.

What is kept: everything the core pins (heads, their parents, published weights, inputs and results of work
that is wanted), what recipes, segments, serving views, mixtures and the corpora of unfinished runs name, and all that a
kept manifest lists. A blob younger than an hour is kept too: its commit may be on the way.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from coordinator.core import queries
from coordinator.core.state import State
from coordinator.core.values import Finished
from coordinator.runtime import Runtime
from potluck.errors import DataError
from potluck.ids import Digest, is_digest
from potluck.jsontext import read_json
from potluck.net.blobs.store import BlobStore
from potluck.telemetry import logger

COLLECT_EVERY_S = 30.0
YOUNG_S = 3600.0
QUOTA_FRACTION = 0.8
"""Of the quota: above it room is made, down to it."""
LOW_DISK_BYTES = 2 << 30
MAX_MANIFEST_BYTES = 16 << 20
_DIGESTS = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")

log = logger("coordinator.collector")


class Collector:
    def __init__(self, *, runtime: Runtime, store: BlobStore, folder: Path) -> None:
        self._runtime = runtime
        self._store = store
        self._folder = folder

    async def make_room(self) -> None:
        """Collects if room is short."""
        target_bytes = self.target_bytes()
        if target_bytes is not None:
            await self.collect(target_bytes)

    def target_bytes(self) -> int | None:
        """How many bytes the store should come down to; None while there is room."""
        total, quota = self._store.total_bytes, self._store.quota_bytes
        if quota is not None and total > QUOTA_FRACTION * quota:
            return int(QUOTA_FRACTION * quota)
        lacking = LOW_DISK_BYTES - shutil.disk_usage(self._folder).free
        return max(0, total - lacking) if lacking > 0 else None

    async def collect(self, target_bytes: int, *, young_s: float = YOUNG_S) -> list[Digest]:
        """Deletes unneeded blobs until the target is reached or none is left; returns what went."""
        roots = await self._runtime.read(roots_of)
        candidates = await asyncio.to_thread(self._unneeded, roots)
        gone: list[Digest] = []
        for digest in candidates:
            if self._store.total_bytes <= target_bytes:
                break
            # Looked at again, on the loop's thread: what a call has taken hold of meanwhile is young now.
            if _age_s(self._store, digest) > young_s and self._store.delete(digest):
                gone.append(digest)
            await asyncio.sleep(0)
        if gone:
            log.fact("collected", blobs=len(gone), total_bytes=self._store.total_bytes)
        return gone

    def _unneeded(self, roots: frozenset[Digest]) -> list[Digest]:
        """Oldest first."""
        kept = closure(self._store, roots)
        found = [digest for digest, _ in self._store.blobs() if digest not in kept]
        return sorted(found, key=lambda digest: _age_s(self._store, digest), reverse=True)


def hold(store: BlobStore, digests: Iterable[Digest]) -> list[Digest]:
    """Makes blobs young, so that they stay until the core has them pinned; returns those that are not there.

    Call it on the loop's thread right before the event that names them is handed in.
    """
    missing: list[Digest] = []
    for digest in dict.fromkeys(digests):
        try:
            os.utime(store.path(digest))
        except (DataError, FileNotFoundError):
            missing.append(digest)
    return missing


def roots_of(state: State) -> frozenset[Digest]:
    """What the state needs, by name; manifests are not opened."""
    roots = set(queries.pinned_digests(state))
    for lineage in state.durable.lineages.values():
        # A fork starts from a commit of another lineage, whose head may be far beyond it by now.
        roots.update(Digest(found) for found in _DIGESTS.findall(lineage.wanted.recipe_json))
        roots.update(Digest(found) for text in lineage.wanted.segments_json for found in _DIGESTS.findall(text))
    for run in state.durable.runs.values():
        roots.update(Digest(found) for found in _DIGESTS.findall(run.serving_json))
        roots.update(entry.mixture for entry in run.entries)
        if run.steering is not None:
            roots.update(Digest(found) for found in _DIGESTS.findall(run.steering.json))
        if not isinstance(run.status, Finished):
            roots.update(Digest(found) for found in _DIGESTS.findall(run.spec_json))
    return frozenset(roots)


def closure(store: BlobStore, roots: Iterable[Digest]) -> frozenset[Digest]:
    """The roots and all that their manifests list, and so on."""
    kept: set[Digest] = set()
    waiting = list(roots)
    while waiting:
        digest = waiting.pop()
        if digest not in kept:
            kept.add(digest)
            waiting.extend(_listed(store, digest))
    return frozenset(kept)


def _listed(store: BlobStore, digest: Digest) -> list[Digest]:
    """The digests under `blobs` of a manifest; none for any other blob."""
    try:
        path = store.path(digest)
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            return []
        with path.open("rb") as file:
            if file.read(1) != b"{":
                return []
            manifest = read_json(b"{" + file.read())
    except (DataError, OSError, ValueError):
        return []
    blobs = manifest.get("blobs") if isinstance(manifest, dict) else None
    values = blobs.values() if isinstance(blobs, dict) else ()
    return [Digest(value) for value in values if isinstance(value, str) and is_digest(value)]


def _age_s(store: BlobStore, digest: Digest) -> float:
    """Seconds since a blob came or was last held; 0 if it is not there."""
    try:
        return time.time() - store.path(digest).stat().st_mtime
    except (DataError, FileNotFoundError):
        return 0.0
