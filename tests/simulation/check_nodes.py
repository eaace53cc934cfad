"""What nodes must keep to: ids that grow, nothing dropped that nobody answered for, no work under a lost lease."""

from __future__ import annotations

from coordinator.core.effects import Answer, CommitAccepted, TaskAccepted
from expert_node.values import Finished, FinishedCommit
from potluck.ids import Fence, NodeId, RunId
from tests.simulation.story import Violation

Slot = tuple[RunId, str]


class NodeBook:
    def __init__(self) -> None:
        self.trained: dict[str, int] = {}
        """Steps by lineage, those done twice counted twice."""
        self.serves: dict[NodeId, dict[Slot, str]] = {}
        """Weights by run and slot, as each node was told last."""
        self.told_to_serve: dict[NodeId, set[RunId]] = {}
        """Runs of which the hub has it serve slots, as far as it has said."""
        self.lost: set[tuple[NodeId, Fence]] = set()
        """Leases that a node was told it has lost."""
        self._last: dict[tuple[NodeId, str], tuple[int, str]] = {}
        self._answers: dict[tuple[NodeId, int, Fence], bool] = {}
        self._refused: dict[NodeId, list[Finished]] = {}
        self._steps: set[tuple[Fence, int]] = set()

    def started(self, node: NodeId) -> None:
        self.serves.pop(node, None)

    def requested(self, node: NodeId, verb: str, request_id: int, content: str, *, busy: bool) -> None:
        """Ids of a verb grow, over restarts too; the same id again asks the same."""
        if busy:
            raise Violation("nodes-ask-with-empty-hands", f"{node} asks for a lease and works")
        last_id, last_content = self._last.get((node, verb), (0, ""))
        if request_id < last_id or (request_id == last_id and content != last_content):
            raise Violation("request-ids-grow", f"{node} {verb} {request_id} ({content}) after {last_id}")
        self._last[node, verb] = (request_id, content)

    def told(self, node: NodeId, entry: Finished, answer: Answer) -> None:
        accepted = isinstance(answer, CommitAccepted | TaskAccepted)
        self._answers[node, entry.entry, entry.fence] = accepted
        if not accepted:
            self._refused.setdefault(node, []).append(entry)

    def told_never(self, node: NodeId, entry: Finished) -> None:
        """The store will not have it."""
        self._refused.setdefault(node, []).append(entry)

    def dropped(self, node: NodeId, entry: Finished, reason: str) -> None:
        if self._answers.get((node, entry.entry, entry.fence)) is True:
            return
        for other in self._refused.get(node, ()):
            same_lineage = isinstance(entry, FinishedCommit) and isinstance(other, FinishedCommit)
            if other == entry or other.fence == entry.fence:
                return
            if same_lineage and other.lineage == entry.lineage:  # type: ignore[union-attr]
                return
        raise Violation(
            "finished-work-is-kept-until-answered", f"{node} dropped {entry.label} ({reason})", _work_of(entry)
        )

    def stepped(self, lineage: str, fence: Fence, step: int) -> None:
        if (fence, step) in self._steps:
            raise Violation("a-lease-trains-a-step-once", f"step {step} under {fence}", lineage)
        self._steps.add((fence, step))
        self.trained[lineage] = self.trained.get(lineage, 0) + 1


def _work_of(entry: Finished) -> str:
    return entry.lineage if isinstance(entry, FinishedCommit) else entry.task
