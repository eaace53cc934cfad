"""What a seed does to its world: which faults there are, how often, in which settings.

Swarm testing (Groce et al., "Swarm Testing", ISSTA 2012): no world has all faults, for some mask others (a node that
crashes all the time is never seen to be slow). Each draws how many kinds it has, from one alone to two thirds of all,
then which, then how hard each strikes. Every twentieth world has none, and must then waste nothing.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace

from coordinator.core.settings import CoreSettings
from tests.simulation.programme import NUM_VARIANTS, Programme, programme_of, smalltalk_spec

CALM_EVERY = 20
LATEST_MS = 30_000
"""When the last node of a world has joined."""

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
    "lose-node",
    "pause-run",
    "drain-node",
)
"""Faults that come from outside, aimed at who holds work."""

POINTS: tuple[str, ...] = (
    "hub-dies-before-handling",
    "hub-dies-before-journalling",
    "hub-dies-before-effects-leave",
    "journal-full",
    "hub-dies-in-mid-snapshot",
    "snapshot-damaged",
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

KINDS: tuple[str, ...] = (*PACKETS, *STRIKES, *POINTS)
SIZES: tuple[int, ...] = (1, 2, 3, 4, 6, 9, 12, 16, 20, 24)
"""How many kinds a world has, drawn from these."""


@dataclass(frozen=True, kw_only=True)
class Weather:
    seed: int
    calm: bool
    num_nodes: int
    programme: Programme
    settings: CoreSettings
    swarm: Mapping[str, float]
    """The kinds of faults there are, and how hard each strikes.

    Of packets and points the probability, each time one is passed; of strikes the odds against the others.
    """
    strike_every_ms: int
    storm_ms: int
    """How long the safety phase lasts."""
    throttled: bool
    """Node 0 has a tenth of the others' speed, from first to last."""
    num_hosts: int
    """Machines the nodes run on, in turn."""
    snapshot_rows: int
    """Rows of the hub's journal from one snapshot to the next."""
    collect_every_ms: int
    """From one collection of the hub's blobs to the next; 0: there is room for all."""
    late_ms: int
    """When the last node enrols and starts; 0: with the others."""

    def told(self) -> str:
        """For people: what there was in this world."""
        faults = ", ".join(f"{kind} {rate:g}" for kind, rate in self.swarm.items()) or "none"
        runs = " and ".join(self.programme.methods)
        nodes = f"{self.num_nodes} nodes on {min(self.num_hosts, self.num_nodes)} machines"
        slow = ", node 0 slow" if self.throttled else ""
        late = f", the last one from {self.late_ms / 1000:.1f} s" if self.late_ms else ""
        return f"runs: {runs}; {nodes}{slow}{late}\nswarm: {faults}"


def weather_of(seed: int) -> Weather:
    chance = random.Random(seed * 7919 + 1)
    calm = seed % CALM_EVERY == 0
    lease_ms = chance.choice((6_000, 12_000, 30_000))
    storm_ms = chance.choice((20_000, 60_000, 120_000))
    swarm = _swarm(chance)
    return Weather(
        seed=seed,
        calm=calm,
        num_nodes=chance.randint(2, 4),
        programme=programme_of(chance),
        settings=CoreSettings(
            lease_ms=lease_ms,
            renew_ms=lease_ms // 3,
            suspect_ms=chance.choice((3_000, 5_000)),
            overdue_ms=chance.choice((8_000, 60_000)),
        ),
        swarm={} if calm else swarm,
        strike_every_ms=chance.choice((1_500, 3_000, 6_000)),
        storm_ms=storm_ms,
        throttled=chance.random() < 0.4,
        num_hosts=chance.choice((2, 4, 4, 4)),
        snapshot_rows=chance.choice((10, 40, 120)),
        late_ms=chance.randint(2_000, LATEST_MS) if chance.random() < 0.25 else 0,
        collect_every_ms=chance.choice((0, 500, 3_000)),
    )


def calm_weather(seed: int, *, num_nodes: int, throttled: bool = False) -> Weather:
    """No faults, one run, every node there from the start on a machine of its own: for worlds that are compared."""
    weather = weather_of(seed)
    return replace(
        weather,
        calm=True,
        num_nodes=num_nodes,
        programme=Programme(specs=(smalltalk_spec(seed % NUM_VARIANTS),)),
        settings=replace(weather.settings, overdue_ms=8_000),
        swarm={},
        storm_ms=0,
        throttled=throttled,
        num_hosts=num_nodes,
        late_ms=0,
    )


def _swarm(chance: random.Random) -> dict[str, float]:
    drawn = set(chance.sample(KINDS, chance.choice(SIZES)))
    return {kind: _rate(kind, chance) for kind in KINDS if kind in drawn}


def _rate(kind: str, chance: random.Random) -> float:
    if kind in STRIKES:
        return chance.choice((1.0, 2.0, 4.0))
    if kind == "other-bits":
        return 0.5  # once a life
    if kind == "diverges":
        return chance.choice((0.2, 0.4, 0.6))  # two nodes must do one task for it to show
    if kind in ("hub-dies-in-mid-snapshot", "snapshot-damaged"):
        return chance.choice((0.1, 0.3, 0.6))  # few are taken
    if kind.startswith(("hub", "journal")):
        return chance.choice((0.01, 0.04, 0.12))
    return chance.choice((0.02, 0.08, 0.25))
