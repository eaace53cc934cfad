"""`potluck router`: answers route, score and generate requests."""

from __future__ import annotations

import argparse
from functools import partial

from potluck.commands.daemons import Started
from potluck.commands.enrolment import add_coordinator, start_member
from potluck.commands.foreground import run_in_foreground
from potluck.commands.home import ROUTER_PORT, Home, home_option, open_home
from potluck.commands.options import add_common
from potluck.commands.output import Output


def configure(parser: argparse.ArgumentParser) -> None:
    add_common(parser)
    parser.add_argument("join", nargs="?", default="", metavar="STRING", help="a join string; not needed to come back")
    add_coordinator(parser)
    parser.add_argument("--host", default="", help="address to listen on (default: all, or loopback if that is home)")
    parser.add_argument("--port", type=int, default=ROUTER_PORT, help=f"port for clients and nodes ({ROUTER_PORT})")
    parser.add_argument("--http", action="store_true", help="answer JSON over HTTP on the next port too")
    parser.add_argument(
        "--count-domains",
        action="store_true",
        help="count requests by domain of the run's partition and tell the coordinator: numbers, never text",
    )
    parser.add_argument(
        "--noise",
        type=float,
        metavar="EPSILON",
        help="with --count-domains: blur the counts, so that any one request's domain is deniable within e^EPSILON",
    )
    parser.add_argument("--detach", action="store_true", help="go on in the background; stop with `potluck down`")


def run(args: argparse.Namespace) -> int:
    output, home = Output(as_json=args.json), open_home(args.home)
    arguments = ["--port", str(args.port), *(["--host", args.host] if args.host else [])]
    arguments += ["--http"] if args.http else []
    arguments += ["--count-domains"] if args.count_domains else []
    arguments += ["--noise", str(args.noise)] if args.noise is not None else []
    router = start_member(
        "router",
        home.router,
        arguments,
        join=args.join,
        home=home,
        detach=args.detach,
        output=output,
        coordinator=args.coordinator,
    )
    announce = partial(_announce, router, home, output)
    if args.detach:
        announce()
        return 0
    return run_in_foreground([router], output, announce)


def _announce(router: Started, home: Home, output: Output) -> None:
    output.result({"pid": router.record.pid, **router.record.ready})
    address = router.record.ready.get("address", "")
    output.line(f"router at {address}: pid {router.record.pid}, state in {home.router}")
    output.next_step(f'potluck route "def main():"{home_option(home)}', f'potluck generate "The"{home_option(home)}')
