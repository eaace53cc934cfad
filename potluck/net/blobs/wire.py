"""The data plane's messages: a msgpack map, and for a chunk one raw frame behind it. Pure.

The receiver of the bytes asks for each piece, in both directions, so that it alone governs what is in flight:

    get   client -> Get(offset, length)   server -> Chunk          ...until the size is reached
    put   client -> Put(size)             server -> Want(offset, length) | Done | Wait | No
          client -> Chunk                 server -> Want ... Done

The first `Want` says from which offset the server needs the blob; `Done` at once says it has it already. `Wait` says
another client is sending the same blob. Every message names a transfer; after a silence the client goes on under a
new number, which tells stale chunks apart. `Doubt` says a blob arrived damaged twice: the server hashes its copy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgpack

from potluck.ids import Digest, is_digest
from potluck.net.blobs.window import LARGE_CHUNK
from potluck.net.counters import DATA_PLANES, Plane

MAX_HEADER_BYTES = 8 << 10
MAX_MESSAGE_BYTES = LARGE_CHUNK + MAX_HEADER_BYTES
"""ZeroMQ drops a connection that sends a larger frame."""
SHA_BYTES = 32
MAX_SIZE_BYTES = 1 << 50


@dataclass(frozen=True, kw_only=True)
class Get:
    transfer: int
    digest: Digest
    offset: int
    length: int
    plane: Plane


@dataclass(frozen=True, kw_only=True)
class Put:
    transfer: int
    digest: Digest
    size: int
    plane: Plane


@dataclass(frozen=True, kw_only=True)
class Chunk:
    transfer: int
    offset: int
    size: int
    """Of the whole blob."""
    sha256: bytes
    payload: bytes | memoryview


@dataclass(frozen=True, kw_only=True)
class Want:
    transfer: int
    offset: int
    length: int


@dataclass(frozen=True, kw_only=True)
class Done:
    transfer: int


@dataclass(frozen=True, kw_only=True)
class Wait:
    transfer: int


@dataclass(frozen=True, kw_only=True)
class No:
    transfer: int
    error_id: str
    message: str
    fix: str


@dataclass(frozen=True, kw_only=True)
class Forget:
    """The client no longer wants to put."""

    transfer: int


@dataclass(frozen=True, kw_only=True)
class Doubt:
    transfer: int
    digest: Digest


Message = Get | Put | Chunk | Want | Done | Wait | No | Forget | Doubt
_CLASSES: dict[str, type[Any]] = {
    "get": Get, "put": Put, "chunk": Chunk, "want": Want, "done": Done,
    "wait": Wait, "no": No, "forget": Forget, "doubt": Doubt,
}  # fmt: skip
_NAMES = {cls: name for name, cls in _CLASSES.items()}
_FIELDS = {cls: {f.name: f.type for f in dataclasses.fields(cls) if f.name != "payload"} for cls in _CLASSES.values()}
_PLAIN = {"int": int, "str": str, "bytes": bytes, "Digest": str, "Plane": str}


def encode(message: Message) -> list[bytes | memoryview]:
    """Frames of a message."""
    cls = type(message)
    header = {name: getattr(message, name) for name in _FIELDS[cls]}
    frames: list[bytes | memoryview] = [msgpack.packb({"t": _NAMES[cls], **header})]
    if isinstance(message, Chunk):
        frames.append(message.payload)
    return frames


def decode(frames: Sequence[bytes | memoryview]) -> Message:
    """The message of some frames.

    Raises:
        ValueError: the bytes are no message of ours; nothing in them is to be believed.
    """
    if not 1 <= len(frames) <= 2 or len(frames[0]) > MAX_HEADER_BYTES:
        raise ValueError(f"{len(frames)} frames, the first of {len(frames[0]) if frames else 0} bytes")
    try:
        header = msgpack.unpackb(frames[0])
    except Exception as error:  # msgpack's exceptions share no base class
        raise ValueError(f"header is not msgpack: {error}") from None
    name_sent = header.pop("t", None) if isinstance(header, dict) else None
    cls = _CLASSES.get(name_sent) if isinstance(name_sent, str) else None
    if cls is None:
        raise ValueError("header names no known message")
    fields = _FIELDS[cls]
    if header.keys() != fields.keys():
        raise ValueError(f"{_NAMES[cls]} has the fields {sorted(map(str, header))}")
    for name, kind in fields.items():
        _check(name, str(kind), header[name])
    if (cls is Chunk) != (len(frames) == 2):
        raise ValueError(f"{_NAMES[cls]} in {len(frames)} frames")
    if cls is Chunk:
        return Chunk(payload=frames[1], **header)
    message: Message = cls(**header)
    return message


def _check(name: str, kind: str, value: Any) -> None:
    plain: type[Any] = type(value)
    if plain is not _PLAIN[kind]:
        raise ValueError(f"{name} is a {type(value).__name__}")
    if kind == "int" and not 0 <= value <= MAX_SIZE_BYTES:
        raise ValueError(f"{name} = {value}")
    if kind == "Digest" and not is_digest(value):
        raise ValueError(f"{name} is no digest")
    if kind == "Plane" and value not in DATA_PLANES:
        raise ValueError(f"{name} = {value!r}")
    if kind == "bytes" and len(value) != SHA_BYTES:
        raise ValueError(f"{name} of {len(value)} bytes")
