"""The checkers find what is planted."""

from __future__ import annotations

import pytest

from tests.simulation.planted.hunt import default_seeds, hunt
from tests.simulation.planted.registry import all_bugs
from tests.simulation.world import run_world


@pytest.mark.parametrize("name", list(all_bugs()))
def test_a_planted_bug_is_found(name: str) -> None:
    catch = hunt(name, all_bugs()[name], default_seeds())
    assert catch.check, f"{catch.num_worlds} worlds did not show it: {catch.description}"


def test_a_planted_bug_is_gone_afterwards() -> None:
    name, bug = next(iter(all_bugs().items()))
    catch = hunt(name, bug, default_seeds())
    assert run_world(catch.seed).violation is None
