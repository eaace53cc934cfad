"""A train lease inside the worker: steps, checkpoints on the commit grid, figures."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from expert_node.checkpoint_writer import CheckpointWriter
from expert_node.frames import Message
from expert_node.values import parse_profile, parse_segments
from potluck.clock import Clock
from potluck.crashpoints import crash_here
from potluck.errors import DataError, ResourceError
from potluck.ids import NO_DIGEST, Digest
from potluck.lm.local_checkpoints import LocalCheckpoint, LocalCheckpoints, Losses
from potluck.lm.peak import peak_flops_per_second, training_speed
from potluck.recipe import Profile, Recipe, Segment, next_commit
from potluck.telemetry import logger
from sampling.taskio import BlobReader

if TYPE_CHECKING:
    from potluck.lm.parallel import Head

log = logger("expert_node.training")


class Reporter(Protocol):
    """The part of `worker.Desk` that training needs."""

    tokens_total: int

    @property
    def parent_pid(self) -> int: ...

    def look(self) -> None: ...

    def progress_due(self) -> bool: ...

    def progress(self, **fields: object) -> None: ...

    def checkpoint(self, limit: int, **fields: object) -> None: ...


def train(command: Message, blobs: BlobReader, desk: Reporter, clock: Clock) -> None:
    """Trains from the head to the target step; checkpoints at every commit point on the way.

    A local checkpoint on top of the head, left by a process that was interrupted, spares its steps.

    Raises:
        StopRequested: between two steps, when the node wants it.
        DataError: ``data.loss-not-finite``, or files that do not belong to the recipe.
        ResourceError: ``resource.device``: this machine lacks the profile's device.
        OSError: the disk is full.
    """
    from potluck.lm.parallel import open_trainer

    recipe = Recipe.from_json(command["recipe_json"])
    segments = parse_segments(command["segments_json"])
    profile = parse_profile(command["profile_json"])
    require_device(profile.device)
    head, target = Digest(command["head"] or NO_DIGEST), command["target_step"]
    local = LocalCheckpoints(Path(command["local"]))
    found = local.latest_good(recipe.id, head, before=target)
    if found is not None and not continues(found, profile, segments, command["head_step"]):
        found = None
    local.keep_only(found)
    with open_trainer(recipe, profile, _start(command, recipe, blobs, found)) as trainer:
        losses = found.manifest.losses if found is not None else Losses(start_step=command["head_step"])
        out = Path(command["out"])
        writer = CheckpointWriter(trainer, segments, parent=head, losses=losses, out=out, local=local, desk=desk)
        try:
            Run(writer, segments, blobs, desk, clock, command["local_every_ms"]).to(target)
        finally:
            writer.close()
    local.remove(recipe.id)


def continues(found: LocalCheckpoint, profile: Profile, segments: tuple[Segment, ...], head_step: int) -> bool:
    """Whether a local checkpoint on top of the lease's head is of this lease's profile and segments."""
    checkpoint = found.manifest.checkpoint
    begun = tuple(segment.digest for segment in segments if segment.start_step < checkpoint.step)
    return (
        checkpoint.profile == profile
        and checkpoint.segments == begun
        and found.manifest.losses.start_step == head_step < checkpoint.step
    )


def _start(command: Message, recipe: Recipe, blobs: BlobReader, found: LocalCheckpoint | None) -> Head | None:
    from potluck.lm.parallel import Head

    if found is not None:
        checkpoint = found.manifest.checkpoint
        log.fact("resumed-locally", lineage=checkpoint.lineage, head_step=command["head_step"], step=checkpoint.step)
        return Head(step=checkpoint.step, weights=found.weights, optimizer=found.optimizer)
    origin = recipe.origin
    if not command["head_step"] and origin is not None:
        inherited = blobs.path(origin.optimizer) if origin.optimizer != NO_DIGEST else None
        return Head(step=0, weights=blobs.path(origin.weights), optimizer=inherited)
    if not command["head_step"]:
        return None
    weights, optimizer = blobs.path(command["weights"]), blobs.path(command["optimizer"])
    return Head(step=command["head_step"], weights=weights, optimizer=optimizer)


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
        self,
        writer: CheckpointWriter,
        segments: tuple[Segment, ...],
        blobs: BlobReader,
        desk: Reporter,
        clock: Clock,
        local_every_ms: int,
    ) -> None:
        self._writer = writer
        self._trainer = writer.trainer
        self._segments = segments
        self._blobs = blobs
        self._desk = desk
        self._clock = clock
        self._local_every_ms = local_every_ms
        self._saved_ms = clock.monotonic_ms()
        self._peak = peak_flops_per_second(self._trainer.profile)

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
            self._writer.look()
            crash_here("node.mid-step", also=self._desk.parent_pid)
            crash_here("worker.mid-step")
            step = trainer.step
            metrics = trainer.train_step(reader.batch(step), reader.weights(step), reader.mixtures(step))
            if not math.isfinite(metrics.loss):
                raise DataError(
                    "data.loss-not-finite",
                    f"{recipe.role} {recipe.index}: loss {metrics.loss} at step {metrics.step}",
                    "lower the learning rate, or lengthen the warm-up",
                )
            self._writer.since.add(metrics.step, metrics.loss, metrics.tokens)
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
            self._save(is_commit=trainer.step == commit)
            if commit <= trainer.step < end:
                commit = next_commit(step=trainer.step, commit_every=recipe.commit_every, segments=self._segments)

    def _save(self, *, is_commit: bool) -> None:
        """Commits, or saves locally if that is due. The clock decides what is spared, never what is computed."""
        now_ms = self._clock.monotonic_ms()
        if is_commit:
            self._writer.commit()
        elif now_ms - self._saved_ms >= self._local_every_ms:
            self._writer.save_locally()
        else:
            return
        self._saved_ms = now_ms


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
