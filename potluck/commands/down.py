"""`potluck down`: drains and stops every daemon started under a home."""

from __future__ import annotations

import argparse

from potluck.commands.daemons import stop_all
from potluck.commands.home import open_home
from potluck.commands.options import add_common
from potluck.commands.output import Output


def configure(parser: argparse.ArgumentParser) -> None:
    add_common(parser)
    parser.add_argument("--now", action="store_true", help="do not drain; committed work is safe all the same")


def run(args: argparse.Namespace) -> int:
    output, home = Output(as_json=args.json), open_home(args.home)
    folders = home.daemon_folders()
    with output.timed(f"stopping {len(folders)} daemon(s)"):
        members = [folder for folder in folders if folder != home.coordinator]
        # The coordinator last: nodes hand their finished commits over while it still listens.
        stopped = stop_all(members, at_once=args.now) + stop_all([home.coordinator], at_once=args.now)
    output.result({"stopped": [{"kind": record.kind, "pid": record.pid} for record in stopped]})
    for record in stopped:
        output.line(f"stopped {record.kind} (pid {record.pid})")
    if not stopped:
        output.line(f"nothing runs under {home.root}")
    return 0
