"""Values that events, effects and plans are made of. Frozen, complete, JSON-able by `potluck.config.to_mapping`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from potluck.ids import Digest, Json, LineageId, TaskId

Figures = Mapping[str, Json]
"""Small results, at most 64 KiB as JSON."""

TaskKind = Literal[
    "tokenise", "embed", "fit_clusters", "assign", "train", "score", "eval", "fit", "outer_step", "serve"
]


@dataclass(frozen=True, kw_only=True)
class TaskWanted:
    """A task a plan wants done. `id` is `potluck.ids.task_id(kind, params, inputs)`."""

    id: TaskId
    kind: TaskKind
    params_json: str
    inputs: tuple[tuple[str, Digest], ...]
    label: str
    memory_bytes: int = 0
    rank: int = 1
    """Lower goes first within a run: 0 holds lineages up, 1 is ordinary, 2 can wait (evaluation, controls)."""


@dataclass(frozen=True, kw_only=True)
class LineageWanted:
    """A lineage a plan wants trained, with all its segments so far. A plan only ever appends."""

    id: LineageId
    recipe_json: str
    segments_json: tuple[str, ...]
    profile_json: str
    total_steps: int
    known_steps: int
    """End of the last known segment: a lease's target."""
    commit_every: int
    flops_per_step: float
    memory_bytes: int
    role: str
    label: str
    rank: int = 1


@dataclass(frozen=True, kw_only=True)
class Publication:
    """A probed checkpoint that may be served."""

    slot: str
    lineage: LineageId
    step: int
    weights: Digest
    tokenizer: Digest
    model_json: str


@dataclass(frozen=True, kw_only=True)
class Running:
    pass


@dataclass(frozen=True, kw_only=True)
class Finished:
    report: Digest
    figures: Figures


@dataclass(frozen=True, kw_only=True)
class Failed:
    error_id: str
    message: str


Outcome = Running | Finished | Failed


@dataclass(frozen=True, kw_only=True)
class ServingReport:
    run: str
    slot: str
    weights: Digest
    state: str
    """loading | ready | failed"""
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    blobs: Mapping[str, Digest]
    figures: Figures


@dataclass(frozen=True, kw_only=True)
class CommittedStep:
    """One link of a lineage's chain."""

    step: int
    checkpoint: Digest
    weights: Digest
    figures: Figures
