"""``python -m router --home H [--join STRING]``: one router until it is told to stop."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import fcntl
import json
import os
import platform
import secrets
import signal
import sys
from pathlib import Path
from typing import IO

from potluck import telemetry
from potluck.errors import InvariantViolation, JoinError, PotluckError, ResourceError, UsageError
from potluck.net.blobs.store import disk_errors
from potluck.net.identity import Identity
from potluck.net.join import enrol
from potluck.net.moving import with_ports_of_now
from potluck.net.version import make_hello
from router.daemon import Options, RouterDaemon
from router.patience import LONGEST_WAIT_S
from router.traffic import Noise

PORT = 7473
SEED_BITS = 256
INTERRUPTED = 130

log = telemetry.logger("router")


def main() -> int:
    arguments = _parser().parse_args()
    try:
        options = _options(arguments)
        with disk_errors(options.home), lock_home(options.home):
            identity = identity_of(options.home, arguments.join, arguments.name, insecure=arguments.insecure)
            asyncio.run(serve(identity, options))
    except PotluckError as error:
        log.fact("router-ends", error_id=error.error_id)
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except Exception as error:  # the process's boundary: a mistake of ours, with its traceback
        log.failure("router-failed", error)
        return InvariantViolation.exit_code
    return 0


async def serve(identity: Identity, options: Options) -> None:
    """Runs the router; the first SIGTERM or SIGINT stops it in good order, the second at once."""
    stopped = asyncio.Event()

    def on_signal(number: int) -> None:
        if stopped.is_set():
            os._exit(INTERRUPTED)
        log.fact("stopping", signal=signal.Signals(number).name)
        stopped.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal, number)
    daemon = RouterDaemon(identity, options)
    try:
        where = await daemon.start()
        await daemon.introduced()
        ready = {"event": "ready", "node_id": identity.node_id, "pid": os.getpid(), **dataclasses.asdict(where)}
        sys.stdout.write(json.dumps(ready) + "\n")
        sys.stdout.flush()
        waits = [asyncio.create_task(stopped.wait()), asyncio.create_task(daemon.failed())]
        done, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        for task in done:
            task.result()
    finally:
        await daemon.stop()


def identity_of(home: Path, join: str, name: str, *, insecure: bool) -> Identity:
    """The kept identity, or a new one by the join string.

    Raises:
        JoinError: there is neither, the coordinator refuses, or the string was not for a router.
        UsageError: ``usage.insecure``: the identity has keys and --insecure was given.
        NotReachable: the coordinator does not answer.
    """
    folder = home / "identity"
    try:
        identity = Identity.load(folder)
    except JoinError as error:
        if error.error_id != "join.no-identity" or not join:
            raise
        identity = enrol(join, name=name, hello=make_hello(boot_id=""), wanted_role="router", folder=folder)
        if identity.role == "router":
            identity.save(folder)
            log.fact("enrolled", node=identity.node_id, coordinator=identity.control_target)
    if identity.role != "router":
        fix = "ask for another: potluck invite --role router"
        raise JoinError("join.wrong-role", f"this join string or identity is for a {identity.role}", fix)
    if insecure and not identity.insecure:
        raise UsageError("usage.insecure", "--insecure was given, but this router has keys", "leave --insecure away")
    return identity if identity.insecure else with_ports_of_now(identity, folder)


def lock_home(home: Path) -> IO[str]:
    """Holds the home for this process.

    Raises:
        ResourceError: ``resource.home-in-use``.
    """
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = (home / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        fix = "stop it, or give this one a --home of its own"
        raise ResourceError("resource.home-in-use", f"another router runs on {home}", fix) from None
    return lock


def _options(arguments: argparse.Namespace) -> Options:
    """Raises:
    UsageError: ``usage.bad-noise``: out of range, or nothing is counted that it could blur.
    """
    noise = None
    if arguments.noise is not None:
        if not arguments.count_domains:
            raise UsageError("usage.bad-noise", "--noise blurs counts, and nothing is counted", "add --count-domains")
        noise = Noise(epsilon=arguments.noise, seed=lambda: secrets.randbits(SEED_BITS))
    return Options(
        home=arguments.home,
        host=arguments.host,
        advertise=arguments.advertise,
        port=arguments.port,
        http=arguments.http,
        patience_s=arguments.patience,
        count_domains=arguments.count_domains,
        noise=noise,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m router", description="A router of Potluck.")
    parser.add_argument("--home", type=Path, required=True, help="folder of this router; one router at a time uses it")
    parser.add_argument("--join", default="", metavar="STRING", help="join string; needed the first time only")
    parser.add_argument("--name", default=platform.node() or "router", help="name to be shown under")
    parser.add_argument("--host", default="", help="address to listen on (default: all; loopback when insecure)")
    parser.add_argument("--advertise", default="", metavar="HOST", help="host that nodes and clients dial")
    parser.add_argument("--port", type=int, default=PORT, help=f"port for clients and nodes ({PORT}); 0: any free one")
    parser.add_argument("--http", action="store_true", help="answer JSON over HTTP on the next port, on loopback")
    parser.add_argument(
        "--patience",
        type=float,
        default=LONGEST_WAIT_S,
        metavar="S",
        help=f"seconds a request waits for a first view and its replicas ({LONGEST_WAIT_S:g})",
    )
    parser.add_argument(
        "--count-domains",
        action="store_true",
        help="count requests by domain of the run's partition, and tell the coordinator: numbers, never text",
    )
    parser.add_argument(
        "--noise",
        type=float,
        metavar="EPSILON",
        help="blur the counts before they leave: any one request's domain stays deniable within e^EPSILON",
    )
    parser.add_argument("--insecure", action="store_true", help="expect an identity without keys; loopback only")
    return parser


if __name__ == "__main__":
    sys.exit(main())
