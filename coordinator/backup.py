"""A copy of a coordinator's home that another machine can go on from.

TARGET/journal.db    all that was promised until the copy was taken
TARGET/ca/ admin/    keys: whoever reads these owns the cluster, so they are 0600 and the folder 0700
TARGET/blobs/ab/...  what that journal needs
TARGET/backup.json   the digest of each part, written last: a folder without it is no backup

The journal goes first. Blobs never change, so whatever it names can be copied at leisure while the coordinator
works on; only the collector must hold still meanwhile. TARGET appears by one rename, as a folder or one .tar file.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from coordinator.collector import closure, roots_of
from coordinator.core import queries
from coordinator.core.machine import Machine
from coordinator.home import CoordinatorHome
from coordinator.journal import SqliteJournal, copy_closed, problems_of, read_closed
from coordinator.wire_events import decode_event
from potluck.durable import sync_file, sync_folder
from potluck.errors import DataError, ResourceError, UsageError
from potluck.ids import Digest, digest_file
from potluck.net.blobs.store import BlobStore, disk_errors
from potluck.net.identity import write_private
from potluck.net.version import package_version

FORMAT = 1
MANIFEST = "backup.json"
JOURNAL = "journal.db"
COMPRESSED = (".gz", ".tgz", ".xz", ".bz2", ".zst", ".zip")
"""Not written, for blobs hardly shrink; and a folder of such a name would be a trap."""
KEPT = ("ca/ca.key", "ca/ca.pem", "ca/enrol.key", "ca/enrol.pem", "ca/curve.json")
KEPT_IF_THERE = ("admin/identity/identity.json", "bytes.json")


@dataclass(frozen=True, kw_only=True)
class Part:
    sha256: Digest
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class Backup:
    """What `backup.json` says."""

    format: int = FORMAT
    potluck: str
    made_unix_ms: int
    events: int
    files: dict[str, Part]
    """By path inside the home."""
    blobs: dict[Digest, int]
    """Bytes by digest."""
    missing: tuple[Digest, ...]
    """What the state needs and the store did not have."""
    damaged: tuple[Digest, ...]
    """What the store had under a wrong name; not in the backup."""

    @property
    def blob_bytes(self) -> int:
        return sum(self.blobs.values())


async def back_up(journal: SqliteJournal, home: CoordinatorHome, target: Path, *, unix_ms: int) -> Backup:
    """Backs up the home of this very process; no blob may be collected meanwhile.

    Raises:
        UsageError: ``usage.backup-exists``, ``usage.bad-backup-name``.
        ResourceError: ``resource.disk-full``, ``resource.journal``, ``resource.backup``: the target cannot take it.
    """
    with _workplace(target) as work:
        await journal.copy_to(work / JOURNAL)
        return await asyncio.to_thread(_gather, home, work, target, unix_ms)


def back_up_closed(home: CoordinatorHome, target: Path, *, unix_ms: int) -> Backup:
    """As `back_up`, of a home where no coordinator runs.

    Raises:
        ResourceError: ``resource.locked``: one does.
    """
    with _workplace(target) as work:
        copy_closed(home.journal, work / JOURNAL)
        return _gather(home, work, target, unix_ms)


@contextlib.contextmanager
def _workplace(target: Path) -> Iterator[Path]:
    """A private folder beside the target, gone afterwards whatever happens."""
    if target.suffix in COMPRESSED:
        fix = "name a new folder, or a file that ends in .tar"
        raise UsageError("usage.bad-backup-name", f"{target.name}: backups are not compressed", fix)
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise UsageError("usage.backup-exists", f"{target} is there already", "name a new folder or .tar file")
    work = target.with_name(f".{target.name}.partial")
    shutil.rmtree(work, ignore_errors=True)
    try:
        work.mkdir(parents=True, mode=0o700)
        yield work
    except OSError as error:
        fix = "name a place that the user of the coordinator may write; under systemd that of ReadWritePaths"
        raise ResourceError("resource.backup", f"{target}: {error.strerror or error}", fix) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _gather(home: CoordinatorHome, work: Path, target: Path, unix_ms: int) -> Backup:
    problems = problems_of(work / JOURNAL)
    if problems:
        fix = "restore from an earlier backup; `potluck doctor` checks the journal"
        raise DataError("data.journal-format", f"{home.journal}: {problems[0]}", fix)
    machine, events = Machine(), 0
    for row in read_closed(work / JOURNAL):
        machine.handle(decode_event(row))
        events += 1
    store = BlobStore(home.blobs)
    kept = closure(store, roots_of(machine.state))
    needed = closure(store, queries.pinned_digests(machine.state))
    with disk_errors(target.parent):
        sink: _Sink = _Tar(work) if target.suffix == ".tar" else _Folder(work)
        files = {JOURNAL: sink.add(JOURNAL, work / JOURNAL)}
        for name in (*KEPT, *(name for name in KEPT_IF_THERE if (home.folder / name).exists())):
            files[name] = sink.add(name, home.folder / name)
        blobs, missing, damaged = _gather_blobs(store, kept, needed, sink)
        made = Backup(
            potluck=package_version(),
            made_unix_ms=unix_ms,
            events=events,
            files=files,
            blobs=blobs,
            missing=missing,
            damaged=damaged,
        )
        sink.finish(json.dumps(dataclasses.asdict(made), indent=1).encode(), target)
    return made


def _gather_blobs(
    store: BlobStore, kept: frozenset[Digest], needed: frozenset[Digest], sink: _Sink
) -> tuple[dict[Digest, int], tuple[Digest, ...], tuple[Digest, ...]]:
    """What went in, what is needed and was not there, what was not what its name says."""
    blobs: dict[Digest, int] = {}
    missing, damaged = [], []
    for digest in sorted(kept):
        try:
            part = sink.add(blob_name(digest), store.path(digest))
        except (DataError, FileNotFoundError):
            # The state's texts hold digests of other things too, such as lineages: those are nobody's blobs.
            missing += [digest] if digest in needed else []
            continue
        if part.sha256 == digest:
            blobs[digest] = part.num_bytes
        else:
            sink.drop(blob_name(digest))
            damaged.append(digest)
    return blobs, tuple(missing), tuple(damaged)


def blob_name(digest: Digest) -> str:
    return f"blobs/{digest[:2]}/{digest}"


class _Sink(Protocol):
    def add(self, name: str, source: Path) -> Part:
        """Takes a file in; the digest is of the bytes that went in."""

    def drop(self, name: str) -> None:
        """What was added under this name is not part of the backup."""

    def finish(self, manifest: bytes, target: Path) -> None:
        """Writes the manifest, and shows the whole under its name once it is on disk."""


class _Folder:
    """Blobs are hard links where the file system allows: quick, and no second copy of their bytes."""

    def __init__(self, work: Path) -> None:
        self._work = work

    def add(self, name: str, source: Path) -> Part:
        place = self._work / name
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if name.startswith("blobs/"):
            _link_or_copy(source, place)
        elif source != place:
            write_private(place, source.read_bytes())
        return Part(sha256=digest_file(place), num_bytes=place.stat().st_size)

    def drop(self, name: str) -> None:
        (self._work / name).unlink()

    def finish(self, manifest: bytes, target: Path) -> None:
        write_private(self._work / MANIFEST, manifest)
        for folder, _, _ in os.walk(self._work):
            sync_folder(Path(folder))
        # Onto an empty folder, too: `rename` replaces one.
        os.rename(self._work, target)
        sync_folder(target.parent)


class _Tar:
    def __init__(self, work: Path) -> None:
        self._path = work / "backup.tar"
        os.close(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        self._tar = tarfile.open(self._path, "w")  # noqa: SIM115 - closed by `finish`

    def add(self, name: str, source: Path) -> Part:
        with source.open("rb") as file:
            entry = self._tar.gettarinfo(arcname=name, fileobj=file)
            entry.mode, entry.uid, entry.gid, entry.uname, entry.gname = 0o600, 0, 0, "", ""
            self._tar.addfile(entry, file)
            file.seek(0)
            return Part(sha256=Digest(hashlib.file_digest(file, "sha256").hexdigest()), num_bytes=entry.size)

    def drop(self, name: str) -> None:
        """It stays as bytes that the manifest does not name: a tar file cannot forget."""

    def finish(self, manifest: bytes, target: Path) -> None:
        path = self._path.with_name(MANIFEST)
        write_private(path, manifest)
        self.add(MANIFEST, path)
        self._tar.close()
        sync_file(self._path)
        os.rename(self._path, target)
        sync_folder(target.parent)


def _link_or_copy(source: Path, place: Path) -> None:
    try:
        os.link(source, place)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
            raise
        shutil.copyfile(source, place)
        sync_file(place)
