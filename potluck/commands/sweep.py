"""`potluck sweep SPEC.toml`: a grid over learning rate, batch size, optimizer or any key, as ordinary runs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potluck.commands.following import Launch, endings, percent, start_all, tell_states
from potluck.commands.home import Home, admin_client, home_option, open_home
from potluck.commands.options import add_common, require_writable
from potluck.commands.output import Output
from potluck.commands.runs import horizons, read_run_file, require_memory, send_texts
from potluck.errors import Refused
from potluck.ids import short
from potluck.sizing import training_bytes
from potluck.sweeps import Axis, Cell, axes_of, cells_of

if TYPE_CHECKING:
    from potluck.v1 import admin_pb2


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


def run(args: argparse.Namespace) -> int:
    output, home = Output(as_json=args.json), open_home(args.home)
    file, data = read_run_file(args.spec)
    axes = axes_of(file, learning_rate=args.learning_rate, batch=args.batch, optimizer=args.optimizer, sets=args.set)
    cells = cells_of(file, axes)
    for cell in cells:
        horizons(cell.draft)
    require_writable(args.out)
    with admin_client(home) as client:
        require_memory(max((cell.draft for cell in cells), key=training_bytes), client, output)
        digests = send_texts(home, args.spec, file, data, output)
        runs: dict[str, Cell] = {cell.file.canonical(**digests).id: cell for cell in cells}
        launches = {
            run: Launch(spec=cell.file.canonical(**digests), name=cell.file.name, priority=cell.file.priority)
            for run, cell in runs.items()
        }
        tell_states("cell", start_all(client, launches, retry=args.retry).values(), output)
        try:
            infos = dict(endings(client, runs, lambda ended, share: _told(ended, share, runs), output))
        except KeyboardInterrupt:
            output.end_progress()
            output.note("the runs go on without this command; the same call comes back to them")
            raise
    return _finish(file.name, axes, runs, infos, args.out, home, output)


def _told(ended: Mapping[str, admin_pb2.RunInfo], share: float, runs: Mapping[str, Cell]) -> str:
    """How far the sweep is, in words."""
    from potluck.report.sweep import figures_of

    valid = {run: figures_of(_results(info))[0] for run, info in ended.items()}
    known = {run: nll for run, nll in valid.items() if nll is not None}
    best = min(known, key=lambda run: known[run], default="")
    told = f"; best so far {known[best]:.4f}: {runs[best].label}" if best else ""
    return f"{len(ended)} of {len(runs)} cells, {percent(share)} of the work{told}"


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
