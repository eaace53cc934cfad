"""`potluck join`: an expert node on this machine."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from potluck.commands.daemons import Started
from potluck.commands.doctor import checks_after_joining, checks_before_joining
from potluck.commands.enrolment import add_coordinator, start_member
from potluck.commands.foreground import run_in_foreground
from potluck.commands.home import Home, home_option, open_home
from potluck.commands.options import add_common, add_metrics, metrics_arguments
from potluck.commands.output import Output

if TYPE_CHECKING:
    from potluck.doctor.check import Check


def configure(parser: argparse.ArgumentParser) -> None:
    add_common(parser)
    parser.add_argument("join", nargs="?", default="", metavar="STRING", help="a join string; not needed to come back")
    add_coordinator(parser)
    parser.add_argument("--name", default="", help="how others see this node (default: the host name)")
    parser.add_argument("--hostname", default="", help="how this machine is called (default: what the system says)")
    cache = "most bytes of fetched blobs to keep between two leases (default: 32 GiB)"
    parser.add_argument("--cache-bytes", type=int, default=None, metavar="N", help=cache)
    parser.add_argument("--detach", action="store_true", help="go on in the background; stop with `potluck down`")
    add_metrics(parser, "this node's training")


def run(args: argparse.Namespace) -> int:
    output, home = Output(as_json=args.json), open_home(args.home)
    arguments = [*_named("--name", args.name), *_named("--hostname", args.hostname), *metrics_arguments(args)]
    if args.cache_bytes is not None:
        arguments += ["--cache-bytes", str(args.cache_bytes)]
    doubts = _doubts(checks_before_joining(home), output)
    node = start_member(
        "expert_node",
        home.node(),
        arguments,
        join=args.join,
        home=home,
        detach=args.detach,
        output=output,
        coordinator=args.coordinator,
    )
    announce = partial(_announce, node, home, output, doubts)
    if args.detach:
        announce()
        elsewhere = ["potluck nodes   # on the coordinator's machine"]
        output.next_step(f"potluck down{home_option(home)}", elsewhere=elsewhere)
        return 0
    return run_in_foreground([node], output, announce)


def _named(option: str, value: str) -> list[str]:
    return [option, value] if value else []


def _announce(node: Started, home: Home, output: Output, doubts: list[dict[str, str]]) -> None:
    doubts = doubts + _doubts(checks_after_joining(home.node()), output)
    output.result({"pid": node.record.pid, **node.record.ready, "checks": doubts})
    output.line(f"node {node.record.ready.get('node_id', '')}: pid {node.record.pid}, state in {home.node()}")


def _doubts(checks: Sequence[Check], output: Output) -> list[dict[str, str]]:
    """Those checks that did not go well, told at once: a node that will not start often says less."""
    found = [check for check in checks if check.state != "ok"]
    for check in found:
        output.note(f"{check.state}: {check.name}: {check.found}\n  fix: {check.fix}")
    return [{"name": check.name, "state": check.state, "found": check.found, "fix": check.fix} for check in found]
