"""`potluck sweep SPEC.toml`: a grid over learning rate, batch size, optimizer or any key, as ordinary runs."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potluck.commands.home import Home, admin_client, home_option, open_home
from potluck.commands.options import add_common
from potluck.commands.output import Output
from potluck.commands.runs import horizons, read_run_file, require_memory, send_texts
from potluck.errors import Refused, UsageError
from potluck.ids import Digest, short
from potluck.live import ENDED
from potluck.sizing import training_bytes
from potluck.sweeps import Axis, Cell, axes_of, cells_of

if TYPE_CHECKING:
    from potluck.client import AdminClient
    from potluck.v1 import admin_pb2

LOOK_EVERY_S = 1.0
PARTS_SHOWN = 20
"""How finely progress is told: each change is a line where no terminal is."""


def configure(parser: argparse.ArgumentParser) -> None:
    add_common(parser)
    parser.add_argument("spec", type=Path, help="TOML file of a run; what is not varied stays as it says")
    parser.add_argument("--learning-rate", default="", metavar="R1,R2", help="peak rates to try")
    parser.add_argument("--batch", default="", metavar="B1,B2", help="batch sizes to try, at equal tokens")
    parser.add_argument("--optimizer", default="", metavar="O1,O2", help="optimizers to try")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=V1,V2", help="any other key of the spec, such as seed=0,1,2"
    )
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="where to write (default: here)")
    parser.add_argument("--retry", action="store_true", help="take up failed cells again")


def _require_writable(out: Path) -> None:
    """Before anything is trained: the table is written at the end.

    Raises:
        UsageError: ``usage.bad-out``.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        fix = "name a folder that can be written"
        raise UsageError("usage.bad-out", f"--out {out}: {error.strerror}", fix) from None


def run(args: argparse.Namespace) -> int:
    output, home = Output(as_json=args.json), open_home(args.home)
    file, data = read_run_file(args.spec)
    axes = axes_of(file, learning_rate=args.learning_rate, batch=args.batch, optimizer=args.optimizer, sets=args.set)
    cells = cells_of(file, axes)
    for cell in cells:
        horizons(cell.draft)
    _require_writable(args.out)
    with admin_client(home) as client:
        require_memory(max((cell.draft for cell in cells), key=training_bytes), client, output)
        digests = send_texts(home, args.spec, file, data, output)
        runs: dict[str, Cell] = {cell.file.canonical(**digests).id: cell for cell in cells}
        _start(client, runs, digests, retry=args.retry, output=output)
        try:
            infos = _follow(client, runs, output)
        except KeyboardInterrupt:
            output.end_progress()
            output.note("the runs go on without this command; the same call comes back to them")
            raise
    return _finish(file.name, axes, runs, infos, args.out, home, output)


def _start(
    client: AdminClient, runs: Mapping[str, Cell], digests: Mapping[str, Digest], *, retry: bool, output: Output
) -> None:
    """Starts the cells that are new or were cancelled; the others are left as they are."""
    states = {info.run: info.state for info in client.list_runs().runs}
    again = {"", "cancelled", "failed"} if retry else {"", "cancelled"}
    counts: dict[str, int] = {}
    for run, cell in runs.items():
        state = states.get(run, "")
        if state in again:
            spec, name = cell.file.canonical(**digests), cell.file.name
            client.start_run(spec.to_json(), name=name, priority=cell.file.priority, request_id=uuid.uuid4().hex)
            state = "started"
        counts[state] = counts.get(state, 0) + 1
    words = {"started": "started", "running": "under way", "finished": "finished before", "failed": "failed before"}
    told = ", ".join(f"{counts[state]} {word}" for state, word in words.items() if state in counts)
    output.note(f"{len(runs)} cells: {told}")
    if not counts.keys() & {"started", "running"}:
        output.note("every cell has ended already: nothing is trained")
    if "failed" in counts:
        output.note("add --retry to take failed cells up again")


def _follow(client: AdminClient, runs: Mapping[str, Cell], output: Output) -> dict[str, admin_pb2.RunInfo]:
    """Waits until every run has ended, saying how far they are."""
    ended: dict[str, admin_pb2.RunInfo] = {}
    looked_s = -LOOK_EVERY_S
    for run in runs:
        while run not in ended:
            for watched in client.watch_run(run):
                has_ended, now_s = watched.state in ENDED, time.monotonic()
                if has_ended or now_s - looked_s >= LOOK_EVERY_S:
                    looked_s = now_s
                    output.progress(_look(client, runs, ended))
                if has_ended:
                    break
    output.end_progress()
    return ended


def _look(client: AdminClient, runs: Mapping[str, Cell], ended: dict[str, admin_pb2.RunInfo]) -> str:
    """Takes in what has ended since; how far the sweep is, in words."""
    from potluck.report.sweep import figures_of

    share = 0.0
    for info in client.list_runs().runs:
        if info.run in runs:
            share += (1.0 if info.state in ENDED else info.fraction) / len(runs)
            if info.state in ENDED and info.run not in ended:
                ended[info.run] = client.get_run(info.run)
    valid = {run: figures_of(_results(info))[0] for run, info in ended.items()}
    known = {run: nll for run, nll in valid.items() if nll is not None}
    best = min(known, key=lambda run: known[run], default="")
    told = f"; best so far {known[best]:.4f}: {runs[best].label}" if best else ""
    return f"{len(ended)} of {len(runs)} cells, {int(share * PARTS_SHOWN + 1e-9) / PARTS_SHOWN:.0%} of the work{told}"


def _results(info: admin_pb2.RunInfo) -> dict[str, Any]:
    return dict(json.loads(info.results_json or "{}"))


def _finish(
    name: str,
    axes: Sequence[Axis],
    runs: Mapping[str, Cell],
    infos: Mapping[str, admin_pb2.RunInfo],
    out: Path,
    home: Home,
    output: Output,
) -> int:
    from potluck.report.sweep import Outcome, render_sweep, sweep_page, sweep_report

    outcomes = [
        Outcome(cell=cell, run=run, state=infos[run].state, reason=infos[run].reason, results=_results(infos[run]))
        for run, cell in runs.items()
    ]
    report = sweep_report(name, axes, outcomes)
    out.mkdir(parents=True, exist_ok=True)
    json_path, html_path = out / "sweep.json", out / "sweep.html"
    json_path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    html_path.write_text(sweep_page(report), encoding="utf-8")
    if report["best"] is None:
        first = report["settings"][0]
        raise Refused(
            "refused.no-cell-finished",
            f"no cell has a figure on valid text; {first['label']} {first['state']}: {first['reason']}",
            f"{json_path} has every cell; lower the rates, or mend what the reason says and add --retry",
        )
    output.result({**report, "json": str(json_path), "html": str(html_path)})
    output.line(render_sweep(report))
    output.line(f"\nwrote {json_path} and {html_path}")
    output.next_step(f"potluck eval {short(report['settings'][0]['runs'][0])}{home_option(home)}")
    return 0
