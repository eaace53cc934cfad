"""What a coordinator costs: heartbeats of 1,000 nodes, a month of runs, an event as open work grows, a start.

    python -m benchmarks.coordinator [--json FILE] [--markdown FILE] [--quick] [--only PART]...

- `heartbeats`: CPU share of one core for one heartbeat a second of 1,000 nodes, once at the core (nodes that train,
  four ticks a second), once over the wire (one mTLS Session stream a node, of a client process of its own), with an
  open extrapolation where there were fewer streams.
- `month`: memory of the process, size of the state, of the journal and of a snapshot after day 1, 7, 14 and 30 of
  made-up life (`coordinator_month`): 1,000 nodes, 120 runs, deaths. Heartbeats are thinned to one in half an hour, and
  nodes that find nothing ask when they are called, not every 15 seconds too.
- `growth`: microseconds of an event of each kind beside 100 to 100,000 open tasks or lineages and with 100 to 1,000
  nodes, half of which train, and the exponent: the slope of log(time) over log(size).
- `snapshot`: milliseconds that a snapshot of 1,000 nodes and lineages takes to copy, which holds the loop, to encode,
  in a thread, and to read.
- `restart`, `long_restart`: seconds from the start of the process until it serves, from journals of 100,000 and
  1,000,000 rows, with a snapshot that is 5,000 rows old and with none.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks import coordinator_core as core
from benchmarks.coordinator_processes import grown, start_seconds
from benchmarks.coordinator_wire import heartbeat_share
from benchmarks.turns import spread

NODES = 1000
MAX_SHARE = 0.5
MAX_EXPONENT = 0.3
"""From 100 to 100,000 a logarithm grows by 2.5, as a power of 0.13 does."""
MAX_GROWTH = 1.25
"""Of memory and state from day 7 to day 30."""
MAX_COPY_MS = 50.0
"""A loop that is held as long feels no slower to anybody."""
MAX_START_S = 5.0

Figures = dict[str, dict[str, float]]


def heartbeats(folder: Path, *, quick: bool) -> Figures:
    shares = core.heartbeat_share(NODES, 3 if quick else 10)
    figures = {"heartbeats_core_share": figure(shares, MAX_SHARE)}
    streams = 20 if quick else NODES
    shares, beats_a_second = heartbeat_share(folder / "wire", streams, 1 if quick else 6)
    figures[f"heartbeats_wire_sent_per_s_{streams}_streams"] = figure([beats_a_second])
    figures[f"heartbeats_wire_share_{streams}_streams"] = figure(shares)
    figures["heartbeats_wire_share_per_1000"] = figure([share * NODES / streams for share in shares], MAX_SHARE)
    return figures


def month(folder: Path, *, quick: bool) -> Figures:
    command = [sys.executable, "-m", "benchmarks.coordinator_month", "--home", str(folder / "month")]
    if quick:
        command += ["--nodes", "50", "--days", "1,2", "--runs-a-day", "4", "--lineages", "5"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    days = [json.loads(line) for line in done.stdout.splitlines()]
    figures: Figures = {}
    for day in days:
        for name, value in day.items():
            if name != "day":
                figures[f"month_day_{day['day']}_{name}"] = figure([value])
    for name in ("rss_mib", "state_mib"):
        figures[f"month_growth_{name[:-4]}"] = figure(
            [days[-1][name] / days[-3 if len(days) > 2 else 0][name]], MAX_GROWTH
        )
    return figures


def growth(_: Path, *, quick: bool) -> Figures:
    figures: Figures = {}
    costs = core.costs_by_open_work([10, 100, 1000] if quick else [100, 1000, 10_000, 100_000])
    costs |= core.costs_by_nodes([10, 100] if quick else [100, 300, 1000])
    for kind, by_size in costs.items():
        name = kind.replace(", ", "_").replace(" ", "_")
        for size, us in by_size.items():
            figures[f"us_{name}_{size}"] = figure(us)
        if len([size for size in by_size if size >= core.MIN_EXPONENT_SIZE]) > 1:
            figures[f"exponent_{name}"] = figure([core.exponent(by_size)], MAX_EXPONENT)
    return figures


def snapshot(_: Path, *, quick: bool) -> Figures:
    costs = core.snapshot_costs(50 if quick else NODES, 3 if quick else 9)
    return {
        f"snapshot_{name}": figure(values, MAX_COPY_MS if name == "copy_ms" else None) for name, values in costs.items()
    }


def restart(folder: Path, *, quick: bool) -> Figures:
    return _starts(folder, 6_000 if quick else 100_000, 1 if quick else 3)


def long_restart(folder: Path, *, quick: bool) -> Figures:
    return {} if quick else _starts(folder, 1_000_000, 3)


def _starts(folder: Path, num_rows: int, repeats: int) -> Figures:
    home = grown(folder / f"grown-{num_rows}", num_rows)
    starts = [start_seconds(home, with_snapshot=True) for _ in range(repeats)]
    return {
        f"restart_s_{num_rows}_rows_snapshot": figure(starts, MAX_START_S),
        f"restart_s_{num_rows}_rows_no_snapshot": figure([start_seconds(home, with_snapshot=False)]),
    }


PARTS: Mapping[str, Callable[..., Figures]] = {
    "heartbeats": heartbeats,
    "month": month,
    "growth": growth,
    "snapshot": snapshot,
    "restart": restart,
    "long_restart": long_restart,
}


def figure(values: Sequence[float], goal: float | None = None) -> dict[str, float]:
    found = spread(values)
    return {name: round(value, 4) for name, value in (found if goal is None else {**found, "goal": goal}).items()}


def table(figures: Figures, load: tuple[float, float]) -> str:
    lines = [
        f"`python -m benchmarks.coordinator` on {platform.machine()}, {os.cpu_count()} cores, Python",
        f"{platform.python_version()}; load average {load[0]:.1f} at the start and {load[1]:.1f} at the end. What is",
        "above its goal says so.",
        "",
        "| figure | median | least | greatest | goal |",
        "|---|---|---|---|---|",
    ]
    for name, f in figures.items():
        goal = f"{f['goal']:g}{'' if f['median'] <= f['goal'] else ', missed'}" if "goal" in f else ""
        lines.append(f"| `{name}` | {f['median']:.4g} | {f['low']:.4g} | {f['high']:.4g} | {goal} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coordinator")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there")
    parser.add_argument("--quick", action="store_true", help="small sizes: proves the path, says little")
    parser.add_argument("--only", action="append", choices=PARTS, metavar="PART", help="one of the parts above")
    options = parser.parse_args()
    before, figures = os.getloadavg()[0], Figures()
    with tempfile.TemporaryDirectory(prefix="potluck-coordinator-") as folder:
        for name in options.only or PARTS:
            figures |= PARTS[name](Path(folder), quick=options.quick)
            sys.stderr.write(f"load {os.getloadavg()[0]:.1f}  {name} done\n")
            # After each part, for a run of hours may be cut off.
            written = table(figures, (before, os.getloadavg()[0]))
            if options.json:
                options.json.write_text(json.dumps(figures, indent=2) + "\n")
            if options.markdown:
                options.markdown.write_text(written)
    print(written)


if __name__ == "__main__":
    main()
