"""What each peer has sent in that nothing names yet: bounded, so that nobody fills the hub's disk.

A blob is claimed when a commit or a result that names it is accepted. One that nobody claims counts against its sender
until the collector may take it; a piece of one counts until it is removed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

from potluck.errors import ResourceError
from potluck.ids import Digest, short

MAX_UNCLAIMED_BYTES = 32 << 30
"""Of one peer: several commits of a model of a billion parameters, optimizer state included."""
WHOLE_COUNTS_MS = 3_600_000
"""A whole blob that nobody claims is the collector's after an hour."""
PIECE_KEPT_MS = 6 * 3_600_000
"""A piece can be continued for so long after its sender was last heard."""


@dataclass(frozen=True, kw_only=True)
class _Sent:
    user: str
    num_bytes: int
    at_ms: int
    whole: bool


class Unclaimed:
    """Used from any thread. Users are public keys; the empty one, which is everybody without CURVE, has no bound."""

    def __init__(self, limit_bytes: int = MAX_UNCLAIMED_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._sent: dict[Digest, _Sent] = {}

    def bytes_of(self, user: str) -> int:
        """What counts against a user now."""
        with self._lock:
            return sum(sent.num_bytes for sent in self._sent.values() if sent.user == user)

    def check(self, user: str, digest: Digest, coming_bytes: int) -> None:
        """Before a blob is taken in.

        Args:
            coming_bytes: the size of this blob and of all others that the user is sending now.

        Raises:
            ResourceError: ``resource.unclaimed``.
        """
        if not user:
            return
        with self._lock:
            known = sum(sent.num_bytes for d, sent in self._sent.items() if sent.user == user and d != digest)
        if known + coming_bytes > self.limit_bytes:
            raise ResourceError(
                "resource.unclaimed",
                f"blob {short(digest)} would bring what this machine has sent and nothing names yet to "
                f"{known + coming_bytes} bytes of {self.limit_bytes}",
                "commit what was sent first, wait an hour, or start the coordinator with a larger --unclaimed-bytes",
            )

    def note(self, user: str, digest: Digest, num_bytes: int, now_ms: int, *, whole: bool) -> None:
        """So many bytes of a blob are on the hub's disk."""
        if user and num_bytes:
            with self._lock:
                self._sent[digest] = _Sent(user=user, num_bytes=num_bytes, at_ms=now_ms, whole=whole)

    def claim(self, digests: Iterable[Digest]) -> None:
        """Something that was accepted names these; or nothing of them is on the disk any more."""
        with self._lock:
            for digest in digests:
                self._sent.pop(digest, None)

    def expired(self, now_ms: int) -> list[Digest]:
        """Forgets whole blobs whose time is over; returns the pieces whose time is, for the caller to remove."""
        with self._lock:
            for digest, sent in list(self._sent.items()):
                if sent.whole and now_ms - sent.at_ms >= WHOLE_COUNTS_MS:
                    del self._sent[digest]
            return [d for d, sent in self._sent.items() if not sent.whole and now_ms - sent.at_ms >= PIECE_KEPT_MS]
