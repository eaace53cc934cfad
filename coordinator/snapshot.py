"""A snapshot: the durable state as text, so that a start need not replay all rows; pure.

Its first line says what it is of, then each entry of each table of the state is a line, in the tables' order;
the last line is the SHA-256 of all before it. It is a shortcut and never the truth: rows of the journal are not
deleted for it, and grants are recomputed in a replay. So one that other code wrote is worth nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import coordinator.core
import potluck.config
import potluck.ids
from coordinator import plain_json, wire_events
from coordinator.core.settings import CoreSettings
from coordinator.core.state import DurableState
from coordinator.plain_json import field_readers, reader_of, to_plain
from potluck.config import to_mapping
from potluck.ids import Digest, digest_bytes, digest_json

FORMAT = 1
_STATE_FIELDS = tuple(field.name for field in dataclasses.fields(DurableState))


@dataclass(frozen=True, kw_only=True)
class Mark:
    """The place in a journal that a state belongs to."""

    rows: int
    """How many rows had been handled."""
    last_row: Digest
    """Of the text of the last of them: another journal, or one that was cut off and went on, has another there."""


@dataclass(frozen=True, kw_only=True)
class Header:
    format: int
    code: Digest
    """Of what computed the state: see `code_digest`."""
    mark: Mark


def code_digest(settings: CoreSettings) -> Digest:
    """Of all that decides which state rows lead to: the core's sources and settings, the codecs, the ids."""
    (core,) = coordinator.core.__path__
    modules = (plain_json, wire_events, potluck.config, potluck.ids)
    files = [*sorted(Path(core).glob("*.py")), *(Path(typing.cast(str, m.__file__)) for m in modules), Path(__file__)]
    return digest_json([to_mapping(settings), *(digest_bytes(file.read_bytes()) for file in files)])


def encode(durable: DurableState, mark: Mark, code: Digest) -> Iterator[bytes]:
    """The lines of a snapshot, each with its line feed."""
    state = hashlib.sha256()
    for value in (to_plain(Header(format=FORMAT, code=code, mark=mark)), *_entries(durable)):
        line = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode() + b"\n"
        state.update(line)
        yield line
    yield state.hexdigest().encode() + b"\n"


def read_header(data: bytes) -> Header:
    """What the snapshot says of itself, once it is known to be whole.

    Raises:
        ValueError: it is torn or damaged.
    """
    body = data[: data.rfind(b"\n", 0, -1) + 1]
    if data[len(body) :] != digest_bytes(body).encode() + b"\n":
        raise ValueError("torn or damaged: it does not end in the digest of what is before")
    header: Header = reader_of(Header)(json.loads(body[: body.index(b"\n")]))
    return header


def decode(data: bytes) -> DurableState:
    """The state of a snapshot whose header has been read and found good.

    Raises:
        ValueError: a line is not of the state.
    """
    durable, readers = DurableState(), field_readers(DurableState)
    for line in data.splitlines()[1:-1]:
        name, raw = json.loads(line)
        if name not in readers:
            raise ValueError(f"{name!r} is no part of the state")
        value = readers[name](raw)
        if isinstance(value, dict):
            getattr(durable, name).update(value)
        else:
            setattr(durable, name, value)
    return durable


def _entries(durable: DurableState) -> Iterator[object]:
    for name in _STATE_FIELDS:
        value = getattr(durable, name)
        if isinstance(value, dict):
            yield from ([name, to_plain({key: item})] for key, item in value.items())
        else:
            yield [name, to_plain(value)]
