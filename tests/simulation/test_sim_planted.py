"""The checkers find what is planted."""

from __future__ import annotations

import pytest

from tests.simulation.planted.hunt import hunt, seeds_by_table
from tests.simulation.planted.registry import all_bugs
from tests.simulation.world import run_world

SEEDS = seeds_by_table()


@pytest.mark.parametrize("name", list(SEEDS))
def test_a_planted_bug_is_found(name: str) -> None:
    catch = hunt(name, all_bugs()[name], SEEDS[name])
    assert catch.check, f"{catch.num_worlds} worlds did not show it: {catch.description}"


def test_a_planted_bug_is_gone_afterwards() -> None:
    name, seeds = next(iter(SEEDS.items()))
    catch = hunt(name, all_bugs()[name], seeds)
    assert run_world(catch.seed).violation is None
