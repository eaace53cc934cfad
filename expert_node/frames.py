"""Messages between a node and its child processes: a length, then msgpack. Arrays go by file."""

from __future__ import annotations

import struct
from typing import IO, Any

import msgpack

HEADER = struct.Struct("<I")
MAX_FRAME_BYTES = 16 << 20
"""Far above any command; more is a broken stream."""

Message = dict[str, Any]


def encode(message: Message) -> bytes:
    body: bytes = msgpack.packb(message)
    assert len(body) <= MAX_FRAME_BYTES, len(body)
    return HEADER.pack(len(body)) + body


def decode(body: bytes) -> Message:
    """Raises:
    ValueError: it is no message.
    """
    try:
        message = msgpack.unpackb(body, strict_map_key=False)
    except Exception as error:  # msgpack's exceptions share no base class
        raise ValueError(f"a frame is not msgpack: {error}") from None
    if not isinstance(message, dict):
        raise ValueError(f"a frame holds a {type(message).__name__}")
    return message


def body_length(header: bytes) -> int:
    """Length of the body that follows.

    Raises:
        ValueError: no sane header; the stream is broken.
    """
    (length,) = HEADER.unpack(header)
    if length > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {length} bytes exceeds {MAX_FRAME_BYTES}: the stream is broken")
    return int(length)


def read_frame(stream: IO[bytes]) -> Message | None:
    """Blocks for the next message; None at the end of the stream.

    Raises:
        ValueError: the stream is broken.
    """
    header = stream.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    length = body_length(header)
    body = stream.read(length)
    return decode(body) if len(body) == length else None
