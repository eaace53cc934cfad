"""Two hundred seeded worlds: whatever breaks in them, what was promised is kept."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.simulation.report import branch_counts, failure_text, fault_counts
from tests.simulation.world import Outcome, run_world

NUM_WORLDS = 200
BATCH = 10


@pytest.fixture(scope="module")
def outcomes() -> dict[int, Outcome]:
    """Of the worlds that have been run, by seed."""
    return {}


@pytest.mark.parametrize("first", range(0, NUM_WORLDS, BATCH))
def test_a_disturbed_world_ends_as_the_undisturbed_one(first: int, outcomes: dict[int, Outcome]) -> None:
    for seed in range(first, first + BATCH):
        outcome = outcomes[seed] = run_world(seed)
        assert outcome.violation is None, failure_text(outcome)


def test_every_kind_of_fault_and_every_rare_branch_was_hit(outcomes: dict[int, Outcome]) -> None:
    if len(outcomes) < NUM_WORLDS:
        pytest.skip("only with all worlds in one process")
    marks: Counter[str] = sum((outcome.marks for outcome in outcomes.values()), Counter())
    counts = {**fault_counts(marks), **branch_counts(marks)}
    assert not [name for name, count in counts.items() if count == 0]
    assert marks["crash-node, holding a lease"] > 20, "faults strike those that hold work"


def test_a_seed_tells_the_same_world_again() -> None:
    once, again = run_world(7), run_world(7)
    assert (once.marks, once.finished_ms, once.violation) == (again.marks, again.finished_ms, again.violation)
