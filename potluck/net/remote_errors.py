"""Errors that crossed a wire: back from a stable id to the class it belongs to."""

from __future__ import annotations

from potluck.errors import (
    CorpusError,
    DataError,
    InvariantViolation,
    JoinError,
    NotReachable,
    PotluckError,
    Refused,
    ResourceError,
    SpecError,
    UsageError,
)

CLASS_BY_PREFIX: dict[str, type[PotluckError]] = {
    "spec": SpecError,
    "corpus": CorpusError,
    "join": JoinError,
    "usage": UsageError,
    "net": NotReachable,
    "refused": Refused,
    "resource": ResourceError,
    "data": DataError,
    "bug": InvariantViolation,
}


def error_from_id(error_id: str, message: str, fix: str = "") -> PotluckError:
    cls = CLASS_BY_PREFIX.get(error_id.partition(".")[0], PotluckError)
    return cls(error_id, message, fix)
