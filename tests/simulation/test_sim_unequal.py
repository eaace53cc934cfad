"""Worlds whose nodes, or whose runs, are not equal: a slow node costs little, and runs share by weight."""

from __future__ import annotations

import pytest

from coordinator.core.policy import weight
from tests.simulation.programme import smalltalk_spec
from tests.simulation.weather import calm_weather
from tests.simulation.world import World

SEEDS = range(8)


def finished_ms(seed: int, *, num_nodes: int, throttled: bool = False) -> int:
    return World(seed, calm_weather(seed, num_nodes=num_nodes, throttled=throttled)).live()


@pytest.mark.parametrize("num_fast", [1, 2, 3])
def test_a_node_of_a_tenth_of_the_speed_makes_no_world_half_as_long_again(num_fast: int) -> None:
    """Beside the time until the first task of a kind is known to be overdue: nobody can tell sooner."""
    without = [finished_ms(seed, num_nodes=num_fast) for seed in SEEDS]
    beside = [finished_ms(seed, num_nodes=num_fast + 1, throttled=True) for seed in SEEDS]
    assert sum(beside) < 1.5 * sum(without)
    assert [slow for slow, fast in zip(beside, without, strict=True) if slow > 1.5 * fast + 8_000] == []


def test_equal_nodes_are_given_nothing_twice() -> None:
    for seed in SEEDS:
        world = World(seed, calm_weather(seed, num_nodes=4))
        world.live()
        assert not world.checkers.leases.seconds


@pytest.mark.parametrize(
    ("num_nodes", "priority"), [(1, 0), (2, 0), (4, 0), (1, 1), (2, 1), (4, 1), (1, 2)]
)  # a run has three lineages: more of four nodes it could not use
def test_two_runs_share_the_nodes_by_weight(num_nodes: int, priority: int) -> None:
    """Both train experts for long; until the first is done, what each had trained is as their weights are."""
    world = World(1, calm_weather(1, num_nodes=num_nodes))
    first, second = (smalltalk_spec(variant, expert_steps=60) for variant in (0, 2))
    world.specs = {first.id: first, second.id: second}
    world.priorities = {second.id: priority}
    world.live_until_one_has_finished()
    runs = world.hub.machine.durable.runs
    done = [runs[spec.id].weighted_flops * weight(runs[spec.id].priority) for spec in (first, second)]
    assert done[1] / done[0] == pytest.approx(weight(priority), rel=0.25)
