"""From a backup to a home: every digest is checked on the way, and the home appears whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Protocol

from coordinator.backup import FORMAT, JOURNAL, KEPT, KEPT_IF_THERE, MANIFEST, Backup, Part, blob_name
from coordinator.journal import problems_of
from potluck.durable import sync_folder
from potluck.errors import DataError, UsageError
from potluck.ids import READ_BYTES, Digest, is_digest
from potluck.jsontext import read_json
from potluck.net.blobs.store import disk_errors

MAX_MANIFEST_BYTES = 256 << 20
_OTHER_COPY = "take another backup; this one cannot be trusted"


def restore(source: Path, home: Path) -> Backup:
    """Makes a coordinator's home from a backup. The backup is only read.

    Args:
        source: the folder or .tar file that a backup made.
        home: the new home; it may not exist, or is an empty folder.

    Raises:
        UsageError: ``usage.home-exists``, ``usage.no-backup``.
        DataError: ``data.not-a-backup``, ``data.backup-format``, ``data.backup-damaged``: names the part.
        ResourceError: ``resource.disk-full``.
    """
    if home.exists() and (not home.is_dir() or any(home.iterdir())):
        fix = "restore into a new --home, or move what is there away"
        raise UsageError("usage.home-exists", f"{home} is there already", fix)
    staged = home.with_name(f".{home.name}.partial")
    shutil.rmtree(staged, ignore_errors=True)
    with _opened(source) as parts, disk_errors(home.parent):
        made = _manifest(parts, source)
        staged.mkdir(parents=True, mode=0o700)
        try:
            for name, part in made.files.items():
                _take(parts, name, part, staged, source)
            for digest, num_bytes in made.blobs.items():
                _take(parts, blob_name(digest), Part(sha256=digest, num_bytes=num_bytes), staged, source)
            if problems := problems_of(staged / JOURNAL):
                raise DataError("data.backup-damaged", f"{source}: {JOURNAL}: {problems[0]}", _OTHER_COPY)
            for folder, _, _ in os.walk(staged):
                sync_folder(Path(folder))
            os.rename(staged, home)
            sync_folder(home.parent)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    return made


class _Parts(Protocol):
    def open(self, name: str) -> IO[bytes]:
        """Raises FileNotFoundError, or KeyError."""


class _FolderParts:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self, name: str) -> IO[bytes]:
        return (self._folder / name).open("rb")


class _TarParts:
    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar

    def open(self, name: str) -> IO[bytes]:
        file = self._tar.extractfile(name)
        if file is None:
            raise FileNotFoundError(name)
        return file


@contextlib.contextmanager
def _opened(source: Path) -> Iterator[_Parts]:
    if source.is_dir():
        yield _FolderParts(source)
    elif source.is_file():
        try:
            with tarfile.open(source, "r:") as tar:
                yield _TarParts(tar)
        except tarfile.ReadError as error:
            if "unexpected end" not in str(error):
                raise DataError("data.not-a-backup", f"{source}: {error}", "name what `potluck backup` wrote") from None
            raise DataError("data.backup-damaged", f"{source} is cut off: {error}", _OTHER_COPY) from None
        except tarfile.TarError as error:
            raise DataError("data.not-a-backup", f"{source}: {error}", "name what `potluck backup` wrote") from None
    else:
        raise UsageError("usage.no-backup", f"{source} does not exist", "name what `potluck backup` wrote")


def _manifest(parts: _Parts, source: Path) -> Backup:
    """`backup.json`, and nothing in it that leads out of the home."""
    try:
        with parts.open(MANIFEST) as file:
            told = read_json(file.read(MAX_MANIFEST_BYTES))
        found = told["format"]
        if found != FORMAT:
            what, fix = f"{source} has format {found}, this release knows {FORMAT}", "use the release that wrote it"
            raise DataError("data.backup-format", what, fix)
        return _read_manifest(told)
    except (OSError, LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        what = f"{source}: {MANIFEST} is missing or damaged: {error}"
        raise DataError("data.not-a-backup", what, "name what `potluck backup` wrote, as it wrote it") from None


def _read_manifest(told: Mapping[str, Any]) -> Backup:
    files = {
        name: Part(sha256=_digest(part["sha256"]), num_bytes=int(part["num_bytes"]))
        for name, part in told["files"].items()
    }
    required = {JOURNAL, *KEPT}
    if not required <= files.keys() <= required | {*KEPT_IF_THERE}:
        raise ValueError(f"its files are {', '.join(sorted(files))}")
    return Backup(
        potluck=str(told["potluck"]),
        made_unix_ms=int(told["made_unix_ms"]),
        events=int(told["events"]),
        files=files,
        blobs={_digest(digest): int(num_bytes) for digest, num_bytes in told["blobs"].items()},
        missing=tuple(_digest(text) for text in told["missing"]),
        damaged=tuple(_digest(text) for text in told["damaged"]),
    )


def _digest(text: str) -> Digest:
    if not is_digest(text):
        raise ValueError(f"{text!r} is no digest")
    return Digest(text)


def _take(parts: _Parts, name: str, part: Part, staged: Path, source: Path) -> None:
    """Copies one part and hashes what came."""
    place = staged / name
    place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    state = hashlib.sha256()
    try:
        with parts.open(name) as file, open(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as copy:
            while piece := file.read(READ_BYTES):
                state.update(piece)
                copy.write(piece)
            copy.flush()
            os.fsync(copy.fileno())
    except (FileNotFoundError, KeyError, tarfile.ReadError):
        raise DataError("data.backup-damaged", f"{source}: {name} is missing", _OTHER_COPY) from None
    if state.hexdigest() != part.sha256:
        what = f"{source}: {name} has digest {state.hexdigest()}, its manifest says {part.sha256}"
        raise DataError("data.backup-damaged", what, _OTHER_COPY)
