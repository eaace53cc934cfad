"""Checkpoints for a node's own restart: frequent, on its own disk, never sent.

`folder/LINEAGE/000000120-DIGEST` holds weights, optimizer state and a manifest. The name holds the
manifest's digest and the manifest those of the files, so a torn or altered one gives itself away.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from potluck.config import from_mapping, to_mapping
from potluck.durable import new_folder
from potluck.ids import Digest, LineageId, canonical_json, digest_bytes, digest_file
from potluck.lm.checkpoint import OPTIMIZER_FILE, WEIGHTS_FILE, CheckpointManifest
from potluck.telemetry import logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from potluck.lm.checkpoint import CheckpointFiles
    from potluck.lm.train import Snapshot

KEPT = 2
"""Should the newest be damaged, the one before it is there."""
MANIFEST_FILE = "manifest.json"

log = logger("potluck.lm.local_checkpoints")


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Of the steps since the last commit, so that the next commit's figures are those of an unbroken run."""

    start_step: int
    values: tuple[float, ...] = ()
    """Nats per target, one a step."""
    tokens: int = 0
    """Targets trained on."""


@dataclass(frozen=True, kw_only=True)
class LocalManifest:
    checkpoint: CheckpointManifest
    """As if it were a commit; its parent is the lineage's last one."""
    losses: Losses

    @property
    def digest(self) -> Digest:
        return digest_bytes(self.to_json().encode())

    def to_json(self) -> str:
        return canonical_json({"checkpoint": json.loads(self.checkpoint.to_json()), "losses": to_mapping(self.losses)})

    @staticmethod
    def from_json(text: str) -> LocalManifest:
        """Reads what `to_json` wrote.

        Raises:
            ValueError, KeyError, TypeError: the text is something else.
        """
        raw = json.loads(text)
        checkpoint = CheckpointManifest.from_json(json.dumps(raw["checkpoint"]))
        return LocalManifest(checkpoint=checkpoint, losses=from_mapping(Losses, raw["losses"]))


@dataclass(frozen=True, kw_only=True)
class LocalCheckpoint:
    manifest: LocalManifest
    weights: Path
    optimizer: Path


class LocalCheckpoints:
    """The folder. Blocking: training calls `save` from a thread beside it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, snapshot: Snapshot, manifest_of: Callable[[CheckpointFiles], LocalManifest]) -> None:
        """Writes one, whole or not at all, and removes all but the last two.

        Args:
            snapshot: the tensors.
            manifest_of: makes the manifest once the files have digests.

        Raises:
            OSError: the disk is full.
        """
        writing = self._folder / "writing"
        with new_folder(writing) as folder:
            manifest = manifest_of(snapshot.save(folder))
            (folder / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
        lineage = self._folder / manifest.checkpoint.lineage
        lineage.mkdir(exist_ok=True)
        final = lineage / f"{manifest.checkpoint.step:09d}-{manifest.digest}"
        shutil.rmtree(final, ignore_errors=True)
        writing.rename(final)
        for old in sorted(lineage.iterdir())[:-KEPT]:
            shutil.rmtree(old)

    def latest_good(self, lineage: LineageId, parent: Digest, *, before: int) -> LocalCheckpoint | None:
        """The last one before step `before` on top of the commit `parent` whose bytes are what they were, or None.

        Damaged ones are passed over, each with a logged fact.
        """
        folder = self._folder / lineage
        for path in sorted(folder.iterdir(), reverse=True) if folder.is_dir() else ():
            try:
                found = _read(path)
            except (OSError, ValueError, KeyError, TypeError) as error:
                log.fact("local-checkpoint-skipped", checkpoint=path.name, why=error)
                continue
            checkpoint = found.manifest.checkpoint
            if checkpoint.parent == parent and checkpoint.step < before:
                return found
        return None

    def keep_only(self, found: LocalCheckpoint | None) -> None:
        """Removes what a lease that goes on from `found` has no use for: later ones, and other lineages'."""
        kept = found.weights.parent if found is not None else None
        for lineage in self._folder.iterdir() if self._folder.is_dir() else ():
            if kept is None or lineage != kept.parent:
                shutil.rmtree(lineage)
                continue
            for path in lineage.iterdir():
                if path.name > kept.name:
                    shutil.rmtree(path)

    def remove(self, lineage: LineageId) -> None:
        shutil.rmtree(self._folder / lineage, ignore_errors=True)


def _read(path: Path) -> LocalCheckpoint:
    """Reads and checks all of it.

    Raises:
        OSError, ValueError, KeyError, TypeError: it is torn or altered.
    """
    file = path / MANIFEST_FILE
    _require_digest(file, path.name.partition("-")[2])
    manifest = LocalManifest.from_json(file.read_text(encoding="utf-8"))
    weights, optimizer = path / WEIGHTS_FILE, path / OPTIMIZER_FILE
    _require_digest(weights, manifest.checkpoint.weights)
    _require_digest(optimizer, manifest.checkpoint.optimizer)
    return LocalCheckpoint(manifest=manifest, weights=weights, optimizer=optimizer)


def _require_digest(file: Path, digest: str) -> None:
    found = digest_file(file)
    if found != digest:
        raise ValueError(f"{file} has digest {found[:12]}, not {digest[:12]}")
