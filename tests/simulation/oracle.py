"""The undisturbed world: the plan folded over the fake training, one piece of work after the other, nothing lost.

It knows no lease, no node and no journal; what a disturbed world ends with must be what this one ends with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from coordinator.core.values import (
    CommittedStep,
    Finished,
    LineageWanted,
    Steering,
    SteeringEntry,
    TaskResult,
    TaskWanted,
)
from coordinator.plans import registry
from coordinator.plans.base import Wanted
from potluck.ids import NO_DIGEST, Digest, LineageId, TaskId
from potluck.recipe import Segment, next_commit
from potluck.specs.run import RunSpec
from tests.simulation import fake

MAX_TURNS = 2000


@dataclass(frozen=True, kw_only=True)
class Link:
    start_step: int
    end_step: int
    parent: Digest
    child: Digest


@dataclass(frozen=True, kw_only=True)
class Undisturbed:
    chains: Mapping[LineageId, tuple[Link, ...]]
    report: Digest
    slots: Mapping[str, Digest]
    """Weights by published slot."""
    steering: Steering | None
    """What the plan says of its mixture at the end."""
    num_tasks: int


class _Fold:
    """Results of a world in which everything that is wanted is done at once."""

    def __init__(
        self,
        spec: RunSpec,
        results: Mapping[TaskId, TaskResult],
        links: Mapping[Digest, str],
        entries: tuple[SteeringEntry, ...],
    ) -> None:
        self._spec = spec
        self._entries = entries
        self._given = results
        self._salts = links
        self._done: dict[TaskId, TaskResult] = {}
        self._steps: dict[LineageId, dict[int, CommittedStep]] = {}
        self.links: dict[LineageId, list[Link]] = {}

    def task(self, task: TaskId) -> TaskResult | None:
        return self._done.get(task)

    def commits(self, lineage: LineageId) -> Mapping[int, CommittedStep]:
        return self._steps.get(lineage, {})

    def steering(self) -> tuple[SteeringEntry, ...]:
        return self._entries

    def is_settled(self, task: TaskId) -> bool:
        return task in self._done

    @property
    def num_tasks(self) -> int:
        return len(self._done)

    def to_the_end(self) -> Wanted:
        for _ in range(MAX_TURNS):
            wanted = registry.advance(self._spec.to_json(), fake.CORPUS.to_json(), self)
            if not self._do_all(wanted):
                return wanted
        raise AssertionError("the plan comes to no end")

    def _do_all(self, wanted: Wanted) -> bool:
        before = self.num_tasks + sum(len(chain) for chain in self.links.values())
        for task in wanted.tasks:
            if task.id not in self._done:
                self._done[task.id] = self._result(task)
        for lineage in wanted.lineages:
            while max(self.commits(lineage.id), default=0) < lineage.known_steps:
                self._train(lineage)
        return before < self.num_tasks + sum(len(chain) for chain in self.links.values())

    def _result(self, task: TaskWanted) -> TaskResult:
        return self._given.get(task.id) or fake.task_result(task.kind, task.params_json, task.inputs)

    def _train(self, wanted: LineageWanted) -> None:
        steps = self._steps.setdefault(wanted.id, {})
        chain = self.links.setdefault(wanted.id, [])
        start = max(steps, default=0)
        parent = chain[-1].child if chain else NO_DIGEST
        segments = tuple(Segment.from_json(text) for text in wanted.segments_json)
        end = next_commit(step=start, commit_every=wanted.commit_every, segments=segments)
        salt = self._salts.get(Digest(f"{wanted.id}{parent}"), "")
        made = fake.checkpoint(wanted.id, parent, segments, start, end, salt)
        steps[end] = CommittedStep(
            step=end, checkpoint=made.child, weights=made.weights, optimizer=made.optimizer, figures=made.figures
        )
        chain.append(Link(start_step=start, end_step=end, parent=parent, child=made.child))


def undisturbed(
    spec: RunSpec,
    results: Mapping[TaskId, TaskResult] | None = None,
    salts: Mapping[Digest, str] | None = None,
    entries: tuple[SteeringEntry, ...] = (),
) -> Undisturbed:
    """Folds the spec to its end.

    Args:
        results: of tasks whose accepted result came from a node with other arithmetic.
        salts: by lineage id + parent digest: accepted links that came from such a node.
        entries: changes of its mixture, all known from the start: when one came is not to matter, but where it holds.
    """
    fold = _Fold(spec, results or {}, salts or {}, entries)
    wanted = fold.to_the_end()
    assert isinstance(wanted.outcome, Finished), wanted.outcome
    return Undisturbed(
        chains={lineage: tuple(chain) for lineage, chain in fold.links.items()},
        report=wanted.outcome.report,
        slots={publication.slot: publication.weights for publication in wanted.publish},
        steering=wanted.steering,
        num_tasks=fold.num_tasks,
    )
