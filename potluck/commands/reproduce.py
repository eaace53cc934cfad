"""`potluck reproduce NAME`: a paper's claims at small scale, each cell of it an ordinary run."""

from __future__ import annotations

import argparse
import json
import shlex
import time
from pathlib import Path

from potluck.commands.home import Home, home_option, open_home
from potluck.commands.machine import num_cores
from potluck.commands.options import require_writable
from potluck.commands.output import Output
from potluck.commands.reproduction import Place, Reproduction
from potluck.errors import UsageError
from potluck.formatting import human_seconds
from potluck.lab.book import STUDIES
from potluck.lab.study import BudgetName

BUDGETS: dict[BudgetName, str] = {
    "quick": "at most 5 minutes on two cores and one seed: shows that it runs, makes no claim",
    "standard": "at most 90 minutes on two cores, several seeds (the default)",
    "full": "for GPUs",
}
DEFAULT_FOLDER = Path("benchmarks") / "results"
MAX_NODES = 64


def configure(parser: argparse.ArgumentParser) -> None:
    papers = ", ".join(f"{name} (arXiv {study.paper})" for name, study in STUDIES.items())
    parser.add_argument("name", choices=list(STUDIES), metavar="NAME", help=papers)
    size = parser.add_mutually_exclusive_group()
    for name, told in BUDGETS.items():
        size.add_argument(f"--{name}", dest="budget", action="store_const", const=name, help=told)
    parser.set_defaults(budget="standard")
    parser.add_argument("--out", type=Path, default=None, metavar="DIR", help=f"default {DEFAULT_FOLDER}/NAME")
    parser.add_argument("--home", default="", metavar="DIR", help="use this coordinator and the nodes that joined it")
    parser.add_argument("--nodes", type=int, default=0, help="own nodes on this machine (default: one a core)")
    parser.add_argument("--data", type=Path, default=None, metavar="FOLDER", help="instead of the demo corpus")
    parser.add_argument("--retry", action="store_true", help="take up failed cells again")
    parser.add_argument("--json", action="store_true", help="print the results as one JSON object on stdout")


def run(args: argparse.Namespace) -> int:
    from potluck.report.study import render_study, study_page, study_report

    output, started_s = Output(as_json=args.json), time.monotonic()
    study = STUDIES[args.name]
    place = _place(args)
    require_writable(place.folder)
    work = Reproduction(study=study, budget=study.budget(args.budget), place=place, retry=args.retry, output=output)
    work.run()
    if not work.worked:
        output.note("every cell has ended already: nothing is trained")
    report = study_report(
        study,
        work.budget,
        work.found,
        machine=work.machine(),
        cost=work.spent.told(),
        repeat=_repeat(args),
    )
    json_path, html_path = place.folder / "results.json", place.folder / "report.html"
    json_path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    html_path.write_text(study_page(report), encoding="utf-8")
    output.result({**report, "json": str(json_path), "html": str(html_path)})
    output.line(render_study(report))
    output.line(f"\nwrote {json_path} and {html_path}")
    _tell_time(work, time.monotonic() - started_s, output)
    return 0


def _place(args: argparse.Namespace) -> Place:
    """Raises:
    UsageError: ``usage.no-data``, ``usage.bad-value``, ``usage.bad-arguments``.
    """
    if args.data is not None and not args.data.exists():
        raise UsageError("usage.no-data", f"--data {args.data} does not exist", "give a folder or file of text")
    if not 0 <= args.nodes <= MAX_NODES:
        raise UsageError("usage.bad-value", f"--nodes {args.nodes}", f"give 1 to {MAX_NODES}")
    if args.home and args.nodes:
        what = "--nodes starts nodes of this command's own, and --home uses those of another coordinator"
        raise UsageError("usage.bad-arguments", what, "give one of them")
    folder = (args.out or DEFAULT_FOLDER / args.name).resolve()
    home = open_home(args.home) if args.home else Home(root=folder / "home")
    return Place(
        folder=folder,
        home=home,
        owns_home=not args.home,
        nodes=args.nodes or num_cores(),
        data=None if args.data is None else args.data.resolve(),
    )


def _repeat(args: argparse.Namespace) -> str:
    data = f" --data {shlex.quote(str(args.data))}" if args.data is not None else ""
    home = home_option(open_home(args.home)) if args.home else ""
    return f"potluck reproduce {args.name} --{args.budget}{data}{home}"


def _tell_time(work: Reproduction, seconds: float, output: Output) -> None:
    spent = work.spent
    used = f", {human_seconds(spent.core_s)} of cores" if spent.core_s else ""
    output.note(
        f"this call took {human_seconds(seconds)}; all calls {human_seconds(spent.wall_s)}{used}, "
        f"{human_seconds(spent.expected_core_s)} of one core were expected"
    )
