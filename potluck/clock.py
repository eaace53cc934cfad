"""Time as an argument: a clock is passed in, so that tests turn it by hand."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    def monotonic_ms(self) -> int:
        """Milliseconds that never run backwards; their zero means nothing."""

    def unix_ms(self) -> int:
        """Milliseconds since 1970, for certificates and people; may jump."""


class SystemClock:
    def monotonic_ms(self) -> int:
        return time.monotonic_ns() // 1_000_000

    def unix_ms(self) -> int:
        return time.time_ns() // 1_000_000


class ManualClock:
    """The twin for tests: stands still until told."""

    def __init__(self, now_ms: int = 0) -> None:
        self.now_ms = now_ms

    def monotonic_ms(self) -> int:
        return self.now_ms

    def unix_ms(self) -> int:
        return 1_700_000_000_000 + self.now_ms

    def advance(self, by_ms: int) -> None:
        self.now_ms += by_ms
