"""Several runs at once: started where they are new, and followed until they end. They go on without whoever follows."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from potluck.commands.home import Home
from potluck.commands.output import Output
from potluck.live import ENDED

if TYPE_CHECKING:
    from potluck.client import AdminClient
    from potluck.specs.run import RunSpec
    from potluck.v1 import admin_pb2

LOOK_EVERY_S = 1.0
PARTS_SHOWN = 20
"""How finely progress is told: each change is a line where no terminal is."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A run as it is wanted."""

    spec: RunSpec
    name: str
    priority: int = 0


def start_all(client: AdminClient, runs: Mapping[str, Launch], *, retry: bool) -> dict[str, str]:
    """Starts the runs that are new or were cancelled, with `retry` failed ones too; the others are left as they are.

    Returns:
        Of each, started | running | finished | failed.
    """
    states = {info.run: info.state for info in client.list_runs().runs}
    again = {"", "cancelled", "failed"} if retry else {"", "cancelled"}
    now: dict[str, str] = {}
    for run, launch in runs.items():
        now[run] = states.get(run, "")
        if now[run] in again:
            spec_json, request_id = launch.spec.to_json(), uuid.uuid4().hex
            client.start_run(spec_json, name=launch.name, priority=launch.priority, request_id=request_id)
            now[run] = "started"
    return now


def run_to_end(client: AdminClient, home: Home, launch: Launch, output: Output) -> tuple[admin_pb2.RunInfo, bool]:
    """Starts one run, or finds it, and waits for its end; and whether it had not ended before this call."""
    from potluck.live import watch

    spec_json, request_id = launch.spec.to_json(), uuid.uuid4().hex
    answer = client.start_run(spec_json, name=launch.name, priority=launch.priority, request_id=request_id)
    return watch(client, home, answer.run, output), answer.state != "already-finished"


def refusal_of(info: admin_pb2.RunInfo) -> tuple[str, str]:
    """Error id and message of a run that failed by an error of ours; two empty texts for any other."""
    error_id, bracket, message = info.reason.removeprefix("[").partition("] ")
    return (error_id, message) if info.state == "failed" and bracket else ("", "")


def tell_states(noun: str, states: Iterable[str], output: Output) -> None:
    """How many are started and how many are there already; says so if nothing is left to do."""
    counts: dict[str, int] = {}
    for state in states:
        counts[state] = counts.get(state, 0) + 1
    words = {"started": "started", "running": "under way", "finished": "finished before", "failed": "failed before"}
    told = ", ".join(f"{counts[state]} {word}" for state, word in words.items() if state in counts)
    output.note(f"{sum(counts.values())} {noun}s: {told}")
    if not counts.keys() & {"started", "running"}:
        output.note(f"every {noun} has ended already: nothing is trained")
    if "failed" in counts:
        output.note(f"add --retry to take failed {noun}s up again")


Told = Callable[[Mapping[str, "admin_pb2.RunInfo"], float], str]
"""Progress in words, of the runs that have ended so far, and the share of all work that is done, 0 to 1."""


def endings(
    client: AdminClient, runs: Iterable[str], told: Told, output: Output
) -> Iterator[tuple[str, admin_pb2.RunInfo]]:
    """Each run once it has ended, in the order in which that is seen; says how far they are meanwhile."""
    wanted = tuple(runs)
    ended: dict[str, admin_pb2.RunInfo] = {}
    looked_s = -LOOK_EVERY_S
    for run in wanted:
        while run not in ended:
            for watched in client.watch_run(run):
                has_ended, now_s = watched.state in ENDED, time.monotonic()
                if not has_ended and now_s - looked_s < LOOK_EVERY_S:
                    continue
                looked_s = now_s
                before = len(ended)
                output.progress(told(ended, _look(client, wanted, ended)))
                yield from list(ended.items())[before:]
                if has_ended:
                    break
    output.end_progress()


def percent(share: float) -> str:
    """Coarse, so that it changes seldom."""
    return f"{int(share * PARTS_SHOWN + 1e-9) / PARTS_SHOWN:.0%}"


def _look(client: AdminClient, runs: tuple[str, ...], ended: dict[str, admin_pb2.RunInfo]) -> float:
    """Takes in what has ended since; the share of all work that is done."""
    share = 0.0
    for info in client.list_runs().runs:
        if info.run in runs:
            share += (1.0 if info.state in ENDED else info.fraction) / len(runs)
            if info.state in ENDED and info.run not in ended:
                ended[info.run] = client.get_run(info.run)
    return share
