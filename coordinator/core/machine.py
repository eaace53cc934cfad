"""The coordinator's mind: `handle(event) -> effects`. Deterministic; no clock, no chance, no I/O.

Durable events change the durable half of the state and nothing else decides them; ephemeral events
never do. So replaying the journal, which holds the durable ones, rebuilds the durable half exactly.
"""

from __future__ import annotations

from typing import assert_never

from coordinator.core.effects import AdvancePlan, Done, Effect, Reply, SendDrain
from coordinator.core.events import (
    CheckpointCommitted,
    CoordinatorResumed,
    DrainRequested,
    DurableEvent,
    EphemeralEvent,
    Event,
    HeartbeatReceived,
    InviteIssued,
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
    ServingReported,
    SessionClosed,
    SessionOpened,
    TaskCompleted,
    TimePassed,
    WorkAsked,
)
from coordinator.core.leases import on_lease_lapsed, on_lease_requested, on_lease_returned, on_work_asked
from coordinator.core.liveness import (
    on_heartbeat_received,
    on_lease_renewed,
    on_serving_reported,
    on_session_closed,
    on_session_opened,
    on_time_passed,
    wake_idle,
)
from coordinator.core.pace import measure_anew
from coordinator.core.pausing import on_node_drained, on_node_restored, on_run_paused, on_run_resumed
from coordinator.core.peers import on_invite_issued, on_peer_enrolled, on_peer_revoked
from coordinator.core.runs import on_plan_advanced, on_run_cancelled, on_run_submitted, plan_digest
from coordinator.core.serving import refresh_serving
from coordinator.core.settings import CoreSettings
from coordinator.core.state import DurableState, EphemeralState, Lineage, State, Task
from coordinator.core.steering import on_mixture_steered
from coordinator.core.values import CommittedStep, SteeringEntry, TaskResult
from coordinator.core.work import on_checkpoint_committed, on_task_completed
from potluck.ids import LineageId, RunId, TaskId

_MAY_MAKE_WORK = (
    PlanAdvanced,
    LeaseLapsed,
    LeaseReturned,
    LeaseRequested,
    CheckpointCommitted,
    PeerRevoked,
    RunResumed,
    NodeRestored,
)
_MAY_CHANGE_SERVING = (
    PlanAdvanced,
    RunCancelled,
    RunSubmitted,
    LeaseReturned,
    PeerRevoked,
    SessionOpened,
    SessionClosed,
)


