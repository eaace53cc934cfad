"""What a plan is given and what it gives back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from coordinator.core.values import (
    CommittedStep,
    LineageWanted,
    Outcome,
    Publication,
    Running,
    Steering,
    SteeringEntry,
    TaskKind,
    TaskResult,
    TaskWanted,
)
from potluck.config import from_mapping, to_mapping
from potluck.ids import Digest, Json, LineageId, TaskId, canonical_json, task_id


@dataclass(frozen=True, kw_only=True)
class CorpusFacts:
    """What a plan must know of the corpus manifest's contents."""

    shards: tuple[Digest, ...]
    """Document shards, in the manifest's order."""
    sources: tuple[str, ...]
    """Sorted names."""
    target_shards: tuple[Digest, ...] = ()
    """Of the target's manifest, where the method has a target."""

    @staticmethod
    def from_manifest(manifest: Mapping[str, Any]) -> CorpusFacts:
        shards = tuple(Digest(shard["digest"]) for shard in manifest["shards"])
        return CorpusFacts(shards=shards, sources=tuple(sorted(manifest["sources"])))

    @staticmethod
    def from_json(text: str) -> CorpusFacts:
        return from_mapping(CorpusFacts, json.loads(text), "corpus.")

    def to_json(self) -> str:
        return canonical_json(to_mapping(self))


class Results(Protocol):
    """What has come of the run so far."""

    def task(self, task: TaskId) -> TaskResult | None: ...

    def commits(self, lineage: LineageId) -> Mapping[int, CommittedStep]:
        """The chain, by the step each link ends at, in order."""

    def steering(self) -> tuple[SteeringEntry, ...]:
        """Changes of the run's mixture from outside, oldest first."""

    def is_settled(self, task: TaskId) -> bool:
        """Done, and its result kept for this run: it need not be named any more."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """All that a run wants now. Settled tasks may be left out."""

    lineages: tuple[LineageWanted, ...]
    tasks: tuple[TaskWanted, ...]
    publish: tuple[Publication, ...] = ()
    stage: str
    outcome: Outcome = field(default_factory=Running)
    serving_json: str = ""
    steering: Steering | None = None


class Wishes:
    """Collects what a plan wants while it walks through its stages."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self.lineages: dict[LineageId, LineageWanted] = {}
        self.tasks: dict[TaskId, TaskWanted] = {}

    def task(
        self,
        kind: TaskKind,
        params: Mapping[str, Json],
        inputs: Mapping[str, Digest],
        *,
        label: str,
        rank: int,
        memory_bytes: int = 0,
    ) -> TaskResult | None:
        """Wants a task; its result, if it is there already."""
        identifier = task_id(kind, params, inputs)
        if identifier not in self.tasks:
            self.tasks[identifier] = TaskWanted(
                id=identifier,
                kind=kind,
                params_json=canonical_json(params),
                inputs=tuple(inputs.items()),
                label=label,
                memory_bytes=memory_bytes,
                rank=rank,
            )
        return self.results.task(identifier)

    def lineage(self, wanted: LineageWanted) -> None:
        self.lineages[wanted.id] = wanted

    def weights(self, lineage: LineageId, step: int) -> Digest | None:
        """Weights of a lineage after `step` steps, if that step was committed."""
        commit = self.results.commits(lineage).get(step)
        return commit.weights if commit is not None else None

    def head_step(self, lineage: LineageId) -> int:
        return max(self.results.commits(lineage), default=0)

    def loss_curve(self, lineage: LineageId, first: int = 0) -> list[Json]:
        """[step, mean loss of the steps since the commit before], one point a commit; steps count from `first`."""
        commits = self.results.commits(lineage)
        return [[first + step, commit.figures["loss"]] for step, commit in commits.items() if "loss" in commit.figures]

    def wanted(
        self,
        stage: str,
        *,
        publish: tuple[Publication, ...] = (),
        outcome: Outcome | None = None,
        serving_json: str = "",
        steering: Steering | None = None,
    ) -> Wanted:
        open_tasks = (task for task in self.tasks.values() if not self.results.is_settled(task.id))
        return Wanted(
            lineages=tuple(self.lineages.values()),
            tasks=tuple(open_tasks),
            publish=publish,
            stage=stage,
            outcome=outcome or Running(),
            serving_json=serving_json,
            steering=steering,
        )
