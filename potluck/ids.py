"""Names of things: digests, canonical JSON, and the ids derived from them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NewType

Digest = NewType("Digest", str)
"""Lowercase hexadecimal SHA-256 of a blob's bytes."""
NodeId = NewType("NodeId", str)
RunId = NewType("RunId", str)
LineageId = NewType("LineageId", str)
TaskId = NewType("TaskId", str)
Fence = NewType("Fence", int)
"""Grows with every grant; names the lease. 0 is no lease."""

Json = None | bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"]

NO_DIGEST = Digest("")
"""The parent of a lineage's first checkpoint."""
DIGEST_LENGTH = 64
READ_BYTES = 1 << 20


def canonical_json(value: Json) -> str:
    """Returns the one JSON text of a value: sorted keys, no spaces, shortest floats, UTF-8.

    Raises:
        ValueError: the value holds a NaN or an infinity, which JSON cannot say.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_bytes(data: bytes | memoryview) -> Digest:
    return Digest(hashlib.sha256(data).hexdigest())


def digest_json(value: Json) -> Digest:
    """Digest of a value's canonical JSON."""
    return digest_bytes(canonical_json(value).encode())


def digest_file(path: Path) -> Digest:
    state = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(READ_BYTES):
            state.update(piece)
    return Digest(state.hexdigest())


def is_digest(text: str) -> bool:
    return len(text) == DIGEST_LENGTH and all(c in "0123456789abcdef" for c in text)


def task_id(kind: str, params: Json, inputs: Mapping[str, Digest]) -> TaskId:
    """A task is what it computes: equal kind, parameters and inputs are one task, across runs too."""
    return TaskId(digest_json({"kind": kind, "params": params, "inputs": dict(inputs)}))


def short(identifier: str) -> str:
    """The first twelve characters, for people."""
    return identifier[:12]
