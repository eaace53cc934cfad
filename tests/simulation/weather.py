"""What a seed does to its world: which faults there are, how often, in which settings.

Each world has only some of the faults (a world with all of them at once spends its time recovering,
and never comes to the states that lie deep); every twentieth has none, and must then waste nothing.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from coordinator.core.settings import CoreSettings

CALM_EVERY = 20

STRIKES: tuple[str, ...] = (
    "crash-node",
    "freeze-node",
    "freeze-hub",
    "slow-node",
    "isolate-node",
    "isolate-both",
    "cut-up",
    "cut-down",
    "partition",
    "crash-hub",
    "leave-node",
    "drain-hub",
    "cancel-run",
    "break-session",
    "revoke-node",
    "pause-run",
    "drain-node",
)
"""Faults that come from outside, aimed at who holds work."""

POINTS: tuple[str, ...] = (
    "hub-dies-before-handling",
    "hub-dies-before-journalling",
    "hub-dies-before-effects-leave",
    "journal-full",
    "node-dies-with-new-grant",
    "node-dies-with-entry-untold",
    "node-dies-before-drop",
    "worker-fails",
    "inputs-fail",
    "blob-vanishes",
    "put-refused",
    "diverges",
    "other-bits",
)
"""Faults that lie at a point of the logic, by chance each time it is passed."""

PACKETS: tuple[str, ...] = ("lose", "duplicate", "delay")


@dataclass(frozen=True, kw_only=True)
class Weather:
    seed: int
    calm: bool
    num_nodes: int
    variant: int
    two_runs: bool
    settings: CoreSettings
    packets: dict[str, float]
    """Probability by kind, for each packet."""
    points: dict[str, float]
    """Probability by point, each time it is passed."""
    strikes: tuple[str, ...]
    strike_every_ms: int
    storm_ms: int
    """How long the safety phase lasts."""
    throttled: bool
    """Node 0 has a tenth of the others' speed, from first to last."""
    num_hosts: int
    """Machines the nodes run on, in turn."""


def weather_of(seed: int) -> Weather:
    chance = random.Random(seed * 7919 + 1)
    calm = seed % CALM_EVERY == 0
    lease_ms = chance.choice((6_000, 12_000, 30_000))
    strikes = tuple(kind for kind in STRIKES if chance.random() < 0.5) or ("crash-node",)
    packets = {kind: chance.choice((0.02, 0.05, 0.15)) for kind in PACKETS if chance.random() < 0.6}
    points = {kind: _rate(kind, chance) for kind in POINTS if chance.random() < _share(kind)}
    return Weather(
        seed=seed,
        calm=calm,
        num_nodes=chance.randint(2, 4),
        variant=chance.randrange(4),
        two_runs=chance.random() < 0.15,
        settings=CoreSettings(
            lease_ms=lease_ms,
            renew_ms=lease_ms // 3,
            suspect_ms=chance.choice((3_000, 5_000)),
            overdue_ms=chance.choice((8_000, 60_000)),
        ),
        packets={} if calm else packets,
        points={} if calm else points,
        strikes=() if calm else strikes,
        strike_every_ms=chance.choice((1_500, 3_000, 6_000)),
        storm_ms=chance.choice((20_000, 40_000, 60_000)),
        throttled=chance.random() < 0.4,
        num_hosts=chance.choice((2, 4, 4, 4)),
    )


def calm_weather(seed: int, *, num_nodes: int, throttled: bool = False) -> Weather:
    """No faults, no second run, every node on a machine of its own: for worlds that are compared."""
    weather = weather_of(seed)
    return replace(
        weather,
        calm=True,
        num_nodes=num_nodes,
        two_runs=False,
        settings=replace(weather.settings, overdue_ms=8_000),
        packets={},
        points={},
        strikes=(),
        storm_ms=0,
        throttled=throttled,
        num_hosts=num_nodes,
    )


def _share(kind: str) -> float:
    """Part of the worlds that have a point; those that change results make the oracle less strict."""
    return 0.25 if kind in ("diverges", "other-bits") else 0.5


def _rate(kind: str, chance: random.Random) -> float:
    if kind == "other-bits":
        return 0.5  # once a life
    if kind == "diverges":
        return chance.choice((0.2, 0.4, 0.6))  # two nodes must do one task for it to show
    if kind.startswith(("hub", "journal")):
        return chance.choice((0.005, 0.02, 0.04))
    return chance.choice((0.02, 0.06, 0.12))
