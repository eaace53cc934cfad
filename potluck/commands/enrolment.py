"""What `join` and `router` share: whose join string a new daemon uses, and how it is started."""

from __future__ import annotations

import argparse
from pathlib import Path

from potluck.commands.daemons import Kind, Started, require_stopped, start
from potluck.commands.home import Home, admin_client
from potluck.commands.output import Output
from potluck.errors import UsageError

INVITE_MS = 10 * 60_000


def add_coordinator(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--coordinator",
        default="",
        metavar="HOST:PORT",
        help="where the coordinator it joined is now: it has moved, or has other ports; kept for later starts",
    )


def start_member(
    kind: Kind,
    folder: Path,
    arguments: list[str],
    *,
    join: str,
    home: Home,
    detach: bool,
    output: Output,
    coordinator: str = "",
) -> Started:
    """Starts a node or router: with the string given, with its certificate, or invited from this very home.

    Args:
        coordinator: host:port of the control port, if it is another than when this member joined.

    Raises:
        UsageError: ``usage.no-join-string``, ``usage.bad-arguments``.
    """
    if coordinator:
        if join:
            what = "--coordinator is for who has joined already; a join string names its coordinator itself"
            raise UsageError("usage.bad-arguments", what, "give one of them")
        _follow(kind, folder, coordinator, output)
    if join:
        arguments = ["--join", join, *arguments]
    elif not _has_identity(folder):
        arguments = ["--join", _own_invitation(kind, home), *arguments]
    with output.timed(f"starting the {'router' if kind == 'router' else 'node'}"):
        return start(kind, folder, arguments, own_session=detach)


def _follow(kind: Kind, folder: Path, coordinator: str, output: Output) -> None:
    from potluck.net.identity import Identity
    from potluck.net.moving import find_again

    require_stopped(kind, folder)
    before = Identity.load(folder / "identity")
    after = find_again(before, coordinator)
    after.save(folder / "identity")
    output.note(f"the coordinator is at {after.control_target} now; it was at {before.control_target}")


def _has_identity(folder: Path) -> bool:
    return (folder / "identity" / "identity.json").is_file()


def _own_invitation(kind: Kind, home: Home) -> str:
    if not home.admin_identity.is_dir():
        raise UsageError(
            "usage.no-join-string",
            f"this machine has not joined anybody yet, and no coordinator was started under {home.root}",
            "give the join string that `potluck up` or `potluck invite` printed",
        )
    role = "router" if kind == "router" else "node"
    with admin_client(home) as client:
        return next(iter(client.invite(count=1, expires_ms=INVITE_MS, role=role)))
