"""`potluck backup`: a copy of a coordinator's home, made while it works or while it rests."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from potluck.commands.home import Home, admin_client, open_home
from potluck.commands.offline import offline
from potluck.commands.options import add_common
from potluck.commands.output import Output
from potluck.errors import ResourceError, UsageError
from potluck.formatting import human_bytes
from potluck.ids import short

EXIT_INCOMPLETE = 1
MAX_SHOWN = 5


def configure(parser: argparse.ArgumentParser) -> None:
    add_common(parser)
    parser.add_argument("target", metavar="FILE_OR_DIR", help="a new folder, or a new file that ends in .tar")


def run(args: argparse.Namespace) -> int:
    output, home = Output(as_json=args.json), open_home(args.home)
    target = Path(args.target).expanduser().resolve()
    if not home.coordinator.is_dir():
        what = f"no coordinator was started under {home.root}"
        raise UsageError("usage.no-coordinator", what, "point --home at the folder of one")
    with output.timed("backing up"):
        made = _made(home, target)
    output.result({"target": str(target), **made})
    count = f"{made['events']} events, {made['blobs']} blobs ({human_bytes(made['bytes'])})"
    output.line(f"backed up {count} to {target}")
    output.line("it holds private keys: whoever reads it owns the cluster. Its files are readable by their owner only")
    if target.is_dir() and _shares_blobs(home, target):
        output.line("its blobs are hard links to those of the home: copy it to another disk")
    for what in ("missing", "damaged"):
        if made[what]:
            named = ", ".join(short(digest) for digest in made[what][:MAX_SHOWN])
            output.note(f"warning: {len(made[what])} blob(s) that the state needs are {what} in the home: {named}")
    if made["missing"] or made["damaged"]:
        output.note("the backup lacks them; runs that need them will fail there as they will here")
        return EXIT_INCOMPLETE
    output.next_step(elsewhere=[f"potluck restore {target} --home NEW   # on any machine that has a copy of it"])
    return 0


def _made(home: Home, target: Path) -> Mapping[str, Any]:
    """By the coordinator itself where one runs: its journal is locked for everybody else."""
    try:
        return offline("back-up", home.coordinator, str(target))
    except ResourceError as error:
        if error.error_id != "resource.locked":
            raise
    with admin_client(home) as client:
        made = client.back_up(target)
    return {
        "events": made.events,
        "blobs": made.blobs,
        "bytes": made.bytes,
        "missing": list(made.missing),
        "damaged": list(made.damaged),
    }


def _shares_blobs(home: Home, target: Path) -> bool:
    return home.coordinator.stat().st_dev == target.stat().st_dev
