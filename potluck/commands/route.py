"""`potluck route TEXT`: which expert would take it, and by how much."""

from __future__ import annotations

import argparse

from potluck.commands.home import home_option, open_home, router_client
from potluck.commands.options import add_common
from potluck.commands.output import Output


def configure(parser: argparse.ArgumentParser) -> None:
    add_common(parser)
    parser.add_argument("text", help="the text's beginning; only a short prefix is read")
    parser.add_argument("--router", default="", metavar="HOST:PORT", help="default: the first one known")
    parser.add_argument("--run", default="", help="default: the newest published run")


def run(args: argparse.Namespace) -> int:
    output, home = Output(as_json=args.json), open_home(args.home)
    with router_client(home, args.router) as client:
        routed = client.route(args.text, run=args.run)
    output.result(
        {
            "expert": routed.expert,
            "prefix_nll": list(routed.prefix_nll),
            "prefix_tokens": routed.prefix_tokens,
            "run": routed.run,
            "view_version": routed.view_version,
        }
    )
    output.line(f"expert {routed.expert}, decided on {routed.prefix_tokens} tokens")
    rows = [
        [f"expert {index}", f"{nll:.3f}", "<- least" if index == routed.expert else ""]
        for index, nll in enumerate(routed.prefix_nll)
    ]
    if rows:  # else no router models decided
        output.table(["router of", "nats per token", ""], rows)
    output.next_step(f"potluck generate {args.text!r}{home_option(home)}")
    return 0