class Machine:
    """Holds the state and the settings; everything else is functions over them."""

    def __init__(self, settings: CoreSettings | None = None) -> None:
        self.state = State(settings=settings or CoreSettings())

    @property
    def durable(self) -> DurableState:
        return self.state.durable

    @property
    def ephemeral(self) -> EphemeralState:
        return self.state.ephemeral

    def handle(self, event: Event) -> list[Effect]:
        """Takes one event in and says what to do next; at most one `Reply`, always first.

        Raises:
            InvariantViolation: a plan changed what it had asked for (`bug.segment-changed`); the
                state is as before and the event must not be journalled.
        """
        self.state.ephemeral.now_ms = event.now_ms
        if isinstance(event, DurableEvent):  # noqa: SIM108 - a ternary does not narrow
            effects = self._handle_durable(event)
        else:
            effects = self._handle_ephemeral(event)
        if isinstance(event, _MAY_MAKE_WORK):
            effects += wake_idle(self.state)
        if isinstance(event, _MAY_CHANGE_SERVING):
            effects += refresh_serving(self.state)
        return effects

    def adopt(self, durable: DurableState) -> None:
        """Takes over the state that a snapshot holds, as if it had handled all that led to it."""
        self.state.durable = durable
        durable.queues.rebuild(durable)
        # Ephemeral state begins anew with the `CoordinatorResumed` that follows a replay.
        self.state.ephemeral = EphemeralState(deadlines_ms=dict.fromkeys(durable.leases, 0))

    def results_of(self, run: RunId) -> RunResults:
        """What the run's plan may look at. A live view: read it now, do not keep it."""
        return RunResults(self.state.durable, run)

    def is_news(self, event: PlanAdvanced) -> bool:
        """False if the plan wants exactly what it wanted before: such an event need not be submitted."""
        run = self.state.durable.runs.get(event.run)
        return run is not None and run.plan_digest != plan_digest(event)

    def _handle_durable(self, event: DurableEvent) -> list[Effect]:
        match event:
            case CoordinatorResumed():
                return self._resume(event)
            case DrainRequested():
                return self._drain()
            case InviteIssued():
                return on_invite_issued(self.state, event)
            case PeerEnrolled():
                return on_peer_enrolled(self.state, event)
            case PeerRevoked():
                return on_peer_revoked(self.state, event)
            case RunSubmitted():
                return on_run_submitted(self.state, event)
            case RunCancelled():
                return on_run_cancelled(self.state, event)
            case RunPaused():
                return on_run_paused(self.state, event)
            case RunResumed():
                return on_run_resumed(self.state, event)
            case NodeDrained():
                return on_node_drained(self.state, event)
            case NodeRestored():
                return on_node_restored(self.state, event)
            case MixtureSteered():
                return on_mixture_steered(self.state, event)
            case PlanAdvanced():
                return on_plan_advanced(self.state, event)
            case LeaseRequested():
                return on_lease_requested(self.state, event)
            case LeaseReturned():
                return on_lease_returned(self.state, event)
            case LeaseLapsed():
                return on_lease_lapsed(self.state, event)
            case CheckpointCommitted():
                return on_checkpoint_committed(self.state, event)
            case TaskCompleted():
                return on_task_completed(self.state, event)
            case _:
                assert_never(event)

    def _handle_ephemeral(self, event: EphemeralEvent) -> list[Effect]:
        match event:
            case TimePassed():
                return on_time_passed(self.state, event)
            case SessionOpened():
                return on_session_opened(self.state, event)
            case SessionClosed():
                return on_session_closed(self.state, event)
            case HeartbeatReceived():
                return on_heartbeat_received(self.state, event)
            case LeaseRenewed():
                return on_lease_renewed(self.state, event)
            case ServingReported():
                return on_serving_reported(self.state, event)
            case WorkAsked():
                return on_work_asked(self.state, event)
            case _:
                assert_never(event)

    def _resume(self, event: CoordinatorResumed) -> list[Effect]:
        """A new process knows nobody yet; every lease has its whole term before it."""
        durable = self.state.durable
        durable.boot_id = event.boot_id
        durable.draining = False
        works: list[Lineage | Task] = [*durable.lineages.values(), *durable.tasks.values()]
        for work in works:
            work.ready_ms = event.now_ms  # the clock of another process meant something else
        durable.queues.rebuild(durable)
        measure_anew(durable, event.now_ms)
        deadline = event.now_ms + self.state.settings.lease_ms
        deadlines = dict.fromkeys(durable.leases, deadline)
        self.state.ephemeral = EphemeralState(now_ms=event.now_ms, deadlines_ms=deadlines)
        return [AdvancePlan(run=run.run) for run in durable.running()]

    def _drain(self) -> list[Effect]:
        self.state.durable.draining = True
        sessions = self.state.ephemeral.sessions
        nodes = [node for node, session in sessions.items() if session.opened.role == "node"]
        reason = "the coordinator is draining"
        return [Reply(answer=Done()), *(SendDrain(node=node, reason=reason) for node in nodes)]


class RunResults:
    """The results a plan sees: done tasks and committed steps, whoever had them done."""

    def __init__(self, durable: DurableState, run: RunId) -> None:
        self._durable = durable
        self._run = run

    def task(self, task: TaskId) -> TaskResult | None:
        found = self._durable.tasks.get(task)
        return found.result if found is not None else None

    def commits(self, lineage: LineageId) -> dict[int, CommittedStep]:
        """The chain by the step each link ends at, in order."""
        found = self._durable.lineages.get(lineage)
        return {
            commit.end_step: CommittedStep(
                step=commit.end_step,
                checkpoint=commit.checkpoint,
                weights=commit.weights,
                optimizer=commit.optimizer,
                figures=commit.figures,
            )
            for commit in (found.commits if found is not None else ())
        }

    def steering(self) -> tuple[SteeringEntry, ...]:
        """Changes of the run's mixture from outside, oldest first."""
        run = self._durable.runs.get(self._run)
        return run.entries if run is not None else ()

    def is_settled(self, task: TaskId) -> bool:
        """Done, and kept for this run: a plan need not name it any more."""
        run = self._durable.runs.get(self._run)
        return run is not None and task in run.tasks and task not in run.open_tasks
