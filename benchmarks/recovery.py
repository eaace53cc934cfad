"""Seconds from a death until it is noticed, its work has moved, and training goes on; real processes on loopback.

    python -m benchmarks.recovery [--repetitions 5] [--json FILE] [--markdown FILE]

One long lineage, one node that trains it and one that waits. What happens to the one that trains:

- `dead`: SIGKILL. Its connection breaks at once.
- `frozen`: SIGSTOP for it and its worker. The connection stays, and nothing comes.
- `cut_off`: a relay between it and the coordinator stops forwarding, both ways, control and data.

`noticed` is the time until the coordinator journals that the lease has lapsed, `moved` from there until it grants the
work to the other node, both by the journal's own clock, which is the machine's; `recovered` is from the event until
the other node has done its first step, its model loaded. Then the coordinator is killed and started at once:
`coordinator_ready` until it serves with every deadline armed anew, `coordinator_nodes_back` until the node's session
is up again, both from the kill. Last the only node is killed and started: `node_ready` until the coordinator has
welcomed it, `node_training` until its first step, both from the start of the process, its interpreter included.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from coordinator.core.effects import Reply, TrainGranted
from coordinator.core.events import LeaseLapsed
from coordinator.core.machine import Machine
from coordinator.core.state import TrainLease
from coordinator.journal import read_closed
from coordinator.wire_events import decode_event
from potluck.net.identity import Identity
from potluck.specs.sections import ModelShape, TextSpec
from potluck.specs.single import SingleSpec, TrainingSpec
from tests.chaos.world import children_of
from tests.integration.harness import Cluster, Daemon
from tests.integration.smalltalk_runs import small_corpus
from tests.integration.test_net_blob_faults import Relay

PATIENCE_S = 90.0
LOOK_S = 0.02
SETTLE_S = 2.5
"""After a change of holder, before the next: the node that waits has asked, and been told that there is nothing."""
STEADY_S = 15.0
"""Before a silence: by then the coordinator knows whether a node's heartbeats come steadily."""
GOALS_S = {
    "dead_noticed": 1.0,
    "frozen_noticed": 3.0,
    "cut_off_noticed": 3.0,
    "dead_moved": 5.0,
    "frozen_moved": 5.0,
    "cut_off_moved": 5.0,
    "coordinator_ready": 5.0,
    "node_training": 10.0,
}

Seconds = dict[str, list[float]]


@dataclass(kw_only=True)
class Stage:
    """A cluster in which one node trains and perhaps another waits."""

    cluster: Cluster
    run: str
    nodes: dict[str, Daemon] = field(default_factory=dict)
    started_ms: dict[str, list[int]] = field(default_factory=dict)
    """When each cause was set, on the machine's monotonic clock."""

    def holder(self) -> str:
        """Who trains, once somebody does and has measured it."""
        found = ""

        def trains() -> bool:
            nonlocal found
            with self.cluster.client() as client:
                lines = client.get_run(self.run).lineages
            found = next((line.node for line in lines if line.node and line.live_step > line.head_step), "")
            return bool(found)

        until(trains, "nobody trains")
        return next(name for name in self.nodes if found.endswith(f"-{name}"))

    def samples(self, name: str) -> list[dict[str, object]]:
        files = (self.cluster.folder / f"{name}-metrics").glob("*.jsonl")
        return [json.loads(line) for file in files for line in file.read_text().splitlines() if line.endswith("}")]

    def wait_step(self, name: str, after_unix: float) -> float:
        """Seconds from then until this node has told of a step."""
        first = 0.0

        def stepped() -> bool:
            nonlocal first
            times = [float(str(s["unix_ms"])) / 1000 for s in self.samples(name) if s["kind"] == "progress"]
            first = min((t for t in times if t > after_unix), default=0.0)
            return first > 0

        until(stepped, f"{name} does not train")
        return first - after_unix

    def start(self, name: str) -> Daemon:
        metrics = self.cluster.folder / f"{name}-metrics"
        self.nodes[name] = self.cluster.start_node(name, "--metrics", str(metrics))
        return self.nodes[name]

    def state_of(self, name: str) -> tuple[str, str]:
        with self.cluster.client() as client:
            for info in client.list_nodes().nodes:
                if info.name == name:
                    return info.state, info.activity
        return "gone", ""

    def wait_waiting(self, name: str) -> None:
        until(lambda: self.state_of(name) == ("live", "idle"), f"{name} does not wait for work")
        time.sleep(SETTLE_S)


