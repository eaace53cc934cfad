"""Finished work on disk, until the coordinator has answered for it.

`folder/000000000007/entry.json` beside the blobs it names. An entry appears by one rename of a folder
whose files are already on disk, so a crash leaves it whole or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from expert_node.values import Finished, FinishedCommit, FinishedTask
from potluck.config import to_mapping
from potluck.durable import sync_folder, write_durably
from potluck.errors import DataError
from potluck.ids import Digest, Fence, LineageId, TaskId, canonical_json
from potluck.telemetry import logger

ENTRY_FILE = "entry.json"
EPOCH_FILE = "epoch"
IDS_PER_EPOCH = 1 << 32
"""Requests one process may make: more than a century of them, one a second."""

log = logger("expert_node.outbox")


class Outbox:
    """The folder, oldest entry first. Blocking: call it from a thread."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.damaged: list[str] = []
        """Entries that were set aside when the folder was opened, with the reason."""
        self._entries: dict[int, Finished] = {}
        for path in sorted(folder.iterdir()):
            if path.suffix == ".gone":
                shutil.rmtree(path)
            elif path.name.isdigit():
                self._load(path)
        self._next = max(self._entries, default=0) + 1

    def entries(self) -> list[Finished]:
        return [self._entries[number] for number in sorted(self._entries)]

    def next_number(self) -> int:
        number = self._next
        self._next += 1
        return number

    def add(self, entry: Finished, source: Path) -> None:
        """Takes over the folder `source`, which holds the entry's files, flushed to disk.

        Raises:
            OSError: the disk is full, or `source` lies on another file system.
        """
        assert entry.entry not in self._entries, entry.entry
        write_durably(source / ENTRY_FILE, entry_to_json(entry).encode())
        sync_folder(source)
        os.rename(source, self._path(entry.entry))
        sync_folder(self.folder)
        self._entries[entry.entry] = entry

    def remove(self, number: int, adopt: Callable[[Path], None] | None = None) -> None:
        """Forgets an entry; removing one that is gone does nothing.

        Args:
            adopt: called with each of its files, which it may move away.
        """
        entry = self._entries.pop(number, None)
        path = self._path(number)
        if entry is None or not path.exists():
            return
        # The name goes first: a half-removed folder must not look like an entry.
        gone = path.with_suffix(".gone")
        os.rename(path, gone)
        if adopt is not None:
            for _, name in entry.files:
                adopt(gone / name)
        shutil.rmtree(gone)

    def path_of(self, entry: Finished, digest: Digest) -> Path:
        """Where the blob lies.

        Raises:
            DataError: ``data.outbox-damaged`` if the file is not there.
        """
        names = dict(entry.files)
        path = self._path(entry.entry) / names[digest]
        if not path.is_file():
            raise DataError("data.outbox-damaged", f"{path} is gone", "the work of this entry is done anew")
        return path

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:012d}"

    def _load(self, path: Path) -> None:
        try:
            entry = entry_from_json((path / ENTRY_FILE).read_text(encoding="utf-8"))
            for digest, _ in entry.files:
                self._entries[entry.entry] = entry
                self.path_of(entry, digest)
        except (OSError, ValueError, KeyError, TypeError, DataError) as error:
            self.damaged.append(f"{path.name}: {error}")
            self._entries.pop(int(path.name), None)
            os.rename(path, path.with_suffix(".damaged"))
            log.fact("outbox-entry-damaged", entry=path.name, why=error)


def next_epoch(folder: Path) -> int:
    """The first request id of this process: above all that earlier ones on this folder can have used."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / EPOCH_FILE
    epoch = int(path.read_text()) + 1 if path.exists() else 1
    write_durably(path, str(epoch).encode())
    sync_folder(folder)
    return epoch * IDS_PER_EPOCH


def entry_to_json(entry: Finished) -> str:
    kind = "commit" if isinstance(entry, FinishedCommit) else "task"
    return canonical_json({"kind": kind, **to_mapping(entry)})


def entry_from_json(text: str) -> Finished:
    """The inverse of `entry_to_json`.

    Raises:
        ValueError, KeyError, TypeError: the text is not an entry.
    """
    raw: dict[str, Any] = json.loads(text)
    kind = raw.pop("kind")
    raw["fence"] = Fence(raw["fence"])
    raw["files"] = _pairs(raw["files"])
    if kind == "commit":
        raw["lineage"] = LineageId(raw["lineage"])
        return FinishedCommit(**raw)
    if kind == "task":
        raw["task"] = TaskId(raw["task"])
        raw["blobs"] = tuple((name, Digest(digest)) for name, digest in raw["blobs"])
        return FinishedTask(**raw)
    raise ValueError(f"no outbox entry of kind {kind!r}")


def _pairs(raw: list[list[str]]) -> tuple[tuple[Digest, str], ...]:
    return tuple((Digest(digest), name) for digest, name in raw)


def files_by_digest(files: Mapping[str, Digest]) -> tuple[tuple[Digest, str], ...]:
    """File names by digest, each digest once."""
    return tuple(sorted({digest: name for name, digest in files.items()}.items()))
