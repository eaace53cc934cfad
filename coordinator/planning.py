"""From a run's state to what its plan wants now: the seam between the runtime and the plans."""

from __future__ import annotations

from coordinator.core.events import PlanAdvanced
from coordinator.core.machine import Machine
from coordinator.plans.registry import advance
from potluck.ids import RunId


def evaluate_plan(machine: Machine, run: RunId, now_ms: int) -> PlanAdvanced:
    """Evaluates the run's plan from scratch.

    Raises:
        PotluckError: the plan cannot go on; the run has failed.
    """
    facts = machine.durable.runs[run]
    wanted = advance(facts.spec_json, facts.corpus_json, machine.results_of(run))
    return PlanAdvanced(
        now_ms=now_ms,
        run=run,
        lineages=wanted.lineages,
        tasks=wanted.tasks,
        publish=wanted.publish,
        stage=wanted.stage,
        outcome=wanted.outcome,
        serving_json=wanted.serving_json,
        steering=wanted.steering,
    )
