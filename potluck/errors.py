"""Everything that can go wrong, as one tree with stable ids.

    PotluckError
    ├── UserError            the person can mend it              exit 2
    │   ├── SpecError        spec.*    a run spec says something impossible
    │   ├── CorpusError      corpus.*  text is missing, empty or unreadable
    │   ├── JoinError        join.*    a join string or certificate is refused
    │   └── UsageError       usage.*   a command was called wrongly
    ├── NotReachable         net.*     a peer does not answer     exit 3
    ├── Refused              refused.* a peer said no             exit 4
    ├── ResourceError        resource.* disk, memory, port, quota exit 5
    ├── DataError            data.*    bytes are not what their digest says; exit 6
    └── InvariantViolation   bug.*     our mistake                exit 70

An error is raised with an id such as ``spec.unknown-key``, a message that says what, where and
what the value was, and a fix that says what to do. The id is stable: programs may match it.
"""

from __future__ import annotations

from typing import ClassVar


class PotluckError(Exception):
    exit_code: ClassVar[int] = 1
    grpc_status: ClassVar[str] = "INTERNAL"
    """Name of the grpc.StatusCode; a string, so that this module needs no grpc."""

    def __init__(self, error_id: str, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.error_id = error_id
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"[{self.error_id}] {self.message}" + (f"\n  fix: {self.fix}" if self.fix else "")


class UserError(PotluckError, ValueError):
    exit_code = 2
    grpc_status = "INVALID_ARGUMENT"


class SpecError(UserError):
    """A run spec that cannot be run."""


class CorpusError(UserError):
    """Text that is missing, empty or unreadable; names file and line."""


class UsageError(UserError):
    """A command called with arguments that do not go together."""


class JoinError(UserError):
    grpc_status = "PERMISSION_DENIED"


class NotReachable(PotluckError):
    exit_code = 3
    grpc_status = "UNAVAILABLE"


class Refused(PotluckError):
    exit_code = 4
    grpc_status = "FAILED_PRECONDITION"


class ResourceError(PotluckError):
    exit_code = 5
    grpc_status = "RESOURCE_EXHAUSTED"


class DataError(PotluckError):
    exit_code = 6
    grpc_status = "DATA_LOSS"


class InvariantViolation(PotluckError, AssertionError):
    exit_code = 70
    grpc_status = "INTERNAL"
