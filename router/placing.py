"""Partitions by clusters in memory, to place text with: fetched blob by blob, then loaded in a thread."""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from potluck.errors import DataError, PotluckError
from potluck.ids import Digest, short
from potluck.net.counters import Plane
from sampling.partition import Placer, load_placer, read_partition

Fetch = Callable[[Digest, Plane], Awaitable[Path]]
"""The path of a blob that is complete and on disk, fetched first where needed."""


@dataclass(frozen=True, kw_only=True)
class Files:
    """Blobs that are on disk."""

    paths: Mapping[Digest, Path]
    scratch: Path
    """An existing folder for what is needed while something loads."""

    def path(self, digest: Digest) -> Path:
        return self.paths[digest]


async def fetch_partition(partition: Digest, fetch: Fetch) -> dict[Digest, Path]:
    """Paths of a partition and of all that it lists.

    Raises:
        DataError: ``data.bad-partition``.
        PotluckError: whatever `fetch` raises.
    """
    paths = {partition: await fetch(partition, "corpus")}
    described = read_partition(paths[partition])
    if described.centroids is not None:
        centroids = described.centroids
        for digest in (described.tokenizer, centroids.encoder, *centroids.encoder_files, centroids.tree):
            paths[digest] = await fetch(digest, "corpus")
    return paths


def load_placing(partition: Digest, files: Files) -> Placer:
    """A fetched partition, ready to place text. Blocks.

    Raises:
        DataError: ``data.bad-partition``, ``data.bad-encoder``.
        UsageError: ``usage.cannot-place``: a partition by source.
        ResourceError: ``resource.missing-package``, with the extra that brings it.
    """
    try:
        with tempfile.TemporaryDirectory(dir=files.scratch, prefix="encoder-") as scratch:
            placer = load_placer(files.path(partition), files, Path(scratch))
        # Packages are imported when they are used: what is missing should show now, not at the first request.
        placer.place(["a text"])
    except PotluckError:
        raise
    except (KeyError, ValueError, TypeError, RuntimeError, OSError) as error:
        what = f"partition {short(partition)} cannot be loaded: {error!r}"
        raise DataError("data.bad-partition", what, "use equal versions of potluck on all machines") from error
    return placer
