"""Pauses between attempts: they grow, have a cap, and are spread so that nodes do not dial in step."""

from __future__ import annotations

import asyncio
import random

FIRST_SECONDS = 0.25
MOST_SECONDS = 5.0


class Backoff:
    """Counts failures in a row."""

    def __init__(self) -> None:
        self.failures = 0

    def reset(self) -> None:
        self.failures = 0

    def next_seconds(self) -> float:
        """The pause after one failure more: doubles to the cap, then half to all of it."""
        pause: float = min(FIRST_SECONDS * 2.0**self.failures, MOST_SECONDS)
        self.failures += 1
        return pause * random.uniform(0.5, 1.0)

    async def pause(self) -> None:
        await asyncio.sleep(self.next_seconds())
