"""The checkers: they watch the journal, the answers and the pushes from outside and keep books of their own.

They share no code with the core but its values, events and effects. Each check has a name, which is what a
violation says first; `tests/simulation/planted_bugs.md` lists which check finds which planted bug.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from coordinator.core.effects import Answer, CommitAccepted, CommitRefused, Denied, Done, Push, Revoke, SendServe
from coordinator.core.events import (
    CheckpointCommitted,
    CoordinatorResumed,
    DrainRequested,
    Event,
    HeartbeatReceived,
    LeaseLapsed,
    LeaseRenewed,
    LeaseRequested,
    LeaseReturned,
    MixtureSteered,
    NodeDrained,
    NodeRestored,
    PeerEnrolled,
    PeerRevoked,
    PlanAdvanced,
    RunCancelled,
    RunPaused,
    RunResumed,
    RunSubmitted,
    SessionClosed,
    SessionOpened,
    TaskCompleted,
    TimePassed,
)
from coordinator.core.settings import CoreSettings
from coordinator.core.values import TaskResult
from expert_node.values import Finished, FinishedCommit
from potluck.ids import Digest, Fence, LineageId, NodeId, RunId, TaskId
from tests.simulation.check_blobs import BlobBook
from tests.simulation.check_leases import LeaseBook
from tests.simulation.check_nodes import NodeBook, Slot
from tests.simulation.check_plans import PlanBook
from tests.simulation.check_results import Chain, ResultBook
from tests.simulation.check_steering import SteeringBook
from tests.simulation.kernel import Kernel
from tests.simulation.oracle import Undisturbed
from tests.simulation.story import Story, Violation


@dataclass(frozen=True, kw_only=True)
class Handled:
    """An event the hub has handled, with the answer it found; the journal has it, if it is durable."""

    event: Event
    answer: Answer | None


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The hub's state in plain values."""

    chains: Mapping[LineageId, Chain]
    results: Mapping[TaskId, TaskResult]
    ledgers: Mapping[RunId, Mapping[LineageId, Chain]]
    leases: Mapping[Fence, tuple[NodeId, str]]


@dataclass(frozen=True, kw_only=True)
class _Asked:
    request_id: int
    content: tuple[object, ...]
    answer: Answer | None