def until(reached: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not reached():
        if time.monotonic() > deadline:
            raise TimeoutError(otherwise)
        time.sleep(LOOK_S)


@contextmanager
def stage(names: Sequence[str]) -> Iterator[Stage]:
    """A coordinator, these nodes, and a run that outlasts any measurement."""
    with tempfile.TemporaryDirectory(prefix="potluck-recovery-") as folder, Cluster(Path(folder) / "c") as cluster:
        cluster.start_coordinator()
        corpus = small_corpus(Path(folder))
        cluster.put_corpus(corpus.files)
        spec = SingleSpec(
            method="single",
            corpus=corpus.digest,
            text=TextSpec(vocab_size=300, sequence_length=32, prefix_length=8),
            model=ModelShape(hidden=64, layers=2, heads=2, ffn=160),
            training=TrainingSpec(steps=200_000, batch_size=16),
        )
        made = Stage(cluster=cluster, run=cluster.start_run(spec))
        for name in names:
            made.start(name)
        made.holder()
        yield made


@contextmanager
def behind_relays(made: Stage) -> Iterator[dict[str, list[Relay]]]:
    """Each node's two connections, control and data, through relays."""
    with ExitStack() as stack:
        relays: dict[str, list[Relay]] = {}
        for name, node in list(made.nodes.items()):
            node.stop()
            identity = Identity.load(node.home / "identity")
            ends = [Relay(identity.control_port), Relay(identity.data_port)]
            for relay in ends:
                stack.callback(relay.close)
            relays[name] = ends
            moved = replace(identity, control_port=ends[0].port, data_port=ends[1].port)
            moved.save(node.home / "identity")
            made.start(name)
        yield relays


def one_death(made: Stage, cause: str, strike: Callable[[str], Callable[[], None]], found: Seconds) -> None:
    """Strikes who trains; waits until the other does; lets the first come back."""
    first = made.holder()
    (second,) = (name for name in made.nodes if name != first)
    made.wait_waiting(second)
    if cause != "dead":
        time.sleep(STEADY_S)
    made.started_ms.setdefault(cause, []).append(time.monotonic_ns() // 1_000_000)
    then = time.time()
    mend = strike(first)
    found.setdefault(f"{cause}_recovered", []).append(made.wait_step(second, then))
    mend()
    made.wait_waiting(first)


def kill(made: Stage, name: str) -> Callable[[], None]:
    made.nodes[name].kill()
    return lambda: void(made.start(name))


def freeze(made: Stage, name: str) -> Callable[[], None]:
    node, children = made.nodes[name], children_of(made.nodes[name])
    node.signal(signal.SIGSTOP)
    for child in children:
        child.suspend()

    def thaw() -> None:
        for child in children:
            child.resume()
        node.signal(signal.SIGCONT)

    return thaw


def cut_off(relays: Sequence[Relay]) -> Callable[[], None]:
    for relay in relays:
        relay.hold("up", 0)
        relay.hold("down", 0)

    def mend() -> None:
        for relay in relays:
            relay.release()

    return mend


def void(_: object) -> None:
    """A result nobody wants."""


def coordinator_death(made: Stage, found: Seconds) -> None:
    name = made.holder()
    then = time.monotonic()
    coordinator = next(d for d in made.cluster.daemons if d.name == "coordinator" and d.popen.poll() is None)
    coordinator.kill()
    made.cluster.start_coordinator()
    found.setdefault("coordinator_ready", []).append(time.monotonic() - then)
    until(lambda: made.state_of(name)[0] == "live", f"{name} does not come back")
    found.setdefault("coordinator_nodes_back", []).append(time.monotonic() - then)


def node_death(made: Stage, found: Seconds) -> None:
    (name,) = made.nodes
    made.holder()
    made.nodes[name].kill()
    then, then_unix = time.monotonic(), time.time()
    made.start(name)
    found.setdefault("node_ready", []).append(time.monotonic() - then)
    found.setdefault("node_training", []).append(made.wait_step(name, then_unix))


def read_moves(home: Path, started_ms: dict[str, list[int]], found: Seconds) -> None:
    """By the journal of a coordinator that has ended: when leases lapsed, and when their lineages were granted anew."""
    machine = Machine()
    lapses: list[tuple[int, str]] = []
    grants: list[tuple[int, str]] = []
    for row in read_closed(home / "journal.db"):
        event = decode_event(row)
        if isinstance(event, LeaseLapsed):
            lease = machine.state.durable.leases.get(event.fence)
            if isinstance(lease, TrainLease):
                lapses.append((event.now_ms, lease.lineage))
        for effect in machine.handle(event):
            if isinstance(effect, Reply) and isinstance(effect.answer, TrainGranted):
                grants.append((event.now_ms, effect.answer.lineage.id))
    for cause, times in started_ms.items():
        for then in times:
            noticed, lineage = next(lapse for lapse in lapses if lapse[0] >= then)
            granted = next(ms for ms, what in grants if ms >= noticed and what == lineage)
            found.setdefault(f"{cause}_noticed", []).append((noticed - then) / 1000)
            found.setdefault(f"{cause}_moved", []).append((granted - noticed) / 1000)


def measure(repetitions: int) -> Seconds:
    found: Seconds = {}
    with stage(("a", "b")) as made:
        for _ in range(repetitions):
            one_death(made, "dead", lambda name: kill(made, name), found)
            one_death(made, "frozen", lambda name: freeze(made, name), found)
            coordinator_death(made, found)
            say(found)
        end(made, found)
    with stage(("a", "b")) as made, behind_relays(made) as relays:
        for _ in range(repetitions):
            one_death(made, "cut_off", lambda name: cut_off(relays[name]), found)
            say(found)
        end(made, found)
    with stage(("a",)) as made:
        for _ in range(repetitions):
            node_death(made, found)
            say(found)
    return found


def end(made: Stage, found: Seconds) -> None:
    """Ends the daemons, for nobody else may read a journal that is open."""
    for daemon in reversed(made.cluster.daemons):
        daemon.end_group()
    read_moves(made.cluster.home, made.started_ms, found)


def say(found: Seconds) -> None:
    last = {name: round(values[-1], 2) for name, values in found.items()}
    sys.stderr.write(f"load {os.getloadavg()[0]:.1f}  {last}\n")


def figures_of(found: Seconds) -> dict[str, dict[str, float]]:
    order = [f"{c}_{m}" for c in ("dead", "frozen", "cut_off") for m in ("noticed", "moved", "recovered")]
    order += ["coordinator_ready", "coordinator_nodes_back", "node_ready", "node_training"]
    return {
        name: {
            "median": round(statistics.median(found[name]), 3),
            "low": round(min(found[name]), 3),
            "high": round(max(found[name]), 3),
            **({"goal": GOALS_S[name]} if name in GOALS_S else {}),
        }
        for name in order
    }


def table(figures: dict[str, dict[str, float]], repetitions: int, load: tuple[float, float]) -> str:
    command = f"python -m benchmarks.recovery --repetitions {repetitions}"
    lines = [
        f"`{command}` on {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; load",
        f"average {load[0]:.1f} at the start and {load[1]:.1f} at the end. Seconds, of {repetitions} repetitions.",
        "",
        "| figure | median | least | greatest | goal |",
        "|---|---|---|---|---|",
    ]
    for name, f in figures.items():
        goal = f"{f['goal']:g}" if "goal" in f else ""
        lines.append(f"| `{name}` | {f['median']:.2f} | {f['low']:.2f} | {f['high']:.2f} | {goal} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recovery")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there")
    options = parser.parse_args()
    before = os.getloadavg()[0]
    figures = figures_of(measure(options.repetitions))
    written = table(figures, options.repetitions, (before, os.getloadavg()[0]))
    print(written)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    if options.markdown:
        options.markdown.write_text(written)


if __name__ == "__main__":
    main()
