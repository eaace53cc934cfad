"""A train lease inside the worker: steps, checkpoints on the commit grid, figures."""

from __future__ import annotations

import math
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from expert_node.frames import Message
from expert_node.outbox import files_by_digest, sync_file, sync_folder
from expert_node.values import parse_profile, parse_segments
from potluck.crashpoints import crash_here
from potluck.errors import DataError, ResourceError
from potluck.ids import NO_DIGEST, Digest, Json, canonical_json
from potluck.lm.checkpoint import CheckpointManifest
from potluck.lm.peak import peak_flops_per_second, training_speed
from potluck.recipe import Profile, Recipe, Segment, next_commit
from sampling.taskio import BlobReader

if TYPE_CHECKING:
    from potluck.lm.train import Trainer

MAX_UNCONFIRMED = 4
"""Checkpoints on disk that the node has not taken yet, before training waits."""
CURVE_POINTS = 32
MANIFEST_FILE = "checkpoint.json"


class Reporter(Protocol):
    """The part of `worker.Desk` that training needs."""

    tokens_total: int

    @property
    def parent_pid(self) -> int: ...

    def look(self) -> None: ...

    def progress_due(self) -> bool: ...

    def progress(self, **fields: object) -> None: ...

    def checkpoint(self, limit: int, **fields: object) -> None: ...


def train(command: Message, blobs: BlobReader, desk: Reporter) -> None:
    """Trains from the head to the target step; checkpoints at every commit point on the way.

    Raises:
        StopRequested: between two steps, when the node wants it.
        DataError: ``data.loss-not-finite``, or files that do not belong to the recipe.
        ResourceError: ``resource.device``: this machine lacks the profile's device.
    """
    from potluck.lm.train import Trainer

    recipe = Recipe.from_json(command["recipe_json"])
    segments = parse_segments(command["segments_json"])
    profile = parse_profile(command["profile_json"])
    require_device(profile.device)
    if command["head_step"]:
        trainer = Trainer.load(
            recipe,
            profile,
            step=command["head_step"],
            weights=blobs.path(command["weights"]),
            optimizer=blobs.path(command["optimizer"]),
        )
    else:
        trainer = Trainer(recipe, profile)
    Run(trainer, segments, command, blobs, desk).to(command["target_step"])


def require_device(device: str) -> None:
    """Refuses a device that torch does not find on this machine.

    Raises:
        ResourceError: ``resource.device``.
    """
    import torch

    kind, _, index = device.partition(":")
    found = 1
    if kind == "cuda":
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    elif kind == "mps":
        found = int(torch.backends.mps.is_available())
    if int(index or 0) >= found:
        what = f"profile.device = {device!r}, but this node has {found} {kind} device(s)"
        fix = 'set device = "cpu" in the spec\'s [profile], or add a node that has the device'
        raise ResourceError("resource.device", what, fix)


class Run:
    """One lineage on its way from head to target."""

    def __init__(
        self, trainer: Trainer, segments: tuple[Segment, ...], command: Message, blobs: BlobReader, desk: Reporter
    ) -> None:
        self._trainer = trainer
        self._segments = segments
        self._blobs = blobs
        self._desk = desk
        self._out = Path(command["out"])
        self._out.mkdir(parents=True, exist_ok=True)
        self._parent = Digest(command["head"] or NO_DIGEST)
        self._since = Interval(trainer.step)
        self._peak = peak_flops_per_second(trainer.profile)

    def to(self, target: int) -> None:
        trainer = self._trainer
        for segment in self._segments:
            if segment.end_step <= trainer.step:
                continue
            if trainer.step >= target:
                break
            self._through(segment, min(segment.end_step, target))

    def _through(self, segment: Segment, end: int) -> None:
        from sampling.batches import SegmentReader

        trainer, recipe = self._trainer, self._trainer.recipe
        reader = SegmentReader(segment, recipe.batch_size, recipe.columns, self._blobs)
        commit = next_commit(step=trainer.step, commit_every=recipe.commit_every, segments=self._segments)
        meter = Meter()
        while trainer.step < end:
            self._desk.look()
            crash_here("node.mid-step", also=self._desk.parent_pid)
            metrics = trainer.train_step(reader.batch(trainer.step))
            if not math.isfinite(metrics.loss):
                raise DataError(
                    "data.loss-not-finite",
                    f"{recipe.role} {recipe.index}: loss {metrics.loss} at step {metrics.step}",
                    "lower the learning rate, or lengthen the warm-up",
                )
            self._since.add(metrics.step, metrics.loss, metrics.tokens)
            self._desk.tokens_total += metrics.tokens
            meter.add(metrics.tokens)
            if self._desk.progress_due():
                self._desk.progress(
                    step=trainer.step,
                    loss=metrics.loss,
                    grad_norm=metrics.grad_norm,
                    learning_rate=metrics.learning_rate,
                    **training_speed(recipe, meter.rate(), self._peak),
                )
            if trainer.step == commit:
                self._commit()
                if trainer.step < end:
                    commit = next_commit(step=trainer.step, commit_every=recipe.commit_every, segments=self._segments)

    def _commit(self) -> None:
        """Writes a checkpoint folder, whole or not at all, and hands it over."""
        step = self._trainer.step
        final, temporary = self._out / f"{step:09d}", self._out / f"{step:09d}.tmp"
        for stale in (final, temporary):
            shutil.rmtree(stale, ignore_errors=True)
        temporary.mkdir()
        files = self._trainer.save(temporary)
        manifest = checkpoint_manifest(
            recipe=self._trainer.recipe,
            profile=self._trainer.profile,
            segments=self._segments,
            step=step,
            parent=self._parent,
            weights=files.weights_digest,
            optimizer=files.optimizer_digest,
        )
        (temporary / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
        names = {
            files.weights.name: files.weights_digest,
            files.optimizer.name: files.optimizer_digest,
            MANIFEST_FILE: manifest.digest,
        }
        for name in names:
            sync_file(temporary / name)
        sync_folder(temporary)
        os.rename(temporary, final)
        self._desk.checkpoint(
            MAX_UNCONFIRMED,
            parent=self._parent,
            start_step=self._since.start_step,
            end_step=step,
            child=manifest.digest,
            weights=files.weights_digest,
            optimizer=files.optimizer_digest,
            folder=str(final),
            files=[list(pair) for pair in files_by_digest(names)],
            figures_json=canonical_json(self._since.figures()),
        )
        self._parent, self._since = manifest.digest, Interval(step)


class Interval:
    """Losses since the last commit."""

    def __init__(self, start_step: int) -> None:
        self.start_step = start_step
        self._losses: list[float] = []
        self._tokens = 0

    def add(self, step: int, loss: float, tokens: int) -> None:
        assert step == self.start_step + len(self._losses), (step, self.start_step)
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


class Meter:
    """Tokens a second since it was last read."""

    def __init__(self) -> None:
        self._tokens = 0
        self._since = time.monotonic()

    def add(self, tokens: int) -> None:
        self._tokens += tokens

    def rate(self) -> float:
        now = time.monotonic()
        rate = self._tokens / max(now - self._since, 1e-6)
        self._tokens, self._since = 0, now
        return rate


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
