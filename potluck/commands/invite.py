"""`potluck invite`: more join strings."""

from __future__ import annotations

import argparse
import re

from potluck.commands.home import admin_client, open_home
from potluck.commands.options import add_common
from potluck.commands.output import Output
from potluck.errors import UsageError

UNITS_MS = {"m": 60_000, "h": 3_600_000, "d": 86_400_000}
MAX_DURATION_MS = 366 * UNITS_MS["d"]
"""What a coordinator allows."""


def configure(parser: argparse.ArgumentParser) -> None:
    add_common(parser)
    parser.add_argument("--count", type=int, default=1, help="how many (default 1); each admits one machine")
    parser.add_argument("--expires", default="24h", metavar="TIME", help="30m, 24h, 7d (default 24h)")
    parser.add_argument("--role", choices=("node", "router", "client", "admin"), default="node")


def run(args: argparse.Namespace) -> int:
    output = Output(as_json=args.json)
    if not 1 <= args.count <= 1000:
        raise UsageError("usage.bad-count", f"--count {args.count}", "give 1 to 1000")
    expires_ms = parse_duration_ms(args.expires)
    with admin_client(open_home(args.home)) as client:
        strings = list(client.invite(count=args.count, expires_ms=expires_ms, role=args.role))
    output.result({"join": strings, "role": args.role})
    for text in strings:
        output.line(text)
    verb = "router" if args.role == "router" else "join"
    output.next_step(elsewhere=[f"potluck {verb} 'JOIN STRING'   # on the other machine; each string works once"])
    return 0


def parse_duration_ms(text: str) -> int:
    """Milliseconds of `30m`, `24h` or `7d`.

    Raises:
        UsageError: ``usage.bad-duration``.
    """
    match = re.fullmatch(r"(\d{1,9})([mhd])", text)
    duration_ms = int(match[1]) * UNITS_MS[match[2]] if match is not None else 0
    if not 0 < duration_ms <= MAX_DURATION_MS:
        raise UsageError("usage.bad-duration", f"--expires {text!r}", "write 30m, 24h or 7d; 1m to 366d are allowed")
    return duration_ms
