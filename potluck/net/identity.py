"""Who this program is: its certificate, its keys and where its coordinator lives, in one private file."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from potluck.errors import JoinError
from potluck.ids import NodeId
from potluck.net.address import join_host_port

Role = Literal["admin", "node", "router", "client"]
ROLES: tuple[Role, ...] = ("admin", "node", "router", "client")
FILE_NAME = "identity.json"
ASKING_FILE = "asking.json"
"""The keys of an enrolment that was asked for and not answered yet; see `potluck.net.join.enrol`."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What enrolment leaves behind. PEM as bytes, CURVE keys in Z85 text. Never logged: it holds private keys."""

    node_id: NodeId
    role: Role
    key_pem: bytes
    certificate_pem: bytes
    ca_pem: bytes
    curve_public: str
    curve_secret: str
    curve_server_key: str
    host: str
    control_port: int
    data_port: int
    insecure: bool = False
    """Plain TCP without any key, for loopback only."""

    def __repr__(self) -> str:
        return f"Identity({self.role}/{self.node_id} at {self.control_target})"

    @property
    def control_target(self) -> str:
        return join_host_port(self.host, self.control_port)

    @property
    def data_target(self) -> str:
        return join_host_port(self.host, self.data_port)

    def save(self, folder: Path) -> None:
        """Writes the identity readable by its owner alone; whole or not at all. Ends the enrolment kept beside it."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        plain = {k: v.decode() if isinstance(v, bytes) else v for k, v in dataclasses.asdict(self).items()}
        write_private(folder / FILE_NAME, json.dumps(plain, indent=1).encode())
        (folder / ASKING_FILE).unlink(missing_ok=True)

    @staticmethod
    def load(folder: Path) -> Identity:
        """Reads what `save` wrote.

        Raises:
            JoinError: ``join.no-identity`` if there is none, ``join.bad-identity`` if it cannot be read.
        """
        path = folder / FILE_NAME
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise JoinError(
                "join.no-identity", f"no identity at {path}", "join first: potluck join <join string>"
            ) from None
        except (OSError, ValueError) as error:
            raise _bad_identity(path, str(error)) from None
        try:
            values = {f.name: plain[f.name] for f in dataclasses.fields(Identity)}
            for name in ("key_pem", "certificate_pem", "ca_pem"):
                values[name] = values[name].encode()
            return Identity(**values)
        except (KeyError, TypeError, AttributeError) as error:
            raise _bad_identity(path, f"missing or wrong field {error}") from None


def write_private(path: Path, data: bytes) -> None:
    """Writes a file of mode 0600 through a temporary one, so that no reader sees half of it."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _bad_identity(path: Path, why: str) -> JoinError:
    return JoinError("join.bad-identity", f"{path}: {why}", "remove the file and join again with a new join string")
