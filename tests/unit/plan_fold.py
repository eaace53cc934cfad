"""A plan's world without machines: every task and every commit succeeds, in whatever order it is told."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

from coordinator.core.values import (
    CommittedStep,
    LineageWanted,
    SteeringEntry,
    TaskResult,
    TaskWanted,
)
from coordinator.plans import registry
from coordinator.plans.base import CorpusFacts, Wanted
from potluck.ids import NO_DIGEST, Digest, LineageId, TaskId, digest_json
from potluck.recipe import Segment, next_commit
from potluck.specs.run import RunSpec
from tests.simulation.fake import OUTPUTS, what_of

CORPUS = CorpusFacts(shards=tuple(Digest(f"{i:064d}") for i in range(3)), sources=("a", "b"))
ROWS = {"train_rows": 500, "valid_rows": 60, "test_rows": 70}


class Fold:
    """A world in which every task and every commit succeeds, in whatever order it is told."""

    def __init__(self, spec: RunSpec, **figures: Any) -> None:
        self.corpus = CORPUS
        self.spec = spec
        self.rows = {**ROWS, **figures}
        self.done: dict[TaskId, TaskResult] = {}
        self.chains: dict[LineageId, dict[int, CommittedStep]] = {}
        self.seen_tasks: dict[TaskId, TaskWanted] = {}
        self.seen_lineages: dict[LineageId, LineageWanted] = {}
        self.entries: tuple[SteeringEntry, ...] = ()
        self.gate: dict[str, Any] = {"difference": 0.1, "low": 0.0, "high": 0.2, "smallest_effect": 0.1}
        self.gate["verdict"] = "kept natural"
        self.repeats = 1.0

    def task(self, task: TaskId) -> TaskResult | None:
        return self.done.get(task)

    def commits(self, lineage: LineageId) -> Mapping[int, CommittedStep]:
        return self.chains.get(lineage, {})

    def steering(self) -> tuple[SteeringEntry, ...]:
        return self.entries

    def is_settled(self, task: TaskId) -> bool:
        return task in self.done

    def advance(self) -> Wanted:
        wanted = registry.advance(self.spec.to_json(), self.corpus.to_json(), self)
        for lineage in wanted.lineages:
            before = self.seen_lineages.get(lineage.id)
            if before is not None:
                assert lineage.segments_json[: len(before.segments_json)] == before.segments_json, "only appends"
            self.seen_lineages[lineage.id] = lineage
        self.seen_tasks.update({task.id: task for task in wanted.tasks})
        return wanted

    def open_work(self, wanted: Wanted) -> list[TaskWanted | LineageWanted]:
        tasks = [task for task in wanted.tasks if task.id not in self.done]
        lineages = [one for one in wanted.lineages if max(self.commits(one.id), default=0) < one.known_steps]
        return [*tasks, *lineages]

    def do(self, work: TaskWanted | LineageWanted) -> None:
        if isinstance(work, TaskWanted):
            self.done[work.id] = self._result(work)
        else:
            self._commit(work)

    def run(self, seed: int | None = 0) -> Wanted:
        """To the end, in an order of chance; None takes the first open piece of work each time."""
        chance = random.Random(seed)
        for _ in range(5_000):
            wanted = self.advance()
            work = self.open_work(wanted)
            if not work:
                return wanted
            self.do(chance.choice(work) if seed is not None else work[0])
        raise AssertionError("the plan does not come to an end")

    def _result(self, task: TaskWanted) -> TaskResult:
        params = json.loads(task.params_json)
        what = what_of(task.kind, params)
        luck = int(task.id[:6], 16) / 0xFFFFFF
        figures: dict[str, Any] = {
            "collect": self.rows,
            "probe": {"mean_nll": 2.0, "finite": True, "log_vocab": 5.7},
            "purity": {"purity": luck, "nmi": luck, "loads": [1, 1]},
            "nll": {"nll_all": luck, "nll_suffix": luck},
            "compare": {"mixture": {"nll_suffix": luck}},
            "gate": self.gate,
            "target_histogram": {"repeats": self.repeats, "warnings": []},
        }.get(what, {})
        return TaskResult(blobs={name: digest_json([task.id, name]) for name in OUTPUTS.get(what, ())}, figures=figures)

    def _commit(self, wanted: LineageWanted) -> None:
        chain = self.chains.setdefault(wanted.id, {})
        head = max(chain, default=0)
        segments = tuple(Segment.from_json(text) for text in wanted.segments_json)
        step = next_commit(step=head, commit_every=wanted.commit_every, segments=segments)
        parent = chain[head].checkpoint if chain else NO_DIGEST
        checkpoint = digest_json([wanted.id, step, parent])
        weights = digest_json(["weights", checkpoint])
        chain[step] = CommittedStep(
            step=step, checkpoint=checkpoint, weights=weights, optimizer=weights, figures={"loss": 3.0}
        )
