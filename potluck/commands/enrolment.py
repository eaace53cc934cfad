"""What `join` and `router` share: whose join string a new daemon uses, and how it is started."""

from __future__ import annotations

from pathlib import Path

from potluck.commands.daemons import Kind, Started, start
from potluck.commands.home import Home, admin_client
from potluck.commands.output import Output
from potluck.errors import UsageError

INVITE_MS = 10 * 60_000


def start_member(
    kind: Kind, folder: Path, arguments: list[str], *, join: str, home: Home, detach: bool, output: Output
) -> Started:
    """Starts a node or router: with the string given, with its certificate, or invited from this very home.

    Raises:
        UsageError: ``usage.no-join-string``.
    """
    if join:
        arguments = ["--join", join, *arguments]
    elif not _has_identity(folder):
        arguments = ["--join", _own_invitation(kind, home), *arguments]
    with output.timed(f"starting the {'router' if kind == 'router' else 'node'}"):
        return start(kind, folder, arguments, own_session=detach)


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
