"""How many bytes crossed a machine border, by plane and direction."""

from __future__ import annotations

import threading
from typing import Literal

Plane = Literal["control", "corpus", "scores", "weights"]
Direction = Literal["in", "out"]
PLANES: tuple[Plane, ...] = ("control", "corpus", "scores", "weights")
DATA_PLANES: tuple[Plane, ...] = ("corpus", "scores", "weights")


class ByteCounter:
    """Counts from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bytes: dict[Plane, dict[Direction, int]] = {plane: {"in": 0, "out": 0} for plane in PLANES}

    def add(self, plane: Plane, direction: Direction, num_bytes: int) -> None:
        with self._lock:
            self._bytes[plane][direction] += num_bytes

    def snapshot(self) -> dict[Plane, dict[Direction, int]]:
        """A copy: ``{"control": {"in": 10, "out": 20}, ...}``, every plane present."""
        with self._lock:
            return {plane: dict(counts) for plane, counts in self._bytes.items()}

    def total(self, direction: Direction) -> int:
        with self._lock:
            return sum(counts[direction] for counts in self._bytes.values())
