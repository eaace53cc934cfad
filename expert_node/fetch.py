"""Everything a lease names, brought to this node before the worker starts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from expert_node.values import Lease, TrainLease
from potluck.errors import DataError
from potluck.ids import NO_DIGEST, Digest, is_digest
from potluck.jsontext import read_json
from potluck.net.counters import Plane
from potluck.recipe import Assigned, Clustered, Mixtures

MANIFEST_SUFFIX = "_manifest"
MAX_PARALLEL = 4
"""Blobs asked for at a time; the data plane bounds the bytes in flight."""
MAX_MANIFEST_BYTES = 64 << 20

_CORPUS_INPUTS = ("documents", "corpus", "tokenizer", "tokens", "part")
_WEIGHT_INPUTS = ("weights", "router")


class Source(Protocol):
    async def get(self, digest: Digest, plane: Plane) -> Path:
        """The local file of a blob, fetched if need be.

        Raises:
            NotReachable, DataError, ResourceError.
        """


async def fetch_inputs(lease: Lease, source: Source) -> dict[Digest, Path]:
    """Fetches a lease's inputs, and what their manifests list; paths by digest.

    Raises:
        PotluckError: a blob cannot be had; the first such error.
    """
    found: dict[Digest, Path] = {}
    wanted = training_inputs(lease) if isinstance(lease, TrainLease) else task_inputs(lease.inputs)
    await _fetch_all(wanted, source, found)
    if isinstance(lease, TrainLease):
        manifests = {s.data.tokens for s in _segments_to_do(lease)}
        listed = {d for m in manifests for d in train_rows(read_manifest(found[m]))}
        labels = {s.data.labels for s in _segments_to_do(lease) if isinstance(s.data, Clustered | Mixtures)}
        listed |= {d for m in labels for d in listed_blobs(read_manifest(found[m]))}
    else:
        manifests = {d for name, d in lease.inputs if name.endswith(MANIFEST_SUFFIX)}
        listed = {d for m in manifests for d in listed_blobs(read_manifest(found[m]))}
    await _fetch_all(dict.fromkeys(listed, "corpus"), source, found)
    return found


def training_inputs(lease: TrainLease) -> dict[Digest, Plane]:
    """Blobs a train lease names itself: the head's state, token manifests, assignments, mixtures."""
    wanted: dict[Digest, Plane] = {}
    if lease.head_step:
        wanted[lease.weights] = wanted[lease.optimizer] = "weights"
    elif (origin := lease.recipe.origin) is not None:
        wanted[origin.weights] = "weights"
        if origin.optimizer != NO_DIGEST:
            wanted[origin.optimizer] = "weights"
    for segment in _segments_to_do(lease):
        wanted[segment.data.tokens] = "corpus"
        if isinstance(segment.data, Assigned):
            wanted[segment.data.assignment] = "scores"
        if isinstance(segment.data, Clustered | Mixtures):
            wanted[segment.data.labels] = "scores"
        if isinstance(segment.data, Clustered):
            wanted[segment.data.mixture] = "scores"
    return wanted


def task_inputs(inputs: Iterable[tuple[str, Digest]]) -> dict[Digest, Plane]:
    return {digest: plane_of_input(name) for name, digest in inputs}


def plane_of_input(name: str) -> Plane:
    """Data plane of a task's input, by its name; numbers after a dash do not matter."""
    stem = name.removesuffix(MANIFEST_SUFFIX).split("-")[0]
    if stem in _CORPUS_INPUTS:
        return "corpus"
    return "weights" if stem in _WEIGHT_INPUTS else "scores"


def read_manifest(path: Path) -> Mapping[str, Any]:
    """Raises:
    DataError: ``data.bad-manifest``.
    """
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise DataError("data.bad-manifest", f"{path.name} has more than {MAX_MANIFEST_BYTES} bytes", "report it")
    try:
        manifest = read_json(path.read_bytes())
    except ValueError as error:
        raise DataError("data.bad-manifest", f"{path.name} is not JSON: {error}", "use equal versions") from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("blobs"), dict):
        raise DataError("data.bad-manifest", f"{path.name} lists no blobs", "use equal versions on all machines")
    return manifest


def listed_blobs(manifest: Mapping[str, Any]) -> set[Digest]:
    return {_checked(digest) for digest in manifest["blobs"].values()}


def train_rows(manifest: Mapping[str, Any]) -> set[Digest]:
    """The arrays of a tokens manifest that training reads: it never moves held-out text."""
    try:
        parts = manifest["splits"]["train"]["parts"]
        return {_checked(part[key]) for part in parts for key in ("rows", "meta") if part["count"]}
    except (KeyError, TypeError, IndexError) as error:
        raise DataError("data.bad-manifest", f"tokens manifest without train parts: {error}", "report it") from None


def _segments_to_do(lease: TrainLease) -> list[Any]:
    return [s for s in lease.segments if s.end_step > lease.head_step and s.start_step < lease.target_step]


async def _fetch_all(wanted: Mapping[Digest, Plane], source: Source, found: dict[Digest, Path]) -> None:
    gate = asyncio.Semaphore(MAX_PARALLEL)

    async def one(digest: Digest, plane: Plane) -> None:
        async with gate:
            found[digest] = await source.get(digest, plane)

    # The first failure cancels the rest: the lease goes back as a whole.
    tasks = [asyncio.ensure_future(one(d, plane)) for d, plane in sorted(wanted.items()) if d not in found]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _checked(text: object) -> Digest:
    if isinstance(text, str) and is_digest(text):
        return Digest(text)
    raise DataError("data.bad-manifest", f"{text!r} is not a digest", "use equal versions on all machines")
