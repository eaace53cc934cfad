"""``python -m expert_node --home H [--join STRING] [--name N]``: one expert node until it is told to stop."""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import json
import os
import platform
import signal
import sys
from pathlib import Path
from typing import IO

from expert_node.cache import DEFAULT_LIMIT_BYTES
from expert_node.daemon import Node
from potluck.crashpoints import crash_here
from potluck.errors import InvariantViolation, JoinError, PotluckError, ResourceError, UsageError
from potluck.metrics_sinks import Recorder, open_recorder
from potluck.net.blobs.store import disk_errors
from potluck.net.identity import Identity
from potluck.net.join import enrol
from potluck.net.moving import with_ports_of_now
from potluck.net.version import make_hello
from potluck.telemetry import logger

INTERRUPTED = 130

log = logger("expert_node")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m expert_node", description="An expert node of Potluck.")
    parser.add_argument("--home", type=Path, required=True, help="folder of this node; one node at a time uses it")
    parser.add_argument("--join", default="", metavar="STRING", help="join string; needed the first time only")
    parser.add_argument("--name", default=platform.node() or "node", help="name to be shown under")
    parser.add_argument("--hostname", default="", help="how this machine is called; its nodes do not double each other")
    cache = "most bytes of fetched blobs to keep between two leases"
    parser.add_argument("--cache-bytes", type=int, default=DEFAULT_LIMIT_BYTES, metavar="N", help=cache)
    parser.add_argument("--metrics", type=Path, default=None, metavar="DIR", help="write what training measures here")
    parser.add_argument("--tensorboard", action="store_true", help="write TensorBoard event files too")
    arguments = parser.parse_args()
    try:
        if arguments.cache_bytes < 1:
            raise UsageError("usage.bad-quota", f"--cache-bytes {arguments.cache_bytes}", "give 1 or more")
        with disk_errors(arguments.home):
            lock = lock_home(arguments.home)
            recorder = open_recorder(arguments.metrics, tensorboard=arguments.tensorboard)
            identity = identity_of(arguments.home, arguments.join, arguments.name)
            with lock:
                asyncio.run(serve(identity, recorder, arguments))
    except PotluckError as error:
        log.fact("node-ends", error_id=error.error_id)
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except Exception as error:  # The process's boundary: a mistake of ours, with its traceback.
        log.failure("node-failed", error)
        return InvariantViolation.exit_code
    return 0


async def serve(identity: Identity, recorder: Recorder | None, arguments: argparse.Namespace) -> None:
    """Runs the node; the first SIGTERM or SIGINT stops it in good order, the second at once."""
    node = Node(
        arguments.home,
        identity,
        boot_id=os.urandom(8).hex(),
        recorder=recorder,
        hostname=arguments.hostname,
        cache_bytes=arguments.cache_bytes,
    )
    loop = asyncio.get_running_loop()
    asked: list[int] = []

    def on_signal(number: int) -> None:
        asked.append(number)
        if len(asked) > 1:
            # The children die with us: they watch their parent and their stdin.
            os._exit(INTERRUPTED)
        log.fact("stopping", signal=signal.Signals(number).name)
        node.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    ready = loop.create_task(say_ready(node))
    try:
        await node.run()
    finally:
        ready.cancel()


async def say_ready(node: Node) -> None:
    """One JSON line on stdout once the coordinator has said welcome."""
    await node.welcomed.wait()
    sys.stdout.write(json.dumps({"event": "ready", "node_id": node.identity.node_id}) + "\n")
    sys.stdout.flush()


def identity_of(home: Path, join: str, name: str) -> Identity:
    """The kept identity, or a new one by the join string.

    Raises:
        JoinError: there is neither, or the coordinator refuses.
        NotReachable: the coordinator does not answer.
    """
    folder = home / "identity"
    try:
        identity = Identity.load(folder)
    except JoinError as error:
        if error.error_id != "join.no-identity" or not join:
            raise
        identity = enrol(join, name=name, hello=make_hello(boot_id=""), wanted_role="node", folder=folder)
        crash_here("node.mid-enrol")
        identity.save(folder)
        log.fact("enrolled", node=identity.node_id, coordinator=identity.control_target)
        return identity
    if join:
        log.fact("identity-kept", node=identity.node_id, coordinator=identity.control_target)
    return with_ports_of_now(identity, folder)


def lock_home(home: Path) -> IO[str]:
    """Holds the home for this process.

    Raises:
        ResourceError: ``resource.home-in-use``.
    """
    work = home / "work"
    work.mkdir(parents=True, exist_ok=True)
    lock = (work / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise ResourceError(
            "resource.home-in-use", f"another node runs on {home}", "stop it, or give this one a --home of its own"
        ) from None
    return lock


if __name__ == "__main__":
    sys.exit(main())
