"""One seeded world: a hub, a few nodes, a storm of faults, and then good weather in which the runs must finish."""

from __future__ import annotations

import random
import traceback
from collections import Counter
from dataclasses import dataclass
from functools import cache, partial

from potluck.ids import LineageId, RunId
from potluck.specs.run import RunSpec
from tests.simulation.checkers import Checkers
from tests.simulation.hub import Hub
from tests.simulation.kernel import Kernel
from tests.simulation.network import HUB, Network, Stream
from tests.simulation.node import Node
from tests.simulation.oracle import Undisturbed, undisturbed
from tests.simulation.people import People
from tests.simulation.snapshot import snapshot_of
from tests.simulation.story import Violation
from tests.simulation.strikes import Strikes
from tests.simulation.weather import Weather, weather_of

SUPERVISE_MS = 500
LIVENESS_MS = 240_000
"""Simulated time that a healed world has for the rest of its runs; undisturbed they take a quarter of it."""
SETTLE_MS = 60_000
"""And then for nodes to deliver or drop what is left."""
TAKE_UP_AGAIN_MS = 2_000
THROTTLED = 10.0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    seed: int
    weather: Weather
    marks: Counter[str]
    violation: Violation | None
    raised: str
    """The traceback, if the product raised."""
    story: str
    finished_ms: int

    @property
    def check(self) -> str:
        return self.violation.check if self.violation is not None else ""


