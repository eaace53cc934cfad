"""Bookkeeping of mixtures that are changed from outside: which change was taken in, and from which step it holds."""

from __future__ import annotations

from coordinator.core.effects import Answer, Denied, Steered
from coordinator.core.events import MixtureSteered
from coordinator.core.values import SteeringEntry
from potluck.ids import RunId
from tests.simulation.check_plans import PlanBook
from tests.simulation.kernel import Kernel
from tests.simulation.story import Violation


class SteeringBook:
    """The entries it keeps are the oracle's, so a change that the hub forgets or moves shows in the heads."""

    def __init__(self, kernel: Kernel, plans: PlanBook) -> None:
        self._kernel = kernel
        self._plans = plans
        self._entries: dict[RunId, tuple[SteeringEntry, ...]] = {}
        self._last: dict[RunId, tuple[str, Answer]] = {}
        """By run: the last change that was taken in, and its answer."""

    def entries(self, run: RunId) -> tuple[SteeringEntry, ...]:
        return self._entries.get(run, ())

    def steered(self, event: MixtureSteered, answer: Answer) -> None:
        last_request, last_answer = self._last.get(event.run, ("", None))
        if event.request_id == last_request:
            self._kernel.mark("request-repeated")
            if answer != last_answer:
                raise Violation("same-request-same-answer", f"{event}: {last_answer}, then {answer}")
            return
        why_not = self._why_not(event.run)
        if isinstance(answer, Denied):
            self._kernel.mark(f"steering {answer.error_id}")
            if answer.error_id != why_not:
                raise Violation("changes-are-taken-in", f"{answer}, but {why_not or 'nothing'} is against it")
            return
        if why_not:
            raise Violation("changes-wait-for-the-gate", f"a {event.kind} was answered {answer}: {why_not}")
        self._take_in(event, answer)

    def _take_in(self, event: MixtureSteered, answer: Answer) -> None:
        book = self._plans.runs[event.run]
        before = self.entries(event.run)
        assert book.steering is not None
        due = Steered(number=len(before) + 1, step=book.steering.to_step)
        if answer != due:
            raise Violation("changes-hold-from-what-was-given-out", f"{answer} instead of {due}")
        self._kernel.mark(f"mixture-{event.kind}")
        is_proposal = event.kind == "proposal"
        entry = SteeringEntry(
            number=due.number,
            kind=event.kind,
            mixture=event.mixture,
            step=due.step,
            gate_steps=book.steering.gate_steps if is_proposal else 0,
            origin=event.origin,
            reason=event.reason,
            unix_ms=event.unix_ms,
        )
        self._entries[event.run] = (*before, entry)
        self._last[event.run] = (event.request_id, answer)
        book.at_gate = book.at_gate or is_proposal

    def _why_not(self, run: RunId) -> str:
        """The refusal that a change of this run would deserve now; empty if it must be taken in."""
        book = self._plans.runs.get(run)
        if book is None:
            return "refused.no-such-run"
        if book.state != "running":
            return "refused.run-ended"
        if book.steering is None:
            return "refused.not-steerable"
        if book.at_gate:
            return "refused.gate-open"
        room = book.steering.total_steps - book.steering.to_step
        return "" if room > book.steering.gate_steps else "refused.too-late"
