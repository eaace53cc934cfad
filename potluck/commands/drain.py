"""`potluck drain`: a node finishes what it holds and gets no more work."""

from __future__ import annotations

import argparse

from potluck.commands.home import admin_client, home_option, open_home
from potluck.commands.options import add_common
from potluck.commands.output import Output


def configure(parser: argparse.ArgumentParser) -> None:
    add_common(parser)
    parser.add_argument("node", metavar="NODE", help="id, start of an id, or name; `potluck nodes` lists them")
    parser.add_argument("--undo", action="store_true", help="give it work again")


def run(args: argparse.Namespace) -> int:
    output, home = Output(as_json=args.json), open_home(args.home)
    with admin_client(home) as client:
        node = client.drain_node(args.node, undo=args.undo).node
    output.result({"node": node, "drained": not args.undo})
    if args.undo:
        output.line(f"{node} gets work again")
        return 0
    output.line(f"{node} finishes its task, or trains to its next commit, and gets no more; it serves on")
    suffix = home_option(home)
    output.next_step(f"potluck nodes{suffix}   # idle: it can be stopped", f"potluck drain {node} --undo{suffix}")
    return 0
