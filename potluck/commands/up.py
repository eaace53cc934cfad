"""`potluck up`: a coordinator, and on request a node beside it."""

from __future__ import annotations

import argparse
from functools import partial

from potluck.commands.daemons import Started, start
from potluck.commands.enrolment import start_member
from potluck.commands.foreground import run_in_foreground
from potluck.commands.home import Home, home_option, open_home
from potluck.commands.options import add_common, add_metrics, metrics_arguments
from potluck.commands.output import Output

DEFAULT_PORT = 7470


def configure(parser: argparse.ArgumentParser) -> None:
    add_common(parser)
    parser.add_argument("--host", default="0.0.0.0", help="address to listen on; 127.0.0.1 keeps it on this machine")
    ports = "base port (default: the last one of this home, else 7470); 0 takes free ones"
    parser.add_argument("--port", type=int, default=None, help=ports)
    parser.add_argument("--advertise", default="", metavar="HOST", help="address to put into join strings")
    parser.add_argument("--with-node", action="store_true", help="start an expert node here too")
    parser.add_argument("--detach", action="store_true", help="go on in the background; stop with `potluck down`")
    parser.add_argument("--insecure", action="store_true", help="plain TCP, loopback only: for tests")
    parser.add_argument("--quota-bytes", type=int, default=0, help="most bytes of blobs to keep on disk")
    unclaimed = (
        "most bytes that one node may have sent and nothing names yet (default 32 GiB, or a quarter of the disk)"
    )
    parser.add_argument("--unclaimed-bytes", type=int, default=0, help=unclaimed)
    add_metrics(parser, "every node's training")


def run(args: argparse.Namespace) -> int:
    output, home = Output(as_json=args.json), open_home(args.home)
    arguments = ["--host", args.host, "--port", str(_port(args.port, home))]
    arguments += ["--advertise", args.advertise] if args.advertise else []
    arguments += ["--insecure"] if args.insecure else []
    arguments += ["--quota-bytes", str(args.quota_bytes)] if args.quota_bytes else []
    arguments += ["--unclaimed-bytes", str(args.unclaimed_bytes)] if args.unclaimed_bytes else []
    arguments += metrics_arguments(args)
    with output.timed("starting the coordinator"):
        coordinator = start("coordinator", home.coordinator, arguments, own_session=args.detach)
    started = [coordinator]
    if args.with_node:
        started.insert(0, _start_node(home, detach=args.detach, output=output))
    announce = partial(_announce, coordinator, home, output, detach=args.detach)
    if args.detach:
        announce()
        return 0
    return run_in_foreground(started, output, announce)


def _port(wished: int | None, home: Home) -> int:
    """Nodes keep the ports they joined with: a home comes back where it was, which port 0 stands for."""
    if wished is not None:
        return wished
    return 0 if (home.coordinator / "coordinator.json").exists() else DEFAULT_PORT


def _start_node(home: Home, *, detach: bool, output: Output) -> Started:
    return start_member("expert_node", home.node(), [], join="", home=home, detach=detach, output=output)


def _announce(coordinator: Started, home: Home, output: Output, *, detach: bool) -> None:
    record = coordinator.record
    join = record.ready["join"]
    output.result({**record.ready, "pid": record.pid})
    output.line(f"coordinator: pid {record.pid}, port {record.ready['control']}, state in {home.coordinator}")
    suffix = home_option(home)
    stop = [f"potluck down{suffix}   # stops it"] if detach else []
    if join is None:
        output.line("its nodes come back by themselves")
        output.next_step(f"potluck invite{suffix}   # lets others in", *stop)
        return
    output.line("join string, for one node (`potluck invite` makes more):")
    output.line(join)
    start_run = f"potluck run start SPEC.toml{suffix}   # here"
    output.next_step(start_run, *stop, elsewhere=[f"potluck join '{join}'   # on the other machine"])
