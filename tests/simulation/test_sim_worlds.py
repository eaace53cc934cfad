"""Two hundred seeded worlds: whatever breaks in them, what was promised is kept."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from tests.simulation.report import branch_counts, failure_text, fault_counts
from tests.simulation.world import run_world

NUM_WORLDS = 200
BATCH = 10


@pytest.fixture(scope="module")
def marks_folder(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """One folder for all processes that share the worlds among them."""
    own = tmp_path_factory.getbasetemp()
    folder = (own if worker_id == "master" else own.parent) / "simulated-worlds"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.mark.parametrize("first", range(0, NUM_WORLDS, BATCH))
def test_a_disturbed_world_ends_as_the_undisturbed_one(first: int, marks_folder: Path) -> None:
    marks: Counter[str] = Counter()
    for seed in range(first, first + BATCH):
        outcome = run_world(seed)
        assert outcome.violation is None, failure_text(outcome)
        marks += outcome.marks
    partial = marks_folder / f"{first}.tmp"
    partial.write_text(json.dumps(marks), encoding="utf-8")
    partial.rename(marks_folder / f"{first}.json")
    _whoever_is_last_holds_the_coverage(marks_folder)


def _whoever_is_last_holds_the_coverage(folder: Path) -> None:
    """Every kind of fault and every rare branch was hit, and faults struck those that held work."""
    files = list(folder.glob("*.json"))
    if len(files) < NUM_WORLDS // BATCH:
        return
    marks: Counter[str] = sum((Counter(json.loads(file.read_text())) for file in files), Counter())
    counts = {**fault_counts(marks), **branch_counts(marks)}
    assert not [name for name, count in counts.items() if count == 0]
    assert marks["crash-node, holding a lease"] > 20


def test_a_seed_tells_the_same_world_again() -> None:
    once, again = run_world(7), run_world(7)
    assert (once.marks, once.finished_ms, once.violation) == (again.marks, again.finished_ms, again.violation)
