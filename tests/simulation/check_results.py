"""Bookkeeping of what was accepted: chains of commits, results of tasks, and what nodes really made."""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.core.effects import Answer, CommitAccepted, CommitRefused, Denied, TaskAccepted, TaskRefused
from coordinator.core.events import CheckpointCommitted, TaskCompleted
from coordinator.core.values import TaskResult
from expert_node.values import Finished, FinishedCommit
from potluck.ids import NO_DIGEST, Digest, LineageId, NodeId, RunId, TaskId
from tests.simulation.check_plans import PlanBook
from tests.simulation.kernel import Kernel
from tests.simulation.oracle import Link
from tests.simulation.story import Violation

Chain = tuple[Link, ...]


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a worker made, of what."""

    entry: Finished
    salt: str


class ResultBook:
    def __init__(self, kernel: Kernel, plans: PlanBook) -> None:
        self._kernel = kernel
        self._plans = plans
        self.chains: dict[LineageId, list[Link]] = {}
        self.results: dict[TaskId, TaskResult] = {}
        self.ledgers: dict[RunId, dict[LineageId, Chain]] = {}
        self.odd_results: dict[TaskId, TaskResult] = {}
        """Accepted results of nodes with other arithmetic, for the oracle."""
        self.odd_links: dict[Digest, str] = {}
        self.revoked: set[NodeId] = set()
        self.num_refused = 0
        self._made_commits: dict[Digest, Made] = {}
        self._made_results: dict[TaskId, list[Made]] = {}

    @property
    def done(self) -> frozenset[TaskId]:
        return frozenset(self.results)

    def head(self, lineage: LineageId) -> tuple[int, Digest]:
        chain = self.chains.get(lineage)
        return (chain[-1].end_step, chain[-1].child) if chain else (0, NO_DIGEST)

    def made(self, entry: Finished, salt: str) -> None:
        if isinstance(entry, FinishedCommit):
            self._made_commits[entry.child] = Made(entry=entry, salt=salt)
        else:
            self._made_results.setdefault(entry.task, []).append(Made(entry=entry, salt=salt))

    def committed(self, event: CheckpointCommitted, answer: Answer) -> bool:
        """Holds the answer to a commit against the chain; True if the chain has grown."""
        head_step, head = self.head(event.lineage)
        link = Link(start_step=event.start_step, end_step=event.end_step, parent=event.parent, child=event.child)
        known = any(
            (one.child, one.parent, one.end_step) == (link.child, link.parent, link.end_step)
            for one in self.chains.get(event.lineage, ())
        )
        wanted = self._plans.lineage(event.lineage) is not None
        extends = event.parent == head and event.start_step == head_step and event.start_step < event.end_step
        extends = extends and event.end_step <= self._plans.known_steps(event.lineage)
        match answer:
            case CommitAccepted():
                self._accepted(event, link, known=known, wanted=wanted, extends=extends)
                if (answer.head_step, answer.head) != self.head(event.lineage):
                    raise Violation("answers-say-the-head", f"{answer} at {self.head(event.lineage)}", event.lineage)
                return not known
            case CommitRefused():
                self.num_refused += 1
                self._kernel.mark("commit-refused")
                if wanted and (known or extends):
                    raise Violation(
                        "commits-on-the-head-win", f"{event.node} was refused: {answer.reason}", event.lineage
                    )
            case Denied():
                self._denied(event.node, answer)
            case _:
                raise Violation("answers-fit", f"a commit was answered by {answer}", event.lineage)
        return False

    def _accepted(self, event: CheckpointCommitted, link: Link, *, known: bool, wanted: bool, extends: bool) -> None:
        if event.node in self.revoked:
            raise Violation("the-revoked-are-not-believed", f"a commit of {event.node} was accepted", event.lineage)
        if known:
            self._kernel.mark("commit-known-already")
            return
        if not wanted or not extends:
            raise Violation(
                "chains-tile",
                f"accepted [{link.start_step}, {link.end_step}) on {link.parent[:8]} of {event.node}; "
                f"the head is {self.head(event.lineage)}, wanted: {wanted}",
                event.lineage,
            )
        made = self._made_commits.get(event.child)
        of = made.entry if made is not None else None
        if not isinstance(of, FinishedCommit) or (of.lineage, of.parent, of.start_step, of.end_step) != (
            event.lineage,
            event.parent,
            event.start_step,
            event.end_step,
        ):
            raise Violation("commits-are-what-was-trained", f"{event.child[:8]} was made as {of}", event.lineage)
        assert made is not None
        if made.salt:
            self.odd_links[Digest(f"{event.lineage}{event.parent}")] = made.salt
        self.chains.setdefault(event.lineage, []).append(link)

    def completed(self, event: TaskCompleted, answer: Answer) -> bool:
        """Holds the answer to a result against the first one; True if this was it."""
        said = TaskResult(blobs=dict(event.blobs), figures=event.figures)
        before = self.results.get(event.task)
        match answer:
            case TaskAccepted(divergent=divergent):
                if event.node in self.revoked:
                    raise Violation("the-revoked-are-not-believed", f"a result of {event.node}", event.task)
                if divergent != (before is not None and before != said):
                    raise Violation("first-results-stand", f"divergent={divergent}, before: {before}", event.task)
                if before is not None:
                    self._kernel.mark("result-diverged" if divergent else "result-known-already")
                    return False
                self._first(event, said)
                return True
            case TaskRefused():
                self.num_refused += 1
                self._kernel.mark("result-refused")
                if self._plans.task(event.task) is not None or before is not None:
                    raise Violation("wanted-results-are-taken", f"{event.node}: {answer.reason}", event.task)
            case Denied():
                self._denied(event.node, answer)
            case _:
                raise Violation("answers-fit", f"a result was answered by {answer}", event.task)
        return False

    def _first(self, event: TaskCompleted, said: TaskResult) -> None:
        if self._plans.task(event.task) is None:
            raise Violation("only-wanted-results", f"{event.node}'s result was taken, nobody wants it", event.task)
        made = [m for m in self._made_results.get(event.task, ()) if dict(m.entry.blobs) == said.blobs]  # type: ignore[union-attr]
        if not made:
            raise Violation("results-are-what-was-made", f"no node made {said.blobs}", event.task)
        if made[0].salt:
            self.odd_results[event.task] = said
        self.results[event.task] = said

    def _denied(self, node: NodeId, answer: Denied) -> None:
        if node not in self.revoked:
            raise Violation("only-the-revoked-are-denied", f"{node}: {answer}")

    def finished(self, run: RunId) -> None:
        """The run's chains go into its ledger; what no other run has is forgotten."""
        book = self._plans.runs[run]
        self.ledgers[run] = {lineage: tuple(self.chains.get(lineage, ())) for lineage in book.lineages}
        for lineage in book.lineages:
            if not self._plans.has_lineage(lineage):
                self.chains.pop(lineage, None)
        for task in book.tasks:
            if not self._plans.is_kept(task):
                self.results.pop(task, None)
