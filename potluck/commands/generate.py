"""`potluck generate TEXT`: continue a text with the expert it is routed to."""

from __future__ import annotations

import argparse

from potluck.commands.home import open_home, router_client
from potluck.commands.options import add_common
from potluck.commands.output import Output
from potluck.commands.soup_models import MODEL_HELP, checked_model


def configure(parser: argparse.ArgumentParser) -> None:
    add_common(parser)
    parser.add_argument("text")
    parser.add_argument("--router", default="", metavar="HOST:PORT", help="default: the first one known")
    parser.add_argument("--run", default="", help="default: the newest published run")
    parser.add_argument("--slot", default="", help="expert-2 or dense, instead of the routed expert")
    parser.add_argument("--model", default="", metavar="NAME", help=MODEL_HELP)
    parser.add_argument("--tokens", type=int, default=64, help="most tokens to add, 1 to 1024 (default 64)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest token (default 0.8)")
    parser.add_argument("--top-k", type=int, default=0, help="0: no limit")
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    stop_help = "end before this text; may be given up to 8 times"
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help=stop_help)


def run(args: argparse.Namespace) -> int:
    output, home, model = Output(as_json=args.json), open_home(args.home), checked_model(args.model, args.slot)
    pieces: list[str] = []
    ids: list[int] = []
    finish, expert = "", 0
    with router_client(home, args.router) as client:
        stream = client.generate(
            args.text,
            run=args.run,
            slot=args.slot,
            max_tokens=args.tokens,
            temperature=args.temperature,
            top_k=args.top_k,
            top_p=args.top_p,
            seed=args.seed,
            stop=args.stop,
            model=model,
        )
        for piece in stream:
            output.raw(piece.text if pieces else args.text + piece.text)
            pieces.append(piece.text)
            ids.extend(piece.ids)
            finish, expert = piece.finish, piece.expert
    output.line()
    output.result({"text": "".join(pieces), "ids": ids, "expert": expert, "model": model, "finish": finish})
    if not output.as_json:
        output.note(f"({model or args.slot or f'expert {expert}'}, {len(ids)} tokens)")
    return 0
