"""What goes over the pipes of the averaging sidecar: one request, then events, each a line of JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass

from potluck.config import from_mapping, to_mapping
from potluck.errors import DataError, NotReachable, PotluckError, Refused, ResourceError, UsageError
from potluck.ids import is_digest
from potluck.jsontext import read_json

MAX_LINE_BYTES = 64 << 10
"""A request is paths and a few addresses; more is a broken stream."""
MAX_PEERS = 64
"""The acceptance rule's bound on rounding is derived for no more."""


@dataclass(frozen=True, kw_only=True)
class AverageRequest:
    """Average the tensors of one file with those of the `num_peers - 1` others that name the same round.

    Raises:
        UsageError: ``usage.bad-averaging``, a value that cannot be meant.
    """

    round_key: str
    """64 hexadecimal digits that name the round. Who knows them and reaches a peer's address can join the group."""
    index: int
    """Which peer this is, 0 to `num_peers` - 1."""
    num_peers: int
    tensors: str
    """Path of a safetensors file, all float32; the same names and shapes at every peer."""
    output: str
    """Path of the safetensors file to write: the same names, averaged. It appears whole or not at all."""
    scratch: str
    """A folder for sockets, removed by whoever started the sidecar."""
    listen_host: str
    """Address of this machine that the other peers reach, e.g. 127.0.0.1 or one of the local network."""
    listen_port: int = 0
    """0 takes any."""
    initial_peers: tuple[str, ...] = ()
    """Addresses as a `Listening` event tells them; empty for the peer that the others are told of."""
    deadline_s: float = 60.0
    """Seconds from the request until the averaging fails."""

    def __post_init__(self) -> None:
        if not is_digest(self.round_key):
            raise _bad("round_key", self.round_key, "64 lowercase hexadecimal digits")
        if not 2 <= self.num_peers <= MAX_PEERS:
            raise _bad("num_peers", self.num_peers, f"2 to {MAX_PEERS}")
        if not 0 <= self.index < self.num_peers:
            raise _bad("index", self.index, f"0 to {self.num_peers - 1}")
        if not self.deadline_s > 0:
            raise _bad("deadline_s", self.deadline_s, "seconds above 0")

    def to_line(self) -> bytes:
        return _line(to_mapping(self))

    @staticmethod
    def from_line(line: bytes) -> AverageRequest:
        """Raises:
        ValueError: it is no request.
        """
        return from_mapping(AverageRequest, read_json(line))


@dataclass(frozen=True, kw_only=True)
class Listening:
    """The sidecar can be met at these addresses (libp2p multiaddresses that end in its identity)."""

    addresses: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Averaged:
    """hivemind says that it averaged and the output file is there. That is a claim: `accept` decides."""

    seconds: float
    """From the request to the last tensor."""


@dataclass(frozen=True, kw_only=True)
class Failed:
    """Nothing was averaged here, and there is no output file."""

    error_id: str
    message: str
    fix: str

    @staticmethod
    def of(error: PotluckError) -> Failed:
        return Failed(error_id=error.error_id, message=error.message, fix=error.fix)

    def as_error(self) -> PotluckError:
        kind, _, _ = self.error_id.partition(".")
        return ERRORS.get(kind, PotluckError)(self.error_id, self.message, self.fix)


Event = Listening | Averaged | Failed
EVENTS: dict[str, type[Listening] | type[Averaged] | type[Failed]] = {
    "listening": Listening,
    "averaged": Averaged,
    "failed": Failed,
}
ERRORS: dict[str, type[PotluckError]] = {
    "data": DataError,
    "net": NotReachable,
    "refused": Refused,
    "resource": ResourceError,
    "usage": UsageError,
}


def event_line(event: Event) -> bytes:
    name = next(name for name, cls in EVENTS.items() if isinstance(event, cls))
    return _line({"event": name, **to_mapping(event)})


def event_from_line(line: bytes) -> Event:
    """Raises:
    ValueError: it is no event.
    """
    raw = read_json(line)
    if not isinstance(raw, dict) or raw.get("event") not in EVENTS:
        raise ValueError(f"no event of the averaging sidecar: {line[:200]!r}")
    return from_mapping(EVENTS[raw.pop("event")], raw)


def _line(value: dict[str, object]) -> bytes:
    line = json.dumps(value).encode() + b"\n"
    assert len(line) <= MAX_LINE_BYTES, len(line)
    return line


def _bad(name: str, value: object, allowed: str) -> UsageError:
    return UsageError("usage.bad-averaging", f"{name} = {value!r} of a request to average", f"give {allowed}")