class World:
    def __init__(self, seed: int, weather: Weather | None = None) -> None:
        self.weather = weather or weather_of(seed)
        self.kernel = Kernel()
        self.chance = random.Random(seed)
        self.checkers = Checkers(self.kernel, self.weather.settings)
        self.network = Network(self.kernel, self.chance, self.weather)
        self.hub = Hub(self.kernel, self.chance, self.weather, self.checkers, self._hub_died)
        self.healed = False
        self._failures_left: dict[str, int] = {}
        self.nodes = [self._node(index) for index in range(self.weather.num_nodes)]
        first, *others = self.weather.programme.specs
        self.specs = {first.id: first}
        """Those that were started."""
        self._waiting = others
        self.priorities: dict[RunId, int] = {spec.id: self.weather.programme.priority for spec in others}
        """Of runs that have another one than 0."""
        self.people = People(self)
        self.strikes = Strikes(self)

    # --- phases ---------------------------------------------------------------------------------

    def live(self) -> int:
        """Runs the world to its end; returns the simulated time at which its runs had finished.

        Raises:
            Violation: of the check that saw it.
        """
        self._begin()
        for spec in self._waiting:
            self.kernel.after(self.chance.uniform(2_000, 10_000), partial(self._start_another, spec))
        self.strikes.begin()
        self.kernel.run(self.weather.storm_ms, self._all_finished)
        self._heal()
        limit_ms = self.kernel.now_ms + LIVENESS_MS
        if not self.kernel.run(limit_ms, self._all_finished):
            raise Violation("runs-finish", f"not after {LIVENESS_MS} ms of good weather: {self._where_it_hangs()}")
        finished_ms = self.kernel.now_ms
        if not self.kernel.run(finished_ms + SETTLE_MS, self._is_settled):
            raise Violation("worlds-settle", self._where_it_hangs())
        self.kernel.run(self.kernel.now_ms + SETTLE_MS // 10, lambda: False)  # what is on its way arrives
        self.kernel.run(self.kernel.now_ms + SETTLE_MS, lambda: self.hub.is_quiet)
        self._last_checks()
        return finished_ms

    def live_until_one_has_finished(self) -> None:
        """Runs a world without faults, all its runs from the beginning, until the first of them has finished."""
        self._begin()
        for run in list(self.specs)[1:]:
            self.people.start(run)
        runs = self.checkers.plans.runs
        assert self.kernel.run(10 * LIVENESS_MS, lambda: any(book.state == "finished" for book in runs.values()))

    def _begin(self) -> None:
        self.hub.start()
        first = next(iter(self.specs))
        late = self.nodes[-1] if self.weather.late_ms else None
        for node in self.nodes:
            if node is not late:
                self.people.enrol(node)
        self.people.start(first)
        self.people.steer(first)
        for node in self.nodes:
            if node is late:
                self.kernel.after(self.weather.late_ms, partial(self._join, node))
            else:
                self.kernel.after(self.chance.uniform(0, 2_000), node.start)
        self.kernel.after(SUPERVISE_MS, self._supervise)

    def _heal(self) -> None:
        self.healed = True
        self.network.heal()
        self.hub.points.clear()
        for process in (self.hub, *self.nodes):
            while process.frozen:
                process.thaw()
        for node in self.nodes:
            node.points.clear()
            node.slowness = node.throttle
        self._take_up_again()

    def _take_up_again(self) -> None:
        """A cancelled run is started again; a running one needs nobody to nudge it."""
        for run in self.specs:
            book = self.checkers.plans.runs.get(run)
            if book is not None and book.state == "cancelled":
                self.people.start(run)
        self.kernel.after(TAKE_UP_AGAIN_MS, self._take_up_again)

    def _last_checks(self) -> None:
        self.checkers.look(snapshot_of(self.hub.machine.state))
        self.hub.compare_replay([])
        book = self.checkers.results
        totals: dict[LineageId, int] = {}
        for run, spec in self.specs.items():
            entries = self.checkers.steering.entries(run)
            special = book.odd_results or book.odd_links or entries
            oracle = undisturbed(spec, book.odd_results, book.odd_links, entries) if special else _oracle(spec)
            self.checkers.ended(run, oracle)
            live = [node.name for node in self.nodes if node.alive]
            self.checkers.served(run, oracle.slots, live, self.weather.settings.serve_replicas)
            totals |= {one: chain[-1].end_step for one, chain in oracle.chains.items()}
        if self.weather.calm:
            self.checkers.calm(totals, [node.name for node in self.nodes if node.throttle > 1])

    # --- who is there -----------------------------------------------------------------------------

    def _node(self, index: int) -> Node:
        node = Node(
            f"node-{index}",
            kernel=self.kernel,
            network=self.network,
            hub=self.hub,
            chance=self.chance,
            points=dict(self.weather.swarm),
            checkers=self.checkers,
            failures_left=self._failures_left,
            host=f"host-{index % self.weather.num_hosts}",
            throttle=THROTTLED if self.weather.throttled and index == 0 else 1.0,
        )
        node.on_end = self._node_ended
        return node

    def _node_ended(self, node: Node) -> None:
        if not node.gone:
            self.kernel.after(self._downtime_ms(), lambda: self._start(node))

    def _hub_died(self) -> None:
        self.kernel.after(self._downtime_ms(), lambda: self._start(self.hub))

    def _start(self, process: Hub | Node) -> None:
        if not process.alive and not getattr(process, "gone", False):
            process.start()

    def _join(self, node: Node) -> None:
        """A machine that people add while the runs are under way."""
        self.kernel.mark("joined-late")
        self.people.enrol(node)
        node.start()

    def _start_another(self, spec: RunSpec) -> None:
        self.kernel.mark("second-run")
        self.specs[spec.id] = spec
        self.people.start(spec.id)
        self.people.steer(spec.id)
        if not self.weather.calm and self.chance.random() < 0.5:
            self._pause_beside(spec.id)

    def _pause_beside(self, second: RunId) -> None:
        """One of two runs rests for a while, as people have it who need the nodes for the other."""
        self.kernel.mark("paused-beside-another")
        run = self.chance.choice((next(iter(self.specs)), second))
        pause_ms = self.chance.uniform(5_000, 40_000)
        self.kernel.after(self.chance.uniform(0, 30_000), lambda: self.people.pause(run, pause_ms))

    def _downtime_ms(self) -> float:
        """Mostly short; sometimes longer than any lease."""
        if self.healed:
            return 500
        return self.chance.choice((200, 1_000, 3_000, 8_000, 40_000))

    def _supervise(self) -> None:
        """Streams whose other end is gone: at once if the way is free, else after the keep-alive."""
        for stream in list(self.network.streams):
            node = next(node for node in self.nodes if node.name == stream.node)
            node_is_there = node.stream is stream and node.alive and stream.open_at_node
            way = self.network.passes_both(node.name, HUB)
            whole = node_is_there and stream.open_at_hub
            young = self.kernel.now_ms - stream.opened_ms < 2 * SUPERVISE_MS
            if (whole or young) and way and self.hub.runs and node.runs:
                stream.stalled_ms = 0
                continue
            stream.stalled_ms += SUPERVISE_MS
            gone = not whole and not young and way and self.hub.runs == self.hub.alive and node.runs == node.alive
            if gone or stream.stalled_ms >= stream.keepalive_ms:
                self.break_stream(stream, node)
        self.kernel.after(SUPERVISE_MS, self._supervise)

    def break_stream(self, stream: Stream, node: Node) -> None:
        self.kernel.mark("stream-broke")
        self.hub.enter(self.hub.life, lambda: self.hub.close_session(stream, orderly=False))
        node.enter(node.life, lambda: node.broken(stream))
        stream.forget()

    # --- ends -------------------------------------------------------------------------------------

    def _all_finished(self) -> bool:
        runs = self.checkers.plans.runs
        return all(run in runs and runs[run].state == "finished" for run in self.specs)

    def _is_settled(self) -> bool:
        if not self.hub.is_quiet or self.checkers.leases.live:
            return False
        up = [node for node in self.nodes if not node.gone]
        return all(n.alive and n.machine.session_up and not n.disk.entries and not n.machine.fence for n in up) and (
            all(n.name in self.checkers.nodes.serves for n in up)
        )

    def _where_it_hangs(self) -> str:
        nodes = [
            f"{n.name}: alive {n.alive}, up {n.alive and n.machine.session_up}, "
            f"{type(n.machine.work).__name__ if n.alive else ''} with {len(n.disk.entries)} entries"
            for n in self.nodes
        ]
        stages = [f"{book.state}" for book in self.checkers.plans.runs.values()]
        return f"hub {self.hub.alive}; runs {stages}; leases {self.checkers.leases.live}; {'; '.join(nodes)}"


@cache
def _oracle(spec: RunSpec) -> Undisturbed:
    return undisturbed(spec)


def run_world(seed: int) -> Outcome:
    """Never raises: a violation, or an exception of the product, is the outcome."""
    world = World(seed)
    violation: Violation | None = None
    raised = ""
    finished_ms = 0
    try:
        finished_ms = world.live()
    except Violation as found:
        violation = found
    except Exception as error:
        violation = Violation("nothing-raises", f"{type(error).__name__}: {error}")
        raised = traceback.format_exc()
    return Outcome(
        seed=seed,
        weather=world.weather,
        marks=world.kernel.marks,
        violation=violation,
        raised=raised,
        story=world.checkers.story.told(violation.work) if violation is not None else "",
        finished_ms=finished_ms,
    )