class Checkers:
    """Raises `Violation` from whatever call lets it see one."""

    def __init__(self, kernel: Kernel, settings: CoreSettings) -> None:
        self.story = Story()
        self.plans = PlanBook()
        self.steering = SteeringBook(kernel, self.plans)
        self.results = ResultBook(kernel, self.plans)
        self.leases = LeaseBook(kernel, settings, self.plans, self.results)
        self.nodes = NodeBook()
        self.blobs = BlobBook(kernel, self.plans, self.results)
        self.enrolled: set[NodeId] = set()
        self._kernel = kernel
        self._asked: dict[tuple[NodeId, str], _Asked] = {}
        self._boots: dict[NodeId, str] = {}

    # --- the journal and its answers --------------------------------------------------------------

    def handled(self, handled: Handled) -> None:
        """Takes one event in, in the order of the journal."""
        event, answer = handled.event, handled.answer
        self.story.now_ms = self._kernel.now_ms
        self._tell(event, answer)
        if self._is_repeat(event, answer):
            self._kernel.mark("request-repeated")
            return
        match event:
            case CoordinatorResumed():
                self.leases.resumed(event.now_ms)
            case DrainRequested():
                self.leases.draining = True
            case RunSubmitted():
                self.plans.submitted(event)
            case RunCancelled():
                self.plans.cancelled(event, self.results.done)
                self.leases.end_unwanted()
            case PlanAdvanced():
                if self.plans.advanced(event, self.results.done):
                    self.results.finished(event.run)
                self.leases.end_unwanted()
                self.blobs.check()
            case RunPaused() | RunResumed():
                if isinstance(answer, Done):
                    self.plans.runs[event.run].paused = isinstance(event, RunPaused)
            case MixtureSteered():
                assert answer is not None
                self.steering.steered(event, answer)
            case NodeDrained():
                if isinstance(answer, Done):
                    self.leases.drained.add(event.node)
            case NodeRestored():
                self.leases.drained.discard(event.node)
            case PeerEnrolled():
                self.enrolled.add(event.node)
            case PeerRevoked():
                self.nodes.told_to_serve.pop(event.node, None)
                if event.node in self.enrolled:
                    self.results.revoked.add(event.node)
                    self.leases.end_of_node(event.node)
            case LeaseRequested():
                assert answer is not None
                self.leases.requested(event, answer)
            case LeaseReturned():
                self.leases.returned(event)
            case LeaseLapsed():
                self.leases.lapsed(event)
            case CheckpointCommitted():
                assert answer is not None
                self._committed(event, answer)
            case TaskCompleted():
                assert answer is not None
                if self.results.completed(event, answer):
                    self.leases.ended_by(event.node, event.fence, event.task)
                    self.leases.end_of_work(event.task, event.node)
            case _:
                self._ephemeral(event, answer)

    def _ephemeral(self, event: Event, answer: Answer | None) -> None:
        match event:
            case TimePassed():
                self.leases.time_passed(event.now_ms)
            case SessionOpened():
                self.nodes.told_to_serve.pop(event.node, None)
                self.leases.session_opened(event)
            case SessionClosed():
                self.nodes.told_to_serve.pop(event.node, None)
                self.leases.session_closed(event)
            case HeartbeatReceived():
                self.leases.beat(event)
            case LeaseRenewed():
                assert answer is not None
                self.leases.renewed(event, answer)
            case _:
                pass

    def _committed(self, event: CheckpointCommitted, answer: Answer) -> None:
        live = self.leases.live.get(event.fence)
        grew = self.results.committed(event, answer)
        if grew and (live is None or live.node != event.node):
            self._kernel.mark("commit-under-a-stale-fence")
        if grew:
            self.leases.end_others(event.node, event.fence, event.lineage)
        at_rest = event.node in self.leases.drained or self.plans.is_at_rest(event.lineage)
        if at_rest and isinstance(answer, CommitAccepted):
            self._kernel.mark("rest-begins-with-commit")
            if not answer.yield_lease:
                raise Violation("rest-begins-at-the-next-commit", f"{event.node} goes on", event.lineage)
        if isinstance(answer, CommitAccepted) and answer.yield_lease:
            self._kernel.mark("lease-ends-with-commit")
            self.leases.check_yield(event.node, event.fence, event.lineage, event.end_step)
            self.leases.ended_by(event.node, event.fence, event.lineage)
        if isinstance(answer, CommitRefused):
            self.leases.ended_by(event.node, event.fence, event.lineage)

    def _is_repeat(self, event: Event, answer: Answer | None) -> bool:
        """Same request, same answer: of each node and verb, while the node's process is the same."""
        content: tuple[object, ...]
        match event:
            case LeaseRequested():
                verb, content = "lease", (event.boot_id,)
            case CheckpointCommitted():
                verb, content = "commit", (event.fence, event.lineage, event.parent, event.child)
            case TaskCompleted():
                verb, content = "complete", (event.fence, event.task)
            case _:
                return False
        if event.node in self.results.revoked:
            return False
        last = self._asked.get((event.node, verb))
        if last is not None and (last.request_id, last.content) == (event.request_id, content):
            if last.answer != answer:
                raise Violation("same-request-same-answer", f"{event}: {last.answer}, then {answer}")
            return True
        if not isinstance(answer, Denied):
            if isinstance(event, LeaseRequested) and self._boots.get(event.node) != event.boot_id:
                self._boots[event.node] = event.boot_id
                for kind in ("lease", "commit", "complete"):
                    self._asked.pop((event.node, kind), None)
            if last is None or event.request_id >= last.request_id or isinstance(event, LeaseRequested):
                self._asked[event.node, verb] = _Asked(request_id=event.request_id, content=content, answer=answer)
        return False

    # --- effects that left -------------------------------------------------------------------------

    def pushed(self, push: Push) -> None:
        match push:
            case Revoke(node=node, fence=fence, reason=reason):
                self.story.note(f"revoke {fence} of {node}: {reason}")
                self.leases.owed.discard((node, fence))
                live = self.leases.live.get(fence)
                if live is not None and live.node == node:
                    raise Violation("live-leases-are-not-revoked", f"{fence} of {node}: {reason}", live.work)
            case SendServe(slots=slots):
                self.nodes.told_to_serve[push.node] = {slot.run for slot in slots}
                for slot in slots:
                    book = self.plans.runs.get(slot.run)
                    if book is None or (slot.slot, slot.weights) not in book.published:
                        raise Violation("only-published-weights-are-served", f"{slot.slot} on {push.node}")
            case _:
                pass

    def batch_left(self) -> None:
        """All that follows from the events so far has been said."""
        for node, fence in self.leases.owed:
            raise Violation("losers-are-told", f"{node} was not told that its lease {fence} is over")
        ended = {run for run, book in self.plans.runs.items() if book.state == "cancelled"}
        for node, runs in self.nodes.told_to_serve.items():
            if runs & ended:
                raise Violation("cancelled-runs-are-not-served", f"{node} was not told to stop serving {runs & ended}")

    # --- the whole state ---------------------------------------------------------------------------

    def hub_died(self) -> None:
        self.story.note("the hub dies")
        self.leases.owed.clear()
        self.nodes.told_to_serve.clear()

    def compare_replay(self, live: Digest, replayed: Digest) -> None:
        if live != replayed:
            raise Violation("replay-rebuilds-the-state", "the journal's rows give another durable state")

    def replayed(self, snapshot: Snapshot) -> None:
        self._kernel.mark("replayed")
        self.story.note("the hub starts from its journal")
        self.look(snapshot)

    def look(self, snapshot: Snapshot) -> None:
        """Nothing that was accepted may be missing or changed, and nothing else may be there."""
        for lineage in {*self.results.chains, *snapshot.chains}:
            mine, theirs = tuple(self.results.chains.get(lineage, ())), snapshot.chains.get(lineage, ())
            if mine != theirs:
                raise Violation("accepted-commits-stay", f"accepted {mine}, there are {theirs}", lineage)
        for task in {*self.results.results, *snapshot.results}:
            if self.results.results.get(task) != snapshot.results.get(task):
                raise Violation("accepted-results-stay", f"there is {snapshot.results.get(task)}", task)
        if self.results.ledgers != snapshot.ledgers:
            raise Violation("ledgers-stay", "a finished run's ledger is not what was accepted")
        held = {fence: (live.node, live.work) for fence, live in self.leases.live.items()}
        if held != snapshot.leases:
            raise Violation("leases-are-as-told", f"told {held}, there are {dict(snapshot.leases)}")

    # --- nodes ---------------------------------------------------------------------------------------

    def node_started(self, node: NodeId) -> None:
        self.story.note(f"{node} starts")
        self.nodes.started(node)

    def requested(self, node: NodeId, verb: str, request_id: int, content: str, *, busy: bool = False) -> None:
        self.nodes.requested(node, verb, request_id, content, busy=busy)

    def told(self, node: NodeId, entry: Finished, answer: Answer) -> None:
        self.nodes.told(node, entry, answer)

    def told_never(self, node: NodeId, entry: Finished) -> None:
        self.nodes.told_never(node, entry)

    def dropped(self, node: NodeId, entry: Finished, reason: str) -> None:
        self.nodes.dropped(node, entry, reason)

    def made(self, node: NodeId, entry: Finished, salt: str) -> None:
        work = entry.lineage if isinstance(entry, FinishedCommit) else entry.task
        self.story.now_ms = self._kernel.now_ms
        self.story.note(f"{node} has finished {entry.label} under {entry.fence}", work)
        self.results.made(entry, salt)

    def trained(self, lineage: str, fence: Fence, step: int) -> None:
        self.nodes.stepped(lineage, fence, step)

    def fetched(self, node: NodeId, fence: Fence, label: str, missing: list[Digest]) -> None:
        """Only who holds no lease any more may lack something."""
        if missing and fence in self.leases.live:
            raise Violation("inputs-are-in-the-store", f"{node}: {len(missing)} inputs of {label} are not")

    def lease_lost(self, node: NodeId, fence: Fence, *, held: bool, still_works: bool) -> None:
        self.story.note(f"{node} is told that {fence} is lost")
        if held:
            self.nodes.lost.add((node, fence))
        if still_works:
            raise Violation("nodes-stop-when-told", f"{node} works on under {fence}")

    def begun(self, node: NodeId, fence: Fence) -> None:
        if (node, fence) in self.nodes.lost:
            raise Violation("nodes-stop-when-told", f"{node} begins to work under {fence}, which it knows is lost")

    def denied(self, node: NodeId, error_id: str, *, is_revoked: bool) -> None:
        if not is_revoked:
            raise Violation("only-the-revoked-are-denied", f"{node} was told {error_id}")

    def serves(self, node: NodeId, slots: Mapping[Slot, str]) -> None:
        self.nodes.serves[node] = dict(slots)

    # --- the end ---------------------------------------------------------------------------------------

    def ended(self, run: RunId, oracle: Undisturbed) -> None:
        """A finished run must be the one of the undisturbed world."""
        book = self.plans.runs[run]
        if book.finished is None:
            raise Violation("runs-finish", f"run {run[:12]} is {book.state}")
        if book.finished.report != oracle.report:
            raise Violation("the-report-is-the-undisturbed-one", f"{book.finished.report}")
        if self.results.ledgers[run] != oracle.chains:
            wrong = [one for one, chain in oracle.chains.items() if self.results.ledgers[run].get(one) != chain]
            raise Violation("heads-are-the-undisturbed-ones", f"{len(wrong)} lineages differ", wrong[0])
        if book.slots != oracle.slots:
            raise Violation("the-undisturbed-weights-are-published", f"{book.slots}")
        if book.steering != oracle.steering:
            raise Violation("the-mixtures-are-the-undisturbed-ones", f"{book.steering}, undisturbed {oracle.steering}")

    def served(self, run: RunId, slots: Mapping[str, Digest], live: list[NodeId], num_replicas: int) -> None:
        """Every published slot has its replicas, as the nodes were told."""
        for slot, weights in slots.items():
            count = sum(self.nodes.serves.get(node, {}).get((run, slot)) == weights for node in live)
            if count != min(num_replicas, len(live)):
                raise Violation("published-slots-are-served", f"{slot} by {count} of {len(live)} nodes")

    def calm(self, totals: Mapping[LineageId, int], slow: Collection[NodeId]) -> None:
        """A world without faults wastes nothing but the steps ahead of a commit that ended its lease.

        And what a slow node does while a fast one does the same.
        """
        if self.leases.num_lapses or (self.results.num_refused and not self.leases.seconds):
            raise Violation("calm-worlds-waste-nothing", f"{self.leases.num_lapses} lapses")
        for work, pairs in self.leases.seconds.items():
            for holder, spare in pairs:
                if holder not in slow or spare in slow:
                    raise Violation("spares-help-the-slow", f"{spare} was given what {holder} had", work)
        for work, count in self.leases.grants.items():
            if work in self.leases.seconds:
                continue
            total = totals.get(LineageId(work))
            if total is None and count > 1:
                raise Violation("calm-worlds-waste-nothing", f"a task was granted {count} times", work)
            trained = self.nodes.trained.get(work, 0)
            if total is not None and trained > total + count:
                raise Violation("calm-worlds-waste-nothing", f"{trained} steps of {total} in {count} leases", work)

    def _tell(self, event: Event, answer: Answer | None) -> None:
        if isinstance(event, TimePassed | HeartbeatReceived | LeaseRenewed):
            return
        work = ""
        match event:
            case CheckpointCommitted():
                work = event.lineage
            case TaskCompleted():
                work = event.task
            case LeaseRequested():
                granted = getattr(answer, "lineage", None) or getattr(answer, "task", None)
                work = granted.id if granted is not None else ""
            case LeaseLapsed() | LeaseReturned():
                live = self.leases.live.get(event.fence)
                work = live.work if live is not None else ""
            case _:
                pass
        self.story.note(told(event, answer), work)


_SHOWN = ("node", "boot_id", "request_id", "fence", "start_step", "end_step", "reason", "error_id", "orderly", "stage")
_ANSWERED = ("fence", "head_step", "target_step", "yield_lease", "divergent", "reason", "error_id")


def told(event: Event, answer: Answer | None) -> str:
    """One line of a story."""
    said = " ".join(f"{name}={getattr(event, name)}" for name in _SHOWN if getattr(event, name, ""))
    reply = ""
    if answer is not None:
        parts = [f"{name}={getattr(answer, name)}" for name in _ANSWERED if getattr(answer, name, "")]
        label = getattr(getattr(answer, "lineage", None) or getattr(answer, "task", None), "label", "")
        reply = f" -> {type(answer).__name__} {label} {' '.join(parts)}"
    return f"{type(event).__name__} {said}{reply}"
