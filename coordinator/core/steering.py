"""A run's mixture, changed from outside: set at once, or proposed and put to the gate. The plan decides the rest."""

from __future__ import annotations

from dataclasses import replace

from coordinator.core.effects import AdvancePlan, Answer, Denied, Effect, Reply, Steered
from coordinator.core.events import MixtureSteered
from coordinator.core.state import Run, State
from coordinator.core.values import Running, SteeringEntry
from potluck.ids import short

MAX_ENTRIES = 1024
"""Changes of one run: a plan walks through all of them each time."""


def on_mixture_steered(state: State, event: MixtureSteered) -> list[Effect]:
    """Takes a change in; it holds from the end of what the run's lineage already knows."""
    run = state.durable.runs.get(event.run)
    if run is None:
        return [_denied("refused.no-such-run", f"no run {short(event.run)}")]
    if run.steered_by == event.request_id:
        return [Reply(answer=_answer(run.entries[-1]))]
    why = _why_not(run)
    if why is not None:
        return [Reply(answer=why)]
    assert run.steering is not None
    entry = SteeringEntry(
        number=len(run.entries) + 1,
        kind=event.kind,
        mixture=event.mixture,
        step=run.steering.to_step,
        gate_steps=run.steering.gate_steps if event.kind == "proposal" else 0,
        origin=event.origin,
        reason=event.reason,
        unix_ms=event.unix_ms,
    )
    run.entries = (*run.entries, entry)
    run.steered_by = event.request_id
    if event.kind == "proposal":
        run.steering = replace(run.steering, gate_open=True)
    return [Reply(answer=_answer(entry)), AdvancePlan(run=run.run)]


def not_steerable(run: Run) -> Denied:
    reason = (
        f"run {short(run.run)} cannot be steered, or not yet: only a run of method single whose spec has a "
        "[partition] reads a mixture that can change"
    )
    return Denied(error_id="refused.not-steerable", reason=reason)


def _why_not(run: Run) -> Denied | None:
    name = short(run.run)
    if not isinstance(run.status, Running):
        return Denied(error_id="refused.run-ended", reason=f"run {name} has ended: its mixture cannot change any more")
    if run.steering is None:
        return not_steerable(run)
    if run.steering.gate_open:
        reason = f"a proposal for run {name} is at the gate; wait for its verdict (`potluck mix show`)"
        return Denied(error_id="refused.gate-open", reason=reason)
    if run.steering.to_step + run.steering.gate_steps >= run.steering.total_steps:
        reason = (
            f"run {name} is too near its end: step {run.steering.to_step} of {run.steering.total_steps} is given out"
        )
        return Denied(error_id="refused.too-late", reason=reason)
    if len(run.entries) >= MAX_ENTRIES:
        return Denied(error_id="refused.too-many", reason=f"the mixture of run {name} was changed {MAX_ENTRIES} times")
    return None


def _answer(entry: SteeringEntry) -> Answer:
    return Steered(number=entry.number, step=entry.step)


def _denied(error_id: str, reason: str) -> Effect:
    return Reply(answer=Denied(error_id=error_id, reason=reason))
