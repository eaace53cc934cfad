"""Faults from outside, aimed: a fault that strikes an idle node tests nothing, so those that hold work go first."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from coordinator.core import events as hear
from potluck.ids import RunId
from tests.simulation.network import HUB
from tests.simulation.node import Node
from tests.simulation.weather import STRIKES

if TYPE_CHECKING:
    from tests.simulation.world import World

SEEN_MS = 500
"""Until people have seen that a run serves."""
LEFT_TO_WORK = 1
"""Nodes of full speed that are neither revoked nor lost."""


class Strikes:
    def __init__(self, world: World) -> None:
        self._world = world
        self._kernel = world.kernel
        self._chance = world.chance
        self._weather = world.weather
        self._odds = {kind: rate for kind, rate in world.weather.swarm.items() if kind in STRIKES}

    def begin(self) -> None:
        if self._odds:
            self._kernel.after(self._pause_ms(), self._strike)
        if "cancel-run" in self._odds:
            self._kernel.after(SEEN_MS, self._cancel_once_served)

    def _pause_ms(self) -> float:
        return self._chance.expovariate(1 / self._weather.strike_every_ms)

    def _strike(self) -> None:
        if self._world.healed:
            return
        (kind,) = self._chance.choices(list(self._odds), list(self._odds.values()))
        getattr(self, f"_{kind.replace('-', '_')}")()
        self._kernel.after(self._pause_ms(), self._strike)

    # --- on whom ------------------------------------------------------------------------------

    def _victim(self) -> Node | None:
        """A node that holds a lease or an unconfirmed result, if there is one; else any that runs."""
        up = [node for node in self._world.nodes if node.runs]
        busy = [node for node in up if node.machine.fence or node.disk.entries]
        return self._chance.choice(busy or up) if up else None

    def _for_ms(self) -> float:
        """A hiccup, longer than a suspicion, longer than a lease."""
        return self._chance.choice((300, 2_000, 7_000, 15_000, 45_000))

    # --- nodes --------------------------------------------------------------------------------

    def _crash_node(self) -> None:
        node = self._victim()
        if node is not None:
            node.crash("crash-node, holding a lease" if node.machine.fence else "crash-node, idle")

    def _freeze_node(self) -> None:
        node = self._victim()
        if node is not None:
            self._kernel.mark("freeze-node")
            node.freeze(self._for_ms())

    def _slow_node(self) -> None:
        node = self._victim()
        if node is not None:
            self._kernel.mark("slow-node")
            node.slowness = node.throttle * self._chance.choice((1.0, 4.0, 20.0))

    def _leave_node(self) -> None:
        node = self._victim()
        if node is not None:
            self._kernel.mark("leave-node")
            node.stop()

    def _revoke_node(self) -> None:
        node = self._victim()
        if node is None or not self._can_spare(node) or node.name not in self._world.checkers.enrolled:
            return
        self._kernel.mark("revoke-node")
        node.revoked = True
        name = node.name
        self._world.people.ask(lambda now_ms: hear.PeerRevoked(now_ms=now_ms, node=name))

    def _lose_node(self) -> None:
        """Crashes, and never comes back: what it had finished and not told is gone with it."""
        node = self._victim()
        if node is not None and self._can_spare(node):
            node.lost = True
            node.crash("lose-node")

    def _can_spare(self, node: Node) -> bool:
        left = [one for one in self._world.nodes if not one.gone and one is not node and one.throttle == 1.0]
        return not node.gone and len(left) >= LEFT_TO_WORK and self._chance.random() < 0.3

    # --- links --------------------------------------------------------------------------------

    def _isolate_both(self) -> None:
        self._cut(self._some(1), up=True, down=True, kind="isolate-both")

    def _isolate_node(self) -> None:
        """For long: beyond every lease."""
        self._cut(self._some(1), up=True, down=True, kind="isolate-node", for_ms=self._chance.uniform(20_000, 60_000))

    def _cut_up(self) -> None:
        self._cut(self._some(1), up=True, down=False, kind="cut-up")

    def _cut_down(self) -> None:
        self._cut(self._some(1), up=False, down=True, kind="cut-down")

    def _partition(self) -> None:
        """A random half of the nodes."""
        self._cut(self._some(max(1, len(self._world.nodes) // 2)), up=True, down=True, kind="partition")

    def _some(self, count: int) -> list[Node]:
        victim = self._victim()
        others = [node for node in self._world.nodes if node is not victim]
        return ([victim] if victim is not None else []) + self._chance.sample(others, min(count - 1, len(others)))

    def _cut(self, nodes: list[Node], *, up: bool, down: bool, kind: str, for_ms: float | None = None) -> None:
        links = [(node.name, HUB) for node in nodes if up] + [(HUB, node.name) for node in nodes if down]
        if not links:
            return
        self._kernel.mark(kind)
        for_ms = for_ms or self._for_ms()
        for link in links:
            self._world.network.cut(*link)
            self._kernel.after(for_ms, partial(self._world.network.mend, *link))

    def _break_session(self) -> None:
        """A connection is reset: both ends know at once, both processes live on."""
        node = self._victim()
        if node is not None and node.stream is not None and node.stream.open_at_node:
            self._kernel.mark("break-session")
            self._world.break_stream(node.stream, node)

    # --- the hub --------------------------------------------------------------------------------

    def _crash_hub(self) -> None:
        if self._world.hub.alive:
            self._world.hub.die("crash-hub")

    def _freeze_hub(self) -> None:
        if self._world.hub.runs:
            self._kernel.mark("freeze-hub")
            self._world.hub.freeze(self._for_ms())

    def _drain_hub(self) -> None:
        """Stops in good order: drained for a while, then gone, then back."""
        hub = self._world.hub
        if not hub.runs:
            return
        self._kernel.mark("drain-hub")
        hub.submit(hear.DrainRequested(now_ms=hub.now_ms), lambda answer: None)
        life = hub.life
        self._kernel.after(self._for_ms(), lambda: hub.enter(life, lambda: hub.die("hub-stopped-after-drain")))

    def _cancel_run(self) -> None:
        run = self._chance.choice(list(self._world.specs))
        book = self._world.checkers.plans.runs.get(run)
        if book is not None and book.state == "running" and self._chance.random() < 0.5:
            self._cancel(run)

    def _cancel_once_served(self) -> None:
        """Publications come late in a run: blind strikes would never meet one."""
        for run, book in self._world.checkers.plans.runs.items():
            if book.state == "running" and book.slots and not self._world.healed:
                self._cancel(run)
                return
        if not self._world.healed:
            self._kernel.after(SEEN_MS, self._cancel_once_served)

    def _cancel(self, run: RunId) -> None:
        """And takes it up again a while later."""
        self._kernel.mark("cancel-run")
        self._world.people.ask(
            lambda now_ms: hear.RunCancelled(now_ms=now_ms, run=run), wanted=lambda: not self._world.healed
        )
        self._kernel.after(self._for_ms(), lambda: self._world.people.start(run))

    # --- rest -----------------------------------------------------------------------------------

    def _pause_run(self) -> None:
        run = self._chance.choice(list(self._world.specs))
        book = self._world.checkers.plans.runs.get(run)
        if book is not None and book.state == "running":
            self._kernel.mark("pause-run")
            self._world.people.pause(run, self._for_ms())

    def _drain_node(self) -> None:
        node = self._victim()
        if node is not None and node.name in self._world.checkers.enrolled:
            self._kernel.mark("drain-node")
            name = node.name
            self._world.people.rest(
                lambda now_ms: hear.NodeDrained(now_ms=now_ms, node=name),
                lambda now_ms: hear.NodeRestored(now_ms=now_ms, node=name),
                self._for_ms(),
            )
