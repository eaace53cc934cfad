"""Commits and local checkpoints of one train lease, written beside the steps."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from expert_node.outbox import files_by_digest
from potluck.crashpoints import crash_here
from potluck.durable import is_full_disk, new_folder
from potluck.ids import Digest, Json, canonical_json
from potluck.lm.checkpoint import CheckpointFiles, CheckpointManifest
from potluck.lm.local_checkpoints import LocalCheckpoints, LocalManifest, Losses
from potluck.recipe import Profile, Recipe, Segment
from potluck.telemetry import logger

if TYPE_CHECKING:
    from potluck.lm.train import Snapshot, Trainer

MAX_UNCONFIRMED = 4
"""Checkpoints on disk that the node has not taken yet, before training waits."""
CURVE_POINTS = 32
MANIFEST_FILE = "checkpoint.json"

Facts = dict[str, object]

log = logger("expert_node.checkpoint_writer")


class CommitDesk(Protocol):
    """The part of `worker.Desk` that takes commits."""

    @property
    def parent_pid(self) -> int: ...

    def checkpoint(self, limit: int, **fields: object) -> None: ...


class CheckpointWriter:
    """One chain of commits, and the local checkpoints between them.

    A call copies the tensors and returns; one thread writes, at most one checkpoint at a time, in order.
    The next call waits for the last one's end, and raises what went wrong there. The desk is used from
    the caller's thread only.
    """

    def __init__(
        self,
        trainer: Trainer,
        segments: tuple[Segment, ...],
        *,
        parent: Digest,
        losses: Losses,
        out: Path,
        local: LocalCheckpoints,
        desk: CommitDesk,
    ) -> None:
        self.trainer = trainer
        self._segments = segments
        self._parent = parent
        self._out = out
        self._local = local
        self._desk = desk
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[Facts | None] | None = None
        self.since = Interval(losses)

    def commit(self) -> None:
        """Begins to write a checkpoint folder; it is handed over by a later call."""
        self.finish()
        manifest_of, since = self._manifest_of(), self.since
        self._begin(lambda snapshot: self._write_commit(snapshot, manifest_of, since))
        self.since = Interval(Losses(start_step=self.trainer.step))

    def save_locally(self) -> None:
        """Begins to write a local checkpoint. Without room there is none: it would have spared steps, no more."""
        self.finish()
        manifest_of, losses = self._manifest_of(), self.since.losses

        def local_manifest_of(files: CheckpointFiles) -> LocalManifest:
            crash_here("worker.mid-local-checkpoint")
            return LocalManifest(checkpoint=manifest_of(files), losses=losses)

        def write(snapshot: Snapshot) -> None:
            try:
                self._local.save(snapshot, local_manifest_of)
            except Exception as error:  # Only what the disk says is put up with.
                if not is_full_disk(error):
                    raise
                log.fact("local-checkpoint-failed", error_id="resource.disk-full", why=error)

        self._begin(write)

    def look(self) -> None:
        """Hands over a commit whose writing has ended.

        Raises:
            OSError: it could not be written.
            StopRequested: the node wants us to stop.
        """
        if self._writing is not None and self._writing.done():
            self.finish()

    def finish(self) -> None:
        """As `look`, but waits for the end of the writing."""
        writing, self._writing = self._writing, None
        facts = writing.result() if writing is not None else None
        if facts is not None:
            self._parent = Digest(str(facts["child"]))
            self._desk.checkpoint(MAX_UNCONFIRMED, **facts)

    def close(self) -> None:
        """Finishes, and ends the thread."""
        try:
            self.finish()
        finally:
            self._thread.shutdown()

    def _begin(self, write: Callable[[Snapshot], Facts | None]) -> None:
        self._writing = self._thread.submit(write, self.trainer.snapshot())

    def _manifest_of(self) -> Callable[[CheckpointFiles], CheckpointManifest]:
        """For the state as it is now."""
        trainer, step, parent = self.trainer, self.trainer.step, self._parent
        return lambda files: checkpoint_manifest(
            recipe=trainer.recipe,
            profile=trainer.profile,
            segments=self._segments,
            step=step,
            parent=parent,
            weights=files.weights_digest,
            optimizer=files.optimizer_digest,
        )

    def _write_commit(
        self, snapshot: Snapshot, manifest_of: Callable[[CheckpointFiles], CheckpointManifest], since: Interval
    ) -> Facts:
        final = self._out / f"{since.end_step:09d}"
        with new_folder(final) as folder:
            files = snapshot.save(folder)
            crash_here("node.mid-checkpoint", also=self._desk.parent_pid)
            manifest = manifest_of(files)
            (folder / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
        names = {
            files.weights.name: files.weights_digest,
            files.optimizer.name: files.optimizer_digest,
            MANIFEST_FILE: manifest.digest,
        }
        return {
            "parent": manifest.parent,
            "start_step": since.start_step,
            "end_step": manifest.step,
            "child": manifest.digest,
            "weights": files.weights_digest,
            "optimizer": files.optimizer_digest,
            "folder": str(final),
            "files": [list(pair) for pair in files_by_digest(names)],
            "figures_json": canonical_json(since.figures()),
        }


class Interval:
    """Losses since the last commit."""

    def __init__(self, losses: Losses) -> None:
        self.start_step = losses.start_step
        self._losses = list(losses.values)
        self._tokens = losses.tokens

    @property
    def end_step(self) -> int:
        return self.start_step + len(self._losses)

    @property
    def losses(self) -> Losses:
        return Losses(start_step=self.start_step, values=tuple(self._losses), tokens=self._tokens)

    def add(self, step: int, loss: float, tokens: int) -> None:
        assert step == self.end_step, (step, self.start_step)
        self._losses.append(loss)
        self._tokens += tokens

    def figures(self) -> dict[str, Json]:
        """Mean loss (nats per target), a curve of at most 32 points [step, mean loss up to it], targets trained."""
        count = len(self._losses)
        width = -(-count // CURVE_POINTS)
        curve: list[Json] = []
        for first in range(0, count, width):
            piece = self._losses[first : first + width]
            curve.append([self.start_step + first + len(piece) - 1, sum(piece) / len(piece)])
        return {"loss": sum(self._losses) / count, "loss_curve": curve, "tokens": self._tokens}


def checkpoint_manifest(
    *,
    recipe: Recipe,
    profile: Profile,
    segments: tuple[Segment, ...],
    step: int,
    parent: Digest,
    weights: Digest,
    optimizer: Digest,
) -> CheckpointManifest:
    """The manifest of a checkpoint after `step` steps: what a continuation depends on."""
    begun = tuple(s for s in segments if s.start_step < step)
    return CheckpointManifest(
        lineage=recipe.id,
        step=step,
        parent=parent,
        profile=profile,
        segments=tuple(s.digest for s in begun),
        data_position=(step - begun[-1].start_step) * recipe.batch_size,
        rng={"init_seed": recipe.init_seed},
        weights=weights,
        optimizer=optimizer,
    )
