"""`python -m coordinator`: one JSON line on stdout when ready, facts and errors on stderr."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

# Read when gRPC is first imported; without it every failed handshake writes to stderr.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

from coordinator.daemon import Daemon, Options, Stop
from coordinator.snapshots import SNAPSHOT_ROWS
from potluck.errors import InvariantViolation, PotluckError, ResourceError
from potluck.ids import Json
from potluck.metrics_sinks import Recorder, open_recorder


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a coordinator until a signal; returns the exit code."""
    parsed = _parser().parse_args(arguments)
    try:
        options = Options(
            home=parsed.home.expanduser(),
            host=parsed.host,
            port=parsed.port,
            advertise=parsed.advertise,
            insecure=parsed.insecure,
            quota_bytes=parsed.quota_bytes,
            unclaimed_bytes=parsed.unclaimed_bytes,
            snapshot_rows=parsed.snapshot_rows,
        )
        recorder = open_recorder(parsed.metrics, tensorboard=parsed.tensorboard)
        asyncio.run(_serve(options, recorder))
    except PotluckError as error:
        if isinstance(error, InvariantViolation):
            traceback.print_exception(error)
        return _complain(error)
    except OSError as error:
        return _complain(ResourceError("resource.home", str(error), "see that the home can be written"))
    except Exception as error:
        traceback.print_exception(error)
        fix = "report this with the traceback; what was promised is in the journal"
        return _complain(InvariantViolation("bug.coordinator", f"{type(error).__name__}: {error}", fix))
    return 0


def _complain(error: PotluckError) -> int:
    sys.stderr.write(f"{error}\n")
    return error.exit_code


async def _serve(options: Options, recorder: Recorder | None) -> None:
    stop = Stop()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.request)
    await Daemon(options, stop, recorder=recorder).run(_say_ready)


def _say_ready(fields: Mapping[str, Json]) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()
    if fields["join"] is None:
        sys.stderr.write("nodes that have joined come back by themselves; invite others with `potluck invite`\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m coordinator", description="Leases work, keeps what comes of it.")
    parser.add_argument("--home", type=Path, required=True, help="folder of the journal, the blobs and the keys")
    parser.add_argument("--host", default="0.0.0.0", help="address to listen on")
    parser.add_argument("--port", type=int, default=7470, help="base port; +1 and +2 are used too; 0: any free ones")
    parser.add_argument("--advertise", default="", help="host that join strings name")
    parser.add_argument("--insecure", action="store_true", help="plain TCP, loopback only")
    parser.add_argument("--quota-bytes", type=int, default=None, help="most bytes of blobs to keep")
    unclaimed = "most bytes that one node may have sent and nothing names yet"
    parser.add_argument("--unclaimed-bytes", type=int, default=None, help=unclaimed)
    rows = "rows of the journal from one snapshot to the next"
    parser.add_argument("--snapshot-rows", type=int, default=SNAPSHOT_ROWS, help=rows)
    parser.add_argument("--metrics", type=Path, default=None, metavar="DIR", help="write what all nodes measure here")
    parser.add_argument("--tensorboard", action="store_true", help="write TensorBoard event files too")
    return parser


if __name__ == "__main__":
    sys.exit(main())
