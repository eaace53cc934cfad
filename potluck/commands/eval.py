"""`potluck eval RUN`: the table of a finished run; with --choices, its models' answers to multiple-choice questions."""

from __future__ import annotations

import argparse
from pathlib import Path

from potluck.commands.home import admin_client, home_option, open_home
from potluck.commands.options import add_common, add_run
from potluck.commands.output import Output
from potluck.commands.reports import render_text, report_of
from potluck.commands.runs import find_run
from potluck.errors import UsageError
from potluck.ids import short


def configure(parser: argparse.ArgumentParser) -> None:
    add_common(parser)
    add_run(parser)
    choices_help = 'questions, one JSON object a line: {"id", "context", "choices", "answer"}; see docs/eval.md'
    parser.add_argument("--choices", type=Path, metavar="FILE", help=choices_help)
    model_help = "with --choices: a model of a soup run by its mixture, such as soup:code=0.6,law=0.4; repeatable"
    parser.add_argument("--model", action="append", default=[], metavar="MODEL", help=model_help)


def run(args: argparse.Namespace) -> int:
    output, home = Output(as_json=args.json), open_home(args.home)
    if args.model and args.choices is None:
        raise UsageError("usage.bad-arguments", "--model without --choices", "add --choices FILE")
    with admin_client(home) as client:
        info = find_run(client, args.run)
        if args.choices is None:
            report, which = report_of(client, home, info), args.run
        else:
            from potluck.commands.choices import ask

            report = ask(client, home, info, args.choices, args.model, output)
            which = short(report["run"])
    output.result(report)
    output.line(render_text(report))
    which = f" {which}" if which else ""
    output.next_step(f"potluck report{which}{home_option(home)}   # report.html with curves and tables")
    return 0
