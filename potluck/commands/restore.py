"""`potluck restore`: a new home from a backup, on this machine or another."""

from __future__ import annotations

import argparse
from pathlib import Path

from potluck.commands.home import home_option, open_home
from potluck.commands.offline import offline
from potluck.commands.options import add_common
from potluck.commands.output import Output, command_name
from potluck.formatting import human_bytes


def configure(parser: argparse.ArgumentParser) -> None:
    add_common(parser)
    parser.add_argument("source", metavar="FILE_OR_DIR", help="what `potluck backup` wrote")


def run(args: argparse.Namespace) -> int:
    output, home = Output(as_json=args.json), open_home(args.home)
    source = Path(args.source).expanduser().resolve()
    with output.timed("restoring"):
        made = offline("restore", home.coordinator, str(source))
    output.result({"home": str(home.coordinator), **made})
    output.line(f"{made['events']} events, {made['blobs']} blobs ({human_bytes(made['bytes'])}), every digest checked")
    output.line(f"state in {home.coordinator}")
    if made["missing"] or made["damaged"]:
        lacking = len(made["missing"]) + len(made["damaged"])
        output.note(f"warning: {lacking} blob(s) were missing or damaged already when the backup was taken")
    output.note("let the coordinator it was taken from never run again: two of them would tell nodes different things")
    output.next_step(
        elsewhere=[
            f"{command_name()} up{home_option(home)}   # here; --host and --port as you want",
            "potluck join --coordinator HOST:PORT   # then on each node's machine",
            "potluck router --coordinator HOST:PORT   # and on each router's",
        ]
    )
    return 0
