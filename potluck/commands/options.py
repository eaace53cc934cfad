"""Options that commands share."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from potluck.commands.home import DEFAULT_ROOT
from potluck.errors import UsageError


def add_common(parser: argparse.ArgumentParser) -> None:
    """--home and --json, which every command has."""
    parser.add_argument("--home", default=str(DEFAULT_ROOT), metavar="DIR", help="state folder (default ~/.potluck)")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")


def add_metrics(parser: argparse.ArgumentParser, whose: str) -> None:
    """--metrics and --tensorboard, of the commands that start who measures.

    Args:
        whose: of which nodes, for the help.
    """
    parser.add_argument("--metrics", default="", metavar="DIR", help=f"keep what {whose} measures in files here")
    parser.add_argument("--tensorboard", action="store_true", help="with --metrics: TensorBoard event files too")


def metrics_arguments(args: argparse.Namespace) -> list[str]:
    """The daemon's arguments for them; a folder is told by its full path."""
    folder = ["--metrics", str(Path(args.metrics).expanduser().resolve())] if args.metrics else []
    return folder + (["--tensorboard"] if args.tensorboard else [])


def add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run", nargs="?", default="", metavar="RUN", help="id, start of an id, or name (default: newest)"
    )


def require_writable(out: Path) -> None:
    """Before anything is trained: the table is written at the end.

    Raises:
        UsageError: ``usage.bad-out``.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        fix = "name a folder that can be written"
        raise UsageError("usage.bad-out", f"--out {out}: {error.strerror}", fix) from None
