"""Worlds with a bug planted, one after the other, until a check fails."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.simulation.planted.bug import Bug
from tests.simulation.world import run_world

MAX_WORLDS = 60
"""Within so many worlds each bug must be found: a fraction of what the suite runs."""
FIRST_SEED = 1
UNIT_TESTS = ("test_core_*.py", "test_node_machine.py", "test_node_outbox.py")

TITLE = """# Planted bugs

Each is a small replacement of one function of the product (`planted/known.py`, `planted/blind_bugs.py`), planted in
worlds of the simulator one seed after the other until a check fails. `python -m tests.simulation --planted` writes
this table; `python -m tests.simulation --seed N --plant NAME` tells how a bug shows.

"""
LESSONS = """
## What the blind ones taught

When they were first tried, three of five were found. `late-result-advances-nobody` hid because the world started every
run again when the storm was over, which nudges a plan that nobody advances: now only cancelled runs are started again.
`finished-too-late-is-dropped` hid because the simulated worker stopped at once: now it takes its step to the end, a
task may be done before it notices the stop, and the disk takes its time, as the real ones do.
"""


@dataclass(frozen=True, kw_only=True)
class Catch:
    name: str
    description: str
    check: str
    """Empty if no world showed it."""
    seed: int
    num_worlds: int


def hunt(name: str, bug: Bug, seeds: Iterable[int]) -> Catch:
    count, seed = 0, 0
    for seed in seeds:
        count += 1
        with bug.plant():
            outcome = run_world(seed)
        if outcome.violation is not None:
            return Catch(name=name, description=bug.description, check=outcome.check, seed=seed, num_worlds=count)
    return Catch(name=name, description=bug.description, check="", seed=seed, num_worlds=count)


def hunt_all(bugs: Mapping[str, Bug], blind: Mapping[str, Bug]) -> dict[str, list[Catch]]:
    """By section: bugs of the simulator's author, and of somebody who had not seen it."""
    sections: dict[str, list[Catch]] = {"Planted by the author of the checkers": [], "Planted blind": []}
    for name, bug in bugs.items():
        section = "Planted blind" if name in blind else "Planted by the author of the checkers"
        sections[section].append(hunt(name, bug, default_seeds()))
    return {section: found for section, found in sections.items() if found}


def unit_tests_with(name: str) -> str:
    """How the unit tests of the core and the node's machine fare with the bug in."""
    root = Path(__file__).resolve().parents[3]
    tests = sorted(str(path) for pattern in UNIT_TESTS for path in (root / "tests" / "unit").glob(pattern))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.simulation.planted.plugin", "--plant", name, *tests]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    return "pass" if done.returncode == 0 else done.stdout.strip().splitlines()[-1]


def default_seeds() -> range:
    return range(FIRST_SEED, FIRST_SEED + MAX_WORLDS)


def table(catches: Mapping[str, list[Catch]], unit_tests: Mapping[str, str]) -> str:
    """Markdown, by section; `unit_tests` says by name how the unit tests fared with the bug in."""
    parts: list[str] = []
    for section, found in catches.items():
        rows = [
            f"| `{one.name}` | {one.description} | `{one.check or 'not found'}` | {one.num_worlds} (seed {one.seed}) "
            f"| {unit_tests.get(one.name, 'not run')} |"
            for one in found
        ]
        head = ["| bug | what it does | found by | worlds until then | unit tests with it |", "|---|---|---|---|---|"]
        parts.append("\n".join([f"## {section}", "", *head, *rows]))
    return TITLE + "\n\n".join(parts) + "\n" + LESSONS
