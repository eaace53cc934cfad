"""Blobs between this machine and the coordinator's store."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, wait
from pathlib import Path

from potluck.commands.output import Output
from potluck.formatting import human_bytes
from potluck.ids import Digest
from potluck.net.blobs.client import BlobClient
from potluck.net.blobs.store import BlobStore
from potluck.net.counters import Plane
from potluck.net.identity import Identity


def put_corpus(identity: Identity, scratch: Path, files: Mapping[Digest, Path], output: Output) -> None:
    """Sends document shards and manifest; what the coordinator has already moves nothing.

    Raises:
        PotluckError: as `BlobClient` says; a later call goes on where this one stopped.
    """
    sizes = {digest: path.stat().st_size for digest, path in files.items()}
    total, done_bytes = sum(sizes.values()), 0
    with BlobClient(identity, BlobStore(scratch)) as client, output.timed(f"sending {human_bytes(total)} of text"):
        waiting = {client.put(digest, path, "corpus"): digest for digest, path in files.items()}
        while waiting:
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
                done_bytes += sizes[waiting.pop(future)]
            output.progress(f"sending the text: {done_bytes / max(1, total):.0%}")


def get_blob(identity: Identity, scratch: Path, digest: Digest, plane: Plane) -> Path:
    """Fetches a blob into the scratch store; one that is there moves nothing."""
    with BlobClient(identity, BlobStore(scratch)) as client:
        return client.get(digest, plane).result()
