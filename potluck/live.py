"""Following a run: a live view on a terminal, lines on change elsewhere; what was seen of each node's speed.

`Tracker` decides, from observations with their times; `watch` does the looking.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from potluck.commands.home import Home
from potluck.commands.output import Output
from potluck.formatting import human_count, human_seconds
from potluck.ids import short

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from potluck.client import AdminClient
    from potluck.v1 import admin_pb2

ENDED = ("finished", "cancelled", "failed")
LEAST_PROGRESS = 0.02
"""An estimate from less than this share of the work is noise."""
LINE_EVERY_S = 10.0


@dataclass(kw_only=True)
class _Course:
    """How far a lineage was when it was first seen, and now."""

    since_s: float
    first_step: int
    step: int
    now_s: float


@dataclass(kw_only=True)
class Tracker:
    """What the history of a run's states says: speeds of nodes, and when things will end."""

    _started: tuple[float, float] | None = None
    _courses: dict[str, _Course] = field(default_factory=dict)
    _speeds: dict[str, tuple[float, int]] = field(default_factory=dict)

    def observe(self, info: admin_pb2.RunInfo, now_s: float) -> None:
        if self._started is None:
            self._started = (now_s, info.fraction)
        for line in info.lineages:
            step = max(line.live_step, line.head_step)
            course = self._courses.get(line.lineage)
            if course is None or not line.node or step < course.step:
                self._courses[line.lineage] = _Course(since_s=now_s, first_step=step, step=step, now_s=now_s)
            else:
                course.step, course.now_s = step, now_s
        for node in info.nodes:
            if node.role == "node" and node.activity == "training" and node.tokens_per_second > 0:
                total, count = self._speeds.get(node.name or node.node, (0.0, 0))
                self._speeds[node.name or node.node] = (total + node.tokens_per_second, count + 1)

    def seconds_left(self, info: admin_pb2.RunInfo, now_s: float) -> float | None:
        """Until the run's training is done, by its pace so far; None while that says nothing."""
        assert self._started is not None
        since, fraction = self._started
        gained = info.fraction - fraction
        if gained < LEAST_PROGRESS or now_s <= since:
            return None
        return (1.0 - info.fraction) / gained * (now_s - since)

    def lineage_seconds_left(self, line: admin_pb2.LineageInfo) -> float | None:
        """Until a lineage's last step, while somebody works on it."""
        course = self._courses.get(line.lineage)
        if course is None or not line.node or course.step <= course.first_step:
            return None
        pace = (course.step - course.first_step) / max(1e-6, course.now_s - course.since_s)
        return (line.total_steps - course.step) / pace

    def speeds(self) -> dict[str, float]:
        """Mean training tokens per second of each node, over what was seen."""
        return {node: total / count for node, (total, count) in sorted(self._speeds.items())}


def watch(client: AdminClient, home: Home, run: str, output: Output) -> admin_pb2.RunInfo:
    """Follows a run until it ends; keeps the nodes' speeds for the report."""
    tracker = Tracker()
    with _screen(output, tracker) as show:
        last: admin_pb2.RunInfo | None = None
        for info in client.watch_run(run):
            now_s = time.monotonic()
            tracker.observe(info, now_s)
            show(info, now_s)
            last = info
            if info.state in ENDED:
                break
    if tracker.speeds():
        speeds_file(home, run).write_text(json.dumps(tracker.speeds()), encoding="utf-8")
    assert last is not None, "a watched run is told at least once"
    return client.get_run(run)


def speeds_file(home: Home, run: str) -> Path:
    return home.scratch("speeds") / f"{run}.json"


def read_speeds(home: Home, run: str) -> Mapping[str, float]:
    """Tokens per second by node as `watch` last saw them; empty if nobody watched."""
    try:
        return dict(json.loads(speeds_file(home, run).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}


def run_line(info: admin_pb2.RunInfo, left_s: float | None) -> str:
    """One line: how far, doing what, until when."""
    when = f", about {human_seconds(left_s)} left" if left_s is not None and info.state == "running" else ""
    return f"{short(info.run)} {info.name}: {info.fraction:.0%}, {info.stage or info.state}{when}"


def render(info: admin_pb2.RunInfo, tracker: Tracker, now_s: float) -> RenderableType:
    """The whole view: the run, its nodes, its lineages. At most 80 columns."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    nodes = Table(box=None, padding=(0, 1), header_style="dim")
    for column, width in (("node", 18), ("doing", 24)):
        nodes.add_column(column, no_wrap=True, overflow="ellipsis", max_width=width)
    for column in ("tokens/s", "MFU", "loss", "ends in"):
        nodes.add_column(column, justify="right", no_wrap=True)
    working = {line.node: line for line in info.lineages if line.node}
    for node in info.nodes:
        if node.role != "node":
            continue
        line = working.get(node.node) or working.get(node.name)
        left = tracker.lineage_seconds_left(line) if line is not None and node.activity == "training" else None
        doing = f"{node.activity} {node.label}".strip() if node.state == "live" else node.state
        nodes.add_row(
            node.name or short(node.node),
            doing,
            human_count(node.tokens_per_second) if node.tokens_per_second else "",
            f"{line.mfu:.0%}" if line is not None and line.mfu else "",
            f"{node.loss:.3f}" if node.loss else "",
            human_seconds(left) if left is not None else "",
        )
    lineages = Table(box=None, padding=(0, 1), header_style="dim")
    lineages.add_column("lineage", no_wrap=True, overflow="ellipsis", max_width=24)
    lineages.add_column("", no_wrap=True)
    lineages.add_column("steps", justify="right", no_wrap=True)
    lineages.add_column("loss", justify="right", no_wrap=True)
    for line in info.lineages:
        step = max(line.live_step, line.head_step)
        filled = round(24 * step / max(1, line.total_steps))
        bar = Text("━" * filled, style="green") + Text("─" * (24 - filled), style="dim")
        lineages.add_row(line.label, bar, f"{step}/{line.total_steps}", f"{line.loss:.3f}" if line.loss else "")
    head = Text(run_line(info, tracker.seconds_left(info, now_s)), style="bold", no_wrap=True, overflow="ellipsis")
    waits = [Text(f"waits for {wait}", no_wrap=True, overflow="ellipsis") for wait in info.waits]
    return Group(head, *waits, Text(), nodes, Text(), lineages)


Show = Callable[["admin_pb2.RunInfo", float], None]


@contextlib.contextmanager
def _screen(output: Output, tracker: Tracker) -> Iterator[Show]:
    console = output.terminal()
    if console is None:
        yield _line_printer(output, tracker)
        return
    with _live(console) as update:
        yield lambda info, now_s: update(render(info, tracker, now_s))


@contextlib.contextmanager
def _live(console: Console) -> Iterator[Callable[[RenderableType], None]]:
    from rich.live import Live

    with Live(console=console, refresh_per_second=4, transient=True) as live:
        yield live.update


def _line_printer(output: Output, tracker: Tracker) -> Show:
    """A line when the stage changes, and now and then in between; what it waits for in the latter."""
    said = ("", -LINE_EVERY_S)

    def show(info: admin_pb2.RunInfo, now_s: float) -> None:
        nonlocal said
        stage, at = said
        if info.stage != stage or now_s - at >= LINE_EVERY_S:
            said = (info.stage, now_s)
            if not output.as_json:
                output.note(run_line(info, tracker.seconds_left(info, now_s)))
                for wait in info.waits if info.stage == stage else ():
                    output.note(f"  waits for {wait}")

    return show
