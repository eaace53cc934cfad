"""`python -m coordinator.offline back-up|restore|check`: what is done to a home while no coordinator runs on it.

One JSON object on stdout: what was done, or `{"error": {"id", "message", "fix"}}`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from coordinator.backup import Backup, back_up_closed
from coordinator.home import CoordinatorHome
from coordinator.journal import problems_of, read_closed
from coordinator.restore import restore
from potluck.clock import SystemClock
from potluck.errors import PotluckError, ResourceError, UsageError
from potluck.ids import Json


def main(arguments: Sequence[str] | None = None) -> int:
    """Does one thing and returns its exit code."""
    parsed = _parser().parse_args(arguments)
    try:
        answer = _do(parsed)
    except PotluckError as error:
        _say({"error": {"id": error.error_id, "message": error.message, "fix": error.fix}})
        return error.exit_code
    except OSError as error:
        where = str(error.filename) if error.filename is not None else str(parsed.home)
        fix = "see that the path is of the right kind, may be read and written, and has room"
        _say({"error": {"id": "resource.io", "message": f"{where}: {error.strerror or error}", "fix": fix}})
        return ResourceError.exit_code
    _say(answer)
    return 0


def summary(made: Backup) -> dict[str, Json]:
    """A backup for people and programs: its parts are counted, not named."""
    return {
        "events": made.events,
        "blobs": len(made.blobs),
        "bytes": made.blob_bytes,
        "missing": list(made.missing),
        "damaged": list(made.damaged),
        "potluck": made.potluck,
        "made_unix_ms": made.made_unix_ms,
    }


def _do(parsed: argparse.Namespace) -> Mapping[str, Json]:
    match parsed.verb:
        case "back-up":
            _require_home(parsed.home)
            unix_ms = SystemClock().unix_ms()
            return summary(back_up_closed(CoordinatorHome(parsed.home), parsed.target, unix_ms=unix_ms))
        case "restore":
            return summary(restore(parsed.source, parsed.home))
        case _:
            _require_home(parsed.home)
            journal = parsed.home / "journal.db"
            problems = problems_of(journal)
            events = 0 if problems else sum(1 for _ in read_closed(journal))
            return {"events": events, "problems": list(problems)}


def _require_home(home: Path) -> None:
    if not (home / "journal.db").is_file():
        raise UsageError("usage.no-coordinator", f"{home} holds no journal", "name the home of a coordinator")


def _say(answer: Mapping[str, Json]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m coordinator.offline", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("back-up", "restore", "check"):
        one = verbs.add_parser(verb)
        one.add_argument("--home", type=Path, required=True, help="the coordinator's own folder")
        if verb == "back-up":
            one.add_argument("target", type=Path)
        if verb == "restore":
            one.add_argument("source", type=Path)
    return parser


if __name__ == "__main__":
    sys.exit(main())
