"""`potluck score TEXT`: how probable a text is, token by token."""

from __future__ import annotations

import argparse
import math

from potluck.commands.home import open_home, router_client
from potluck.commands.options import add_common
from potluck.commands.output import Output
from potluck.commands.soup_models import MODEL_HELP, checked_model
from potluck.errors import UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    add_common(parser)
    parser.add_argument("text")
    parser.add_argument("--router", default="", metavar="HOST:PORT", help="default: the first one known")
    parser.add_argument("--run", default="", help="default: the newest published run")
    parser.add_argument("--slot", default="", help="expert-2 or dense, instead of the routed expert")
    parser.add_argument("--model", default="", metavar="NAME", help=MODEL_HELP)


def run(args: argparse.Namespace) -> int:
    output, home, model = Output(as_json=args.json), open_home(args.home), checked_model(args.model, args.slot)
    with router_client(home, args.router) as client:
        scored = client.score(args.text, run=args.run, slot=args.slot, model=model)
    count = len(scored.log_probs)
    if not count:
        message = f"{args.text!r} is a single token, and the first token of a text has no probability"
        raise UsageError("usage.too-short", message, "give a longer text")
    nll = -sum(scored.log_probs) / count
    output.result(
        {
            "expert": scored.expert,
            "ids": list(scored.ids),
            "log_probs": list(scored.log_probs),
            "model": model,
            "nll": nll,
            "run": scored.run,
            "view_version": scored.view_version,
        }
    )
    by = model or args.slot or f"expert {scored.expert}"
    output.line(f"{by}: {nll:.4f} nats per token over {count} tokens, perplexity {math.exp(nll):.2f}")
    return 0
