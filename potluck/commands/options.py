"""Options that commands share."""

from __future__ import annotations

import argparse

from potluck.commands.home import DEFAULT_ROOT


def add_common(parser: argparse.ArgumentParser) -> None:
    """--home and --json, which every command has."""
    parser.add_argument("--home", default=str(DEFAULT_ROOT), metavar="DIR", help="state folder (default ~/.potluck)")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")


def add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run", nargs="?", default="", metavar="RUN", help="id, start of an id, or name (default: newest)"
    )
