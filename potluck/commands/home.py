"""Where things lie under `--home`, and who we are when we call the coordinator.

HOME/coordinator/   a coordinator's state; admin/identity/ lets this person administer it
HOME/node*/         an expert node's state
HOME/router/        a router's state
HOME/*/daemon.json  pid and ready line of a daemon started here
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from potluck.errors import NotReachable, UsageError

if TYPE_CHECKING:
    from potluck.client import AdminClient, RouterClient
    from potluck.net.identity import Identity

DEFAULT_ROOT = Path("~/.potluck")
ROUTER_PORT = 7473


@dataclass(frozen=True, kw_only=True)
class Home:
    root: Path

    @property
    def coordinator(self) -> Path:
        return self.root / "coordinator"

    @property
    def router(self) -> Path:
        return self.root / "router"

    @property
    def admin_identity(self) -> Path:
        return self.coordinator / "admin" / "identity"

    def node(self, index: int = 0) -> Path:
        """The folder of the only node (0), or of one of several (1, 2, ...)."""
        return self.root / ("node" if index == 0 else f"node-{index}")

    def scratch(self, name: str) -> Path:
        folder = self.root / "scratch" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def daemon_folders(self) -> list[Path]:
        """Folders with a pid file; the coordinator last, so that it outlives those who report to it."""
        found = [path.parent for path in self.root.glob("*/daemon.json")]
        return sorted(found, key=lambda folder: (folder.name == "coordinator", folder.name))


def open_home(text: str) -> Home:
    return Home(root=Path(text).expanduser().resolve())


def home_option(home: Home) -> str:
    """What a suggested command must add to find this home; nothing for the default one."""
    return "" if home.root == open_home(str(DEFAULT_ROOT)).root else f" --home {home.root}"


def identity_of(home: Home) -> Identity:
    """The administrator's identity, written by the coordinator in this home.

    Raises:
        UsageError: ``usage.no-coordinator``: none was ever started here.
    """
    from potluck.net.identity import Identity

    if not home.admin_identity.is_dir():
        raise UsageError(
            "usage.no-coordinator",
            f"no coordinator was started under {home.root}",
            "start one with `potluck up`, or point --home at the folder of one",
        )
    return Identity.load(home.admin_identity)


def admin_client(home: Home) -> AdminClient:
    from potluck.client import AdminClient

    return AdminClient(identity_of(home))


def router_client(home: Home, target: str) -> RouterClient:
    """A client of the router at `target` (host:port); by default of the first the coordinator names."""
    from potluck.client import RouterClient, first_router

    identity = identity_of(home)
    try:
        return RouterClient(identity, target or first_router(identity))
    except NotReachable as error:
        if target or error.error_id == "net.no-router":
            raise
        # Routers answer without a coordinator, but it is the coordinator that knows where they are.
        fix = f"{error.fix}; or name a router: --router HOST:PORT"
        raise NotReachable(error.error_id, error.message, fix) from error
