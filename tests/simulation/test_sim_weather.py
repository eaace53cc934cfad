"""What a thousand seeds draw: a swarm of faults in which none masks another for ever, and runs of every method."""

from __future__ import annotations

from itertools import combinations

from tests.simulation.programme import METHODS
from tests.simulation.weather import CALM_EVERY, KINDS, weather_of

WEATHERS = [weather_of(seed) for seed in range(1000)]


def test_each_fault_is_alone_somewhere_and_meets_each_other_one() -> None:
    swarms = [tuple(weather.swarm) for weather in WEATHERS]
    assert {swarm[0] for swarm in swarms if len(swarm) == 1} == set(KINDS)
    assert {pair for swarm in swarms for pair in combinations(swarm, 2)} == set(combinations(KINDS, 2))


def test_a_world_without_faults_comes_round_regularly() -> None:
    assert [weather.seed for weather in WEATHERS if not weather.swarm] == list(range(0, 1000, CALM_EVERY))


def test_every_method_runs_alone_and_beside_every_other() -> None:
    methods = {weather.programme.methods for weather in WEATHERS}
    assert {(one,) for one in METHODS} <= methods
    assert {frozenset(pair) for pair in methods if len(pair) == 2} >= {
        frozenset(pair) for pair in combinations(set(METHODS), 2)
    }
