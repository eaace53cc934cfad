"""`potluck eval RUN`: the table of a finished run."""

from __future__ import annotations

import argparse

from potluck.commands.home import admin_client, home_option, open_home
from potluck.commands.options import add_common, add_run
from potluck.commands.output import Output
from potluck.commands.reports import render_text, report_of
from potluck.commands.runs import find_run


def configure(parser: argparse.ArgumentParser) -> None:
    add_common(parser)
    add_run(parser)


def run(args: argparse.Namespace) -> int:
    output, home = Output(as_json=args.json), open_home(args.home)
    with admin_client(home) as client:
        report = report_of(client, home, find_run(client, args.run))
    output.result(report)
    output.line(render_text(report))
    which = f" {args.run}" if args.run else ""
    output.next_step(f"potluck report{which}{home_option(home)}   # report.html with curves and tables")
    return 0
