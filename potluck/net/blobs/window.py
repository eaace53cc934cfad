"""How many bytes a receiver asks for ahead: half a second of what it receives.

A fixed window starves the heartbeat beside it on a slow link, or leaves a fast one idle. So bytes in flight follow
the rate of the last second, growing by at most one chunk for each that arrives; chunks are small on slow links.
"""

from __future__ import annotations

from collections import deque

SMALL_CHUNK = 64 << 10
LARGE_CHUNK = 512 << 10
FAST_BYTES_PER_S = 8 << 20
"""Above it the cost per chunk matters more than the time a chunk holds the link (60 ms)."""
HORIZON_MS = 500
RATE_OVER_MS = 1_000
MIN_CHUNKS = 2
MAX_IN_FLIGHT = 8 << 20


class Window:
    """One per connection, shared by the transfers on it. Pure: time is an argument."""

    def __init__(self) -> None:
        self._arrivals: deque[tuple[int, int]] = deque()
        self._recent_bytes = 0
        self._chunk_bytes = SMALL_CHUNK
        self._limit_bytes = MIN_CHUNKS * SMALL_CHUNK

    @property
    def chunk_bytes(self) -> int:
        """How much to ask for at once."""
        return self._chunk_bytes

    @property
    def limit_bytes(self) -> int:
        """How much may be asked for and not here yet."""
        return self._limit_bytes

    def received(self, num_bytes: int, now_ms: int) -> None:
        """Takes note of a chunk."""
        self._arrivals.append((now_ms, num_bytes))
        self._recent_bytes += num_bytes
        while self._arrivals[0][0] <= now_ms - RATE_OVER_MS:
            self._recent_bytes -= self._arrivals.popleft()[1]
        rate_bytes_per_s = self._recent_bytes * 1_000 // RATE_OVER_MS
        self._chunk_bytes = LARGE_CHUNK if rate_bytes_per_s >= FAST_BYTES_PER_S else SMALL_CHUNK
        least = MIN_CHUNKS * self._chunk_bytes
        target = min(MAX_IN_FLIGHT, max(least, rate_bytes_per_s * HORIZON_MS // 1_000))
        self._limit_bytes = max(least, min(target, self._limit_bytes + self._chunk_bytes))
