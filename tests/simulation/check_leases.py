"""Bookkeeping of leases: who holds what since when, and whether each grant and each end is as promised."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from coordinator.core.effects import Answer, Denied, RenewAnswer, TaskGranted, TrainGranted
from coordinator.core.events import (
    HeartbeatReceived,
    LeaseLapsed,
    LeaseRenewed,
    LeaseRequested,
    LeaseReturned,
    SessionClosed,
    SessionOpened,
)
from coordinator.core.settings import CoreSettings
from coordinator.core.values import LineageWanted
from potluck.ids import Fence, LineageId, NodeId, TaskId
from tests.simulation.check_plans import PlanBook
from tests.simulation.check_results import ResultBook
from tests.simulation.kernel import Kernel
from tests.simulation.story import Violation

Work = LineageId | TaskId


@dataclass(kw_only=True)
class Live:
    node: NodeId
    host: str
    work: str
    target_step: int
    """0 for a task."""
    deadline_ms: int


@dataclass(kw_only=True)
class _Presence:
    """What the hub has heard of a node since it started."""

    boot_id: str
    num_open: int = 0
    heard_ms: int = 0
    gaps_ms: list[int] = field(default_factory=list)
    """Silence before each heartbeat, oldest first."""
    broken: bool = False
    left: bool = False


class LeaseBook:
    def __init__(self, kernel: Kernel, settings: CoreSettings, plans: PlanBook, results: ResultBook) -> None:
        self._kernel = kernel
        self._settings = settings
        self._plans = plans
        self._results = results
        self.live: dict[Fence, Live] = {}
        self.grants: dict[str, int] = {}
        self.early_ends: dict[str, int] = {}
        """By work: leases that ended before it was done."""
        self.seconds: dict[str, list[tuple[NodeId, NodeId]]] = {}
        """By work: who had it, and who was given it beside them."""
        self.owed: set[tuple[NodeId, Fence]] = set()
        """Holders whose lease was ended for them, who are to be told with what leaves next."""
        self.drained: set[NodeId] = set()
        self.num_lapses = 0
        self.draining = False
        self._last_fence = 0
        self._presence: dict[NodeId, _Presence] = {}
        self._boots: dict[NodeId, list[str]] = {}
        self._late: dict[Fence, None] = {}

    # --- grants ---------------------------------------------------------------------------------

    def requested(self, event: LeaseRequested, answer: Answer) -> None:
        """A request that is no repeat: what its node held has ended, whatever the answer is."""
        boots = self._boots.setdefault(event.node, [])
        if event.node in self._results.revoked:
            if not isinstance(answer, Denied):
                raise Violation("the-revoked-are-not-believed", f"{event.node} was answered {answer}")
            return
        if isinstance(answer, Denied):
            self._kernel.mark(f"denied {answer.error_id}")
            return
        if event.boot_id in boots[:-1]:
            raise Violation("old-processes-get-nothing", f"{event.node}, process {event.boot_id}: {answer}")
        if event.boot_id not in boots:
            boots.append(event.boot_id)
        self.hear(event.node, event.now_ms)
        for fence in [fence for fence, live in self.live.items() if live.node == event.node]:
            self._kernel.mark("asked-anew-while-leased")
            self.end(fence, early=True)
        if isinstance(answer, TrainGranted | TaskGranted):
            self._granted(event, answer)

    def _granted(self, event: LeaseRequested, answer: TrainGranted | TaskGranted) -> None:
        work = answer.lineage.id if isinstance(answer, TrainGranted) else answer.task.id
        if answer.fence <= self._last_fence:
            raise Violation("fences-grow", f"{answer.fence} after {self._last_fence}", work)
        self._last_fence = answer.fence
        if self.draining:
            raise Violation("a-draining-hub-grants-nothing", f"fence {answer.fence}", work)
        if event.node in self.drained:
            raise Violation("the-drained-get-nothing", f"{event.node} was given {answer.fence}", work)
        if self._plans.is_at_rest(work):
            raise Violation("grants-are-for-runs-at-work", f"{event.node} was given {answer.fence}", work)
        self._check_holders(event, work)
        if isinstance(answer, TrainGranted):
            self._check_lineage(answer, answer.lineage)
        else:
            self._check_task(answer)
        if answer.term_ms != self._settings.lease_ms:
            raise Violation("grants-say-the-term", f"{answer.term_ms}", work)
        self.grants[work] = self.grants.get(work, 0) + 1
        if self.grants[work] > 1 + self.early_ends.get(work, 0) + len(self.seconds.get(work, ())):
            raise Violation("work-is-granted-once-an-end", f"{self.grants[work]} grants", work)
        deadline_ms = event.now_ms + self._settings.lease_ms
        target_step = answer.target_step if isinstance(answer, TrainGranted) else 0
        self.live[answer.fence] = Live(
            node=event.node, host=event.host, work=work, target_step=target_step, deadline_ms=deadline_ms
        )

    def _check_holders(self, event: LeaseRequested, work: str) -> None:
        """A second lease is for another machine's node, and only if there is nothing else to do."""
        holders = [live for live in self.live.values() if live.work == work]
        if not holders:
            return
        if len(holders) > 1:
            raise Violation("at-most-two-leases-a-work", f"{holders} hold it, {event.node} was given it", work)
        if event.host in ("", holders[0].host):
            raise Violation("spares-are-on-other-machines", f"{holders[0]} and {event.node} on {event.host}", work)
        waiting = [one for one in self._waiting() if one != work]
        if waiting:
            raise Violation("spares-come-last", f"{event.node} was given it, {waiting[0][:12]} waits", work)
        self._kernel.mark("second-lease")
        self.seconds.setdefault(work, []).append((holders[0].node, event.node))

    def _waiting(self) -> Iterator[str]:
        """Work of runs that are not paused which nobody has been given."""
        held = {live.work for live in self.live.values()}
        for book in self._plans.at_work():
            for lineage in book.named:
                wanted = self._plans.lineage(lineage)
                if lineage not in held and wanted and self._results.head(lineage)[0] < wanted.known_steps:
                    yield lineage
            for task in book.tasks:
                if task not in held and task not in self._results.results:
                    yield task

    def _check_lineage(self, answer: TrainGranted, granted: LineageWanted) -> None:
        wanted = self._plans.lineage(granted.id)
        if wanted is None or wanted.recipe_json != granted.recipe_json:
            raise Violation("only-wanted-work-is-granted", f"{granted.label}: a plan wants {wanted}", granted.id)
        if not granted.segments_json == wanted.segments_json or answer.target_step != wanted.known_steps:
            raise Violation("grants-are-up-to-date", f"{granted.label} to {answer.target_step}", granted.id)
        head = self._results.head(granted.id)
        if (answer.head_step, answer.head) != head or not answer.head_step < answer.target_step:
            raise Violation("grants-begin-at-the-head", f"{answer.head_step}, the head is {head}", granted.id)

    def _check_task(self, answer: TaskGranted) -> None:
        wanted = self._plans.task(answer.task.id)
        mine = (answer.task.kind, answer.task.params_json, answer.task.inputs)
        label = answer.task.label
        if wanted is None or (wanted.kind, wanted.params_json, wanted.inputs) != mine:
            raise Violation("only-wanted-work-is-granted", f"{label}: a plan wants {wanted}", answer.task.id)
        if answer.task.id in self._results.results:
            raise Violation("done-work-is-not-granted", label, answer.task.id)

    # --- ends -----------------------------------------------------------------------------------

    def end(self, fence: Fence, *, early: bool) -> None:
        live = self.live.pop(fence, None)
        self._late.pop(fence, None)
        if live is not None and early:
            self.early_ends[live.work] = self.early_ends.get(live.work, 0) + 1

    def ended_by(self, node: NodeId, fence: Fence, work: str) -> None:
        """The holder itself has ended it, by an answer or by giving it back."""
        live = self.live.get(fence)
        if live is not None and live.node == node and work in ("", live.work):
            self.end(fence, early=True)

    def returned(self, event: LeaseReturned) -> None:
        if event.fence in self.live:
            self._kernel.mark("lease-returned-with-error" if event.error_id else "lease-returned")
        self.ended_by(event.node, event.fence, "")

    def end_of_work(self, work: str, by: NodeId) -> None:
        for fence, live in [(fence, live) for fence, live in self.live.items() if live.work == work]:
            self._kernel.mark("done-by-another-than-the-holder")
            if live.node != by:
                self.owed.add((live.node, fence))
            self.end(fence, early=True)

    def end_others(self, node: NodeId, fence: Fence, work: str) -> None:
        """A commit of a holder has come first: who trained the same beside it has lost."""
        own = self.live.get(fence)
        if own is None or (own.node, own.work) != (node, work):
            return
        for other in [other for other, live in self.live.items() if live.work == work and other != fence]:
            self._kernel.mark("spare-won" if other < fence else "holder-won")
            self.owed.add((self.live[other].node, other))
            self.end(other, early=True)

    def end_of_node(self, node: NodeId) -> None:
        for fence in [fence for fence, live in self.live.items() if live.node == node]:
            self.owed.add((node, fence))
            self.end(fence, early=True)
        self._presence.pop(node, None)

    def end_unwanted(self) -> None:
        for fence, live in list(self.live.items()):
            lineage, task = LineageId(live.work), TaskId(live.work)
            if self._plans.lineage(lineage) is None and self._plans.task(task) is None:
                self._kernel.mark("lease-of-unwanted-work")
                self.owed.add((live.node, fence))
                self.end(fence, early=True)

    def lapsed(self, event: LeaseLapsed) -> None:
        live = self.live.get(event.fence)
        if live is None:
            return
        self.num_lapses += 1
        self._kernel.mark(f"lapsed {event.reason}")
        seen = self._presence.get(live.node)
        silent_ms = event.now_ms - seen.heard_ms if seen is not None and seen.num_open else 0
        ok = {
            "expired": event.now_ms >= live.deadline_ms,
            "suspect": seen is not None and (seen.broken or silent_ms > self._patience_ms(seen)),
            "left": seen is not None and seen.left,
        }
        if not ok.get(event.reason, False):
            raise Violation(
                "leases-lapse-for-a-reason",
                f"fence {event.fence} of {live.node} lapsed as {event.reason} at {event.now_ms}; "
                f"its deadline was {live.deadline_ms}, the node's presence {seen}",
                live.work,
            )
        self.end(event.fence, early=True)

    def check_yield(self, node: NodeId, fence: Fence, lineage: LineageId, end_step: int) -> None:
        """A training is broken off at a commit before its target only for a rest, or for work that waits."""
        live = self.live.get(fence)
        if live is None or (live.node, live.work) != (node, lineage) or end_step >= live.target_step:
            return
        ends = self.draining or node in self.drained or self._plans.is_at_rest(lineage)
        behind = end_step < self._results.head(lineage)[0]
        if not ends and not behind and all(one == lineage for one in self._waiting()):
            raise Violation("trainings-go-on", f"{node} is to yield {fence} at {end_step}, and nothing waits", lineage)

    # --- signs of life --------------------------------------------------------------------------

    def resumed(self, now_ms: int) -> None:
        """Every lease has its whole term again; nobody has been heard yet."""
        self.draining = False
        self._presence.clear()
        self._late.clear()
        for live in self.live.values():
            live.deadline_ms = now_ms + self._settings.lease_ms

    def time_passed(self, now_ms: int) -> None:
        """What was over at the tick before must have lapsed by now."""
        for fence in self._late:
            if fence in self.live:
                raise Violation("leases-end-in-time", f"{fence}: {self.live[fence]} at {now_ms}", self.live[fence].work)
        self._late = {fence: None for fence, live in self.live.items() if self._is_over(live, now_ms)}

    def _is_over(self, live: Live, now_ms: int) -> bool:
        seen = self._presence.get(live.node)
        silent = seen is not None and seen.num_open > 0 and now_ms - seen.heard_ms > self._patience_ms(seen)
        return now_ms >= live.deadline_ms or silent

    def _patience_ms(self, seen: _Presence) -> int:
        """By the whole history: the first silence counts as a suspect's, and each fades by a tenth with every beat."""
        settings = self._settings
        longest = settings.suspect_ms
        for gap_ms in seen.gaps_ms:
            longest = max(longest * 9 // 10, gap_ms)
        steady = longest <= settings.steady_gap_ms
        return min(settings.suspect_ms, settings.suspect_steady_ms) if steady else settings.suspect_ms

    def hear(self, node: NodeId, now_ms: int) -> None:
        seen = self._presence.get(node)
        if seen is not None:
            seen.broken = seen.left = False
            seen.heard_ms = now_ms

    def beat(self, event: HeartbeatReceived) -> None:
        seen = self._presence.get(event.node)
        if seen is not None and seen.num_open:
            seen.gaps_ms.append(event.now_ms - seen.heard_ms)
        self.hear(event.node, event.now_ms)
        self._extend(event.node, event.fence, event.now_ms)

    def renewed(self, event: LeaseRenewed, answer: Answer) -> None:
        self.hear(event.node, event.now_ms)
        extended = self._extend(event.node, event.fence, event.now_ms)
        if not isinstance(answer, RenewAnswer) or answer.renewed != extended:
            raise Violation("renewals-tell-the-truth", f"{event.node}, {event.fence}: {answer}, live: {extended}")

    def _extend(self, node: NodeId, fence: Fence, now_ms: int) -> bool:
        live = self.live.get(fence)
        if live is None or live.node != node:
            return False
        live.deadline_ms = now_ms + self._settings.lease_ms
        self._late.pop(fence, None)
        return True

    def session_opened(self, event: SessionOpened) -> None:
        seen = self._presence.get(event.node)
        if seen is None or seen.boot_id != event.boot_id or not seen.num_open:
            seen = self._presence[event.node] = _Presence(boot_id=event.boot_id)
        seen.num_open += 1
        self.hear(event.node, event.now_ms)

    def session_closed(self, event: SessionClosed) -> None:
        seen = self._presence.get(event.node)
        if seen is None or seen.boot_id != event.boot_id or not seen.num_open:
            return
        seen.num_open -= 1
        if not seen.num_open:
            seen.broken, seen.left = not event.orderly, event.orderly
