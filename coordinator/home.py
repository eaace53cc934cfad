"""The coordinator's folder: its authority, its keys, its counters, and what it says of itself.

H/ca/                   authority, enrolment certificate, CURVE keys; whoever reads these owns the cluster
H/journal.db H/blobs/   what must not be lost
H/snapshots/            the state at some row of the journal, for a quick start; may be deleted
H/admin/identity/       the local command line's identity
H/bytes.json            bytes by plane since the home exists
H/coordinator.json      pid, ports and boot id of the last start
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from potluck.errors import DataError
from potluck.net.blobs.curve import CurveKeys, new_curve_keys
from potluck.net.counters import PLANES, Plane
from potluck.net.identity import write_private
from potluck.net.tls import CertificateAuthority, KeyedCertificate, self_signed_server


@dataclass(frozen=True, kw_only=True)
class Ports:
    control: int
    enrol: int
    data: int

    @staticmethod
    def from_base(base: int) -> Ports:
        """Base, base + 1 and base + 2; 0 leaves all three to the system."""
        return Ports(control=base, enrol=base + 1, data=base + 2) if base else Ports(control=0, enrol=0, data=0)


@dataclass(frozen=True, kw_only=True)
class Keys:
    """What this coordinator proves itself with; made at the first start and kept."""

    authority: CertificateAuthority
    enrolment: KeyedCertificate
    curve: CurveKeys


class CoordinatorHome:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    @property
    def journal(self) -> Path:
        return self.folder / "journal.db"

    @property
    def snapshots(self) -> Path:
        return self.folder / "snapshots"

    @property
    def blobs(self) -> Path:
        return self.folder / "blobs"

    @property
    def admin_identity(self) -> Path:
        return self.folder / "admin" / "identity"

    def keys(self) -> Keys:
        """Reads the keys, or makes what is not there yet."""
        folder = self.folder / "ca"
        known = (folder / "ca.key").exists()
        authority = CertificateAuthority.load(folder) if known else CertificateAuthority.create(folder)
        return Keys(authority=authority, enrolment=_enrolment(folder), curve=_curve(folder))

    def load_bytes(self) -> dict[Plane, int]:
        """Bytes by plane, both ways; a file that cannot be read counts as none, for it is not worth a stop."""
        try:
            saved = json.loads((self.folder / "bytes.json").read_text())
            return {plane: int(saved.get(plane, 0)) for plane in PLANES}
        except (OSError, ValueError, AttributeError, TypeError):
            return dict.fromkeys(PLANES, 0)

    def save_bytes(self, bytes_by_plane: Mapping[Plane, int]) -> None:
        write_private(self.folder / "bytes.json", json.dumps(dict(bytes_by_plane)).encode())

    def last_ports(self) -> Ports | None:
        try:
            said = json.loads((self.folder / "coordinator.json").read_text())
            return Ports(control=int(said["control"]), enrol=int(said["enrol"]), data=int(said["data"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def say_started(self, ports: Ports, boot_id: str) -> None:
        said = {"pid": os.getpid(), "boot_id": boot_id, "control": ports.control, "enrol": ports.enrol}
        write_private(self.folder / "coordinator.json", json.dumps({**said, "data": ports.data}).encode())


def _enrolment(folder: Path) -> KeyedCertificate:
    """Kept, for join strings that are about name its fingerprint. The certificate is written last."""
    key, certificate = folder / "enrol.key", folder / "enrol.pem"
    if not certificate.exists():
        made = self_signed_server()
        write_private(key, made.key_pem)
        write_private(certificate, made.certificate_pem)
    return KeyedCertificate(key_pem=key.read_bytes(), certificate_pem=certificate.read_bytes())


def _curve(folder: Path) -> CurveKeys:
    path = folder / "curve.json"
    if not path.exists():
        made = new_curve_keys()
        write_private(path, json.dumps({"public": made.public, "secret": made.secret}).encode())
    try:
        return CurveKeys(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise DataError(
            "data.bad-keys", f"{path}: {error}", "restore it from a copy; nodes know its public half"
        ) from None
