"""Simulated time: a heap of what happens when. Ties break by the order in which they were put in."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable

Action = Callable[[], None]


class Kernel:
    def __init__(self) -> None:
        self.now_ms = 0
        self.marks: Counter[str] = Counter()
        """How often each fault and each rare branch was hit."""
        self._heap: list[tuple[int, int, Action]] = []
        self._count = 0

    def after(self, delay_ms: float, action: Action) -> None:
        self._count += 1
        heapq.heappush(self._heap, (self.now_ms + max(0, int(delay_ms)), self._count, action))

    def run(self, until_ms: int, is_done: Callable[[], bool]) -> bool:
        """Lets time pass until something holds, at most to `until_ms`; says whether it held."""
        while self._heap and self._heap[0][0] <= until_ms:
            self.now_ms, _, action = heapq.heappop(self._heap)
            action()
            if is_done():
                return True
        self.now_ms = max(self.now_ms, until_ms)
        return is_done()

    def mark(self, what: str) -> None:
        self.marks[what] += 1
