"""What benchmarks share that time ways in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence


def seconds_of(way: Callable[[], object]) -> float:
    start = time.perf_counter()
    way()
    return time.perf_counter() - start


def spread(values: Sequence[float]) -> dict[str, float]:
    """A figure as `--json` writes it."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}
