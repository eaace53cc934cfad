"""Bookkeeping of blobs that the hub gave up: nothing that a run wants, or has published, may be among them."""

from __future__ import annotations

from collections.abc import Iterable

from coordinator.core.values import TaskKind
from potluck.ids import Digest
from tests.simulation.check_plans import PlanBook
from tests.simulation.check_results import ResultBook
from tests.simulation.kernel import Kernel
from tests.simulation.story import Violation

ROUNDS: tuple[TaskKind, ...] = ("train", "outer_step")


class BlobBook:
    """It need not know what will be read: whatever is wanted later must not have gone before."""

    def __init__(self, kernel: Kernel, plans: PlanBook, results: ResultBook) -> None:
        self._kernel = kernel
        self._plans = plans
        self._results = results
        self._gone: set[Digest] = set()

    def put(self, digests: Iterable[Digest]) -> None:
        self._gone.difference_update(digests)

    def gave_up(self, digests: Iterable[Digest]) -> None:
        self._gone.update(digests)
        self.check()
        self._note_rounds(digests)

    def check(self) -> None:
        """Of running runs: inputs of what is not done yet, and what they have published.

        Raises:
            Violation: one of these was given up.
        """
        if not self._gone:
            return
        for book in self._plans.runs.values():
            if book.state == "running":
                for task in book.tasks.values():
                    if task.id not in self._results.results:
                        self._require(task.label, task.id, (digest for _, digest in task.inputs))
                for slot, weights in book.slots.items():
                    self._require(f"what is served as {slot}", "", (Digest(weights),))

    def _require(self, what: str, work: str, digests: Iterable[Digest]) -> None:
        for digest in digests:
            if digest in self._gone:
                raise Violation("wanted-blobs-are-kept", f"{digest[:12]} of {what} was given up", work)

    def _note_rounds(self, digests: Iterable[Digest]) -> None:
        gone = set(digests)
        for book in self._plans.at_work():
            for task in book.tasks.values():
                result = self._results.results.get(task.id)
                if task.kind in ROUNDS and result is not None and not gone.isdisjoint(result.blobs.values()):
                    self._kernel.mark("blobs-of-a-round-given-up")
