"""Links that lose, repeat, delay and reorder single packets, and streams that keep their order or break."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable

from coordinator.core.effects import Push
from potluck.ids import NodeId
from tests.simulation.kernel import Action, Kernel
from tests.simulation.weather import Weather

HUB = "hub"
KEEPALIVE_MS = (4_000, 12_000)
"""How long a stream may be dead before its ends notice: it differs by stream."""


class Network:
    """Directed links between the hub and its nodes."""

    def __init__(self, kernel: Kernel, chance: random.Random, weather: Weather) -> None:
        self._kernel = kernel
        self._chance = chance
        self._packets = dict(weather.swarm)
        self._cut: dict[tuple[str, str], int] = {}
        self.streams: list[Stream] = []

    def heal(self) -> None:
        self._packets.clear()
        for link in list(self._cut):
            self._cut[link] = 1
            self.mend(*link)

    def cut(self, a: str, b: str) -> None:
        """Cuts one direction; cuts add up."""
        self._cut[a, b] = self._cut.get((a, b), 0) + 1

    def mend(self, a: str, b: str) -> None:
        left = self._cut.get((a, b), 0) - 1
        if left > 0:
            self._cut[a, b] = left
            return
        self._cut.pop((a, b), None)
        for stream in self.streams:
            stream.flush()

    def passes(self, a: str, b: str) -> bool:
        return (a, b) not in self._cut

    def passes_both(self, a: str, b: str) -> bool:
        return self.passes(a, b) and self.passes(b, a)

    def send(self, a: str, b: str, deliver: Action) -> None:
        """One packet: it comes once, twice, late, or not at all."""
        if not self.passes(a, b):
            self._kernel.mark("packet-into-partition")
            return
        if self._hits("lose"):
            return
        self._kernel.after(self.latency_ms(), deliver)
        if self._hits("duplicate"):
            self._kernel.after(self.latency_ms() + self._chance.choice((0, 50, 2_000, 9_000)), deliver)

    def latency_ms(self) -> float:
        latency = self._chance.uniform(1, 40)
        if self._hits("delay"):
            latency += self._chance.expovariate(1 / 1_500)
        return latency

    def _hits(self, kind: str) -> bool:
        rate = self._packets.get(kind)
        if rate is None or self._chance.random() >= rate:
            return False
        self._kernel.mark(kind)
        return True


class Stream:
    """One session: two ordered directions that stall while their link is cut, and break for good.

    The ends notice a break apart from each other: at once if the peer's process is gone and the way is free,
    after the keep-alive otherwise.
    """

    def __init__(
        self, kernel: Kernel, network: Network, chance: random.Random, node: NodeId, push: Callable[[Push], None]
    ) -> None:
        self._kernel = kernel
        self._network = network
        self._push = push
        self.node = node
        self.boot_id = ""
        self.keepalive_ms = chance.uniform(*KEEPALIVE_MS)
        self.opened_ms = kernel.now_ms
        self.stalled_ms = 0.0
        self.open_at_hub = False
        self.open_at_node = True
        self._queues: dict[bool, deque[Action]] = {True: deque(), False: deque()}
        self._held: dict[bool, int] = {True: 0, False: 0}
        self._last_ms: dict[bool, float] = {True: 0, False: 0}
        network.streams.append(self)

    def up(self, deliver: Action) -> None:
        self._send(True, deliver)

    def down(self, deliver: Action) -> None:
        self._send(False, deliver)

    def push(self, push: Push) -> None:
        """Something the hub has to say to the node, in its turn."""
        self.down(lambda: self._push(push))

    def flush(self) -> None:
        """The way may be free again."""
        for up in (True, False):
            held, self._held[up] = self._held[up], 0
            for _ in range(held):
                self._arrive(up)

    def forget(self) -> None:
        if self in self._network.streams:
            self._network.streams.remove(self)

    def _send(self, up: bool, deliver: Action) -> None:
        """In order: nothing overtakes what was sent before."""
        at_ms = max(self._last_ms[up], self._kernel.now_ms + self._network.latency_ms())
        self._last_ms[up] = at_ms
        self._queues[up].append(deliver)
        self._kernel.after(at_ms - self._kernel.now_ms, lambda: self._arrive(up))

    def _arrive(self, up: bool) -> None:
        if self._is_free(up):
            self._queues[up].popleft()()
        else:
            self._held[up] += 1

    def _is_free(self, up: bool) -> bool:
        return self._network.passes(self.node, HUB) if up else self._network.passes(HUB, self.node)
