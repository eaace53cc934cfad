"""Bookkeeping of what runs want, from the journal alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from coordinator.core.events import PlanAdvanced, RunCancelled, RunSubmitted
from coordinator.core.values import Failed, Finished, LineageWanted, Steering, TaskWanted
from potluck.ids import LineageId, RunId, TaskId
from tests.simulation.story import Violation


@dataclass(kw_only=True)
class RunBook:
    state: Literal["running", "cancelled", "finished"] = "running"
    paused: bool = False
    request_id: str = ""
    """Of the start that was taken in last."""
    lineages: dict[LineageId, LineageWanted] = field(default_factory=dict)
    """All that it ever named."""
    named: set[LineageId] = field(default_factory=set)
    tasks: dict[TaskId, TaskWanted] = field(default_factory=dict)
    """Named and not dropped: open or done."""
    finished: Finished | None = None
    slots: dict[str, str] = field(default_factory=dict)
    published: set[tuple[str, str]] = field(default_factory=set)
    """Every slot with every weights it ever had."""
    steering: Steering | None = None
    at_gate: bool = False
    """A proposal is being compared."""


class PlanBook:
    def __init__(self) -> None:
        self.runs: dict[RunId, RunBook] = {}

    def submitted(self, event: RunSubmitted) -> None:
        book = self.runs.setdefault(event.run, RunBook())
        if event.request_id == book.request_id:
            return  # Asked again by who has had no answer: it starts nothing, even if the run was cancelled meanwhile.
        book.request_id = event.request_id
        book.paused = False
        if book.state == "cancelled":
            book.state = "running"
            book.named = set(book.lineages)  # it has them again before its plan has spoken

    def cancelled(self, event: RunCancelled, done: frozenset[TaskId]) -> None:
        book = self.runs.get(event.run)
        if book is not None and book.state == "running":
            book.state = "cancelled"
            self._drop_open(book, set(), done)

    def advanced(self, event: PlanAdvanced, done: frozenset[TaskId]) -> bool:
        """Takes over what a plan wants; True if the run has finished with it.

        Raises:
            Violation: the plan changed a segment, or the run failed.
        """
        book = self.runs[event.run]
        if book.state != "running":
            return False
        if isinstance(event.outcome, Failed):
            raise Violation("runs-do-not-fail", f"{event.outcome.error_id}: {event.outcome.message}")
        for wanted in event.lineages:
            self._extend(book, wanted)
        book.named = {wanted.id for wanted in event.lineages}
        book.slots = {publication.slot: publication.weights for publication in event.publish}
        book.published.update(book.slots.items())
        book.steering, book.at_gate = event.steering, event.steering is not None and event.steering.gate_open
        self._drop_open(book, {task.id for task in event.tasks}, done)
        book.tasks.update({task.id: task for task in event.tasks})
        if isinstance(event.outcome, Finished):
            book.state, book.finished = "finished", event.outcome
        return book.state == "finished"

    def lineage(self, lineage: LineageId) -> LineageWanted | None:
        """With the most segments that any running run has for it."""
        wanted = [
            book.lineages[lineage] for book in self.runs.values() if book.state == "running" and lineage in book.named
        ]
        return max(wanted, key=lambda one: len(one.segments_json), default=None)

    def known_steps(self, lineage: LineageId) -> int:
        return max((b.lineages[lineage].known_steps for b in self.runs.values() if lineage in b.lineages), default=0)

    def task(self, task: TaskId) -> TaskWanted | None:
        """As a running run wants it now, or has had it done."""
        for book in self.runs.values():
            if book.state == "running" and task in book.tasks:
                return book.tasks[task]
        return None

    def is_at_rest(self, work: str) -> bool:
        """Every running run that wants this lineage or task is paused."""
        wanting = [b for b in self.runs.values() if b.state == "running" and (work in b.named or work in b.tasks)]
        return all(book.paused for book in wanting)

    def at_work(self) -> list[RunBook]:
        return [book for book in self.runs.values() if book.state == "running" and not book.paused]

    def is_kept(self, task: TaskId) -> bool:
        """Named by a run that may still ask for it."""
        return any(book.state != "finished" and task in book.tasks for book in self.runs.values())

    def has_lineage(self, lineage: LineageId) -> bool:
        return any(book.state != "finished" and lineage in book.lineages for book in self.runs.values())

    @staticmethod
    def _extend(book: RunBook, wanted: LineageWanted) -> None:
        before = book.lineages.get(wanted.id)
        if before is not None:
            count = len(before.segments_json)
            if wanted.segments_json[:count] != before.segments_json or wanted.recipe_json != before.recipe_json:
                raise Violation("plans-extend", f"{wanted.label} is asked for with other data", wanted.id)
        book.lineages[wanted.id] = wanted

    @staticmethod
    def _drop_open(book: RunBook, named: set[TaskId], done: frozenset[TaskId]) -> None:
        for task in [task for task in book.tasks if task not in named and task not in done]:
            del book.tasks[task]
