"""`potluck demo`: train and serve a small mixture on this machine (what `make demo` runs)."""

from __future__ import annotations

import argparse
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from potluck.commands.output import Output, shown
from potluck.errors import UsageError

EXIT_INTERRUPTED = 130
QUICK_MINUTES = 3.0


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dir", type=Path, default=Path("demo"), help="where everything is kept (default ./demo)")
    parser.add_argument("--data", type=Path, default=None, metavar="FOLDER", help="your own text instead of the corpus")
    parser.add_argument("--minutes", type=float, default=8.0, help="size of the training (default 8)")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_MINUTES:g} minutes")
    parser.add_argument("--set", choices=("quick", "full-wheels"), default="quick", help="which demo corpus to fetch")
    parser.add_argument("--no-serve", action="store_true", help="stop the daemons at the end")
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object on stdout")


def run(args: argparse.Namespace) -> int:
    from potluck.demo.cluster import stop_cluster
    from potluck.demo.session import SOUP_NAME, Demo, await_serving, run_demo

    output = Output(as_json=args.json)
    if args.data is not None and not args.data.exists():
        raise UsageError("usage.no-data", f"--data {args.data} does not exist", "give a folder or file of text")
    demo = Demo(
        folder=args.dir.resolve(),
        data=None if args.data is None else args.data.resolve(),
        minutes=QUICK_MINUTES if args.quick else args.minutes,
        corpus_set=args.set,
    )
    serve = False
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        report = run_demo(demo, output)
        expert = await_serving(demo.home, output)
        output.line(f"the mixture serves; a router sends Python code to expert {expert}")
        serve = not args.no_serve
    except KeyboardInterrupt:
        return _interrupted(demo.folder, output)
    finally:
        if not serve:
            _stop(lambda now: stop_cluster(demo.home, at_once=now), output)
        signal.signal(signal.SIGTERM, previous)
    output.result(report)
    if serve:
        home = shlex.quote(shown(demo.home.root))
        output.next_step(
            f'potluck route "def main():" --home {home}',
            f'potluck generate "def main():" --home {home}',
            f"potluck run start {shlex.quote(shown(demo.soup))} --watch --home {home}   # trains a soup; then: "
            f"potluck soup {SOUP_NAME} --home {home}",
            f"potluck down --home {home}   # stops the daemons",
        )
    return 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _interrupted(folder: Path, output: Output) -> int:
    output.end_progress()
    output.note(f"interrupted; the same command goes on from what is committed in {folder}")
    return EXIT_INTERRUPTED


def _stop(stop: Callable[[bool], object], output: Output) -> None:
    """The first Ctrl+C drains; one more while draining ends the daemons at once."""
    output.note("stopping the daemons; Ctrl+C stops them at once")
    try:
        stop(False)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        stop(True)
