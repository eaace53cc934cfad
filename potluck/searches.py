"""Which batch sizes and learning rates the recorded searches found, for both sides of a rung.

Each search trained every cell of a grid for the mixture and for its dense twin on one rung of the ladder and
chose by validation NLL. The tables are in `benchmarks/search/`, with the spec that makes them again.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Searched:
    rung: int
    """Of `potluck.sizing.ladder` that was searched."""
    table: str
    """Path in the repository."""
    expert_batch: int
    expert_learning_rate: float
    dense_batch: int
    dense_learning_rate: float


SEARCHES = (
    Searched(
        rung=8,
        table="benchmarks/search/quick.json",
        expert_batch=8,
        expert_learning_rate=2.4e-2,
        dense_batch=16,
        dense_learning_rate=1.2e-2,
    ),
    Searched(
        rung=10,
        table="benchmarks/search/default.json",
        expert_batch=16,
        expert_learning_rate=1.2e-2,
        dense_batch=16,
        dense_learning_rate=6e-3,
    ),
)


def search_for(rung: int) -> Searched:
    """The search on the nearest rung; of two as near, the larger."""
    return min(SEARCHES, key=lambda found: (abs(found.rung - rung), -found.rung))
