"""Six bugs in what the core learned last: second leases, rests, forks at the gate, what is served, rounds of a soup.

They were written down from the core's code before any of them was tried, by somebody who knew the checkers. The last
one came with the check that is to find it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from coordinator.core import queries, serving, spares, work
from coordinator.core.effects import Effect, Revoke
from coordinator.core.events import CheckpointCommitted
from coordinator.core.state import DurableState, Lineage, Run, State, TrainLease
from coordinator.core.values import CommittedStep, Failed, Running, SteeringEntry
from coordinator.plans import steering
from coordinator.plans.base import Results
from potluck.ids import Digest, LineageId
from tests.simulation.planted.bug import Bug, replaced


def _relieves_silently(state: State, lineage: Lineage, event: CheckpointCommitted) -> list[Effect]:
    # "Its next commit is refused, which tells it."
    return [effect for effect in _RELIEVE(state, lineage, event) if not isinstance(effect, Revoke)]


def _rests_with_any(durable: DurableState, lineage: Lineage) -> bool:
    # "Paused is paused": but another run may want the lineage, too.
    return any(durable.runs[run].paused for run in lineage.runs)


def _saved_since_the_grant(durable: DurableState, lineage: Lineage, holder: TrainLease, *rest: Any) -> float:
    # Both are times of a lease, and the wrong one was taken.
    return _SAVED(durable, lineage, replace(holder, moved_ms=holder.measured_ms), *rest)


def _served_until_finished(state: State) -> list[Run]:
    # "A run that people stopped still has good weights."
    published = [run for run in state.durable.runs.values() if run.published and run.serving_json]
    runs = [run for run in published if not isinstance(run.status, Failed)]
    newest = sorted(range(len(runs)), key=lambda index: (isinstance(runs[index].status, Running), index))
    kept = newest[-state.settings.max_served_runs :]
    return [runs[index] for index in sorted(kept)]


class _LastCommit(dict[int, CommittedStep]):
    def get(self, step: int, default: Any = None) -> Any:
        return super().get(max(self), default) if self else default


class _TrunkEndsAnywhere:
    """The trunk's commit at the fork is its last one, wherever that lies."""

    def __init__(self, results: Results, trunk: LineageId) -> None:
        self._results = results
        self._trunk = trunk

    def __getattr__(self, name: str) -> Any:
        return getattr(self._results, name)

    def commits(self, lineage: LineageId) -> Any:
        commits = self._results.commits(lineage)
        return _LastCommit(commits) if lineage == self._trunk else commits


def _forks_from_the_last_commit(
    self: steering.Helm, trunk: steering.Track, entry: SteeringEntry, rule: steering.Rule
) -> Any:
    # "The trunk ends at the fork, so its last commit is the fork's origin": once it has come that far.
    results = self._wishes.results
    self._wishes.results = _TrunkEndsAnywhere(results, trunk.training.recipe.id)
    try:
        return _PASS_GATE(self, trunk, entry, rule)
    finally:
        self._wishes.results = results


def _superseded_once_read(state: State) -> set[Digest]:
    # "Who read it has its result": but others read the same state of the soup, and are not wanted yet.
    read: set[Digest] = set()
    made: set[Digest] = set()
    open_inputs: set[Digest] = set()
    for task in state.durable.tasks.values():
        inputs = {digest for _, digest in task.wanted.inputs}
        if task.result is None:
            open_inputs |= inputs
        elif task.wanted.kind in ("train", "outer_step"):
            read |= inputs
            made.update(task.result.blobs.values())
    return (read & made) - open_inputs


_RELIEVE = work._relieve_others
_SAVED = spares._saved_on_lineage
_PASS_GATE = steering.Helm._pass_gate


BUGS: dict[str, Bug] = {
    "loser-is-not-told": Bug(
        description="The node that trained beside the one whose commit came first is not told to stop.",
        plant=lambda: replaced(work, "_relieve_others", _relieves_silently),
    ),
    "rests-with-one-of-its-runs": Bug(
        description="A lineage of two runs is given back at every commit while one of them is paused.",
        plant=lambda: replaced(work, "is_at_rest", _rests_with_any),
    ),
    "spare-counts-from-the-grant": Bug(
        description="Whether a node is slow is told by the time since its grant instead of since its last commit.",
        plant=lambda: replaced(spares, "_saved_on_lineage", _saved_since_the_grant),
    ),
    "fork-from-the-last-commit": Bug(
        description="The forks at the gate begin at the trunk's last commit, even if it is not there yet.",
        plant=lambda: replaced(steering.Helm, "_pass_gate", _forks_from_the_last_commit),
    ),
    "cancelled-runs-are-served-on": Bug(
        description="Nodes go on serving what a cancelled run had published.",
        plant=lambda: replaced(serving, "served_runs", _served_until_finished),
    ),
    "superseded-once-read": Bug(
        description="Blobs of a soup's round are given up once all who are known to read them have.",
        plant=lambda: replaced(queries, "superseded", _superseded_once_read),
    ),
}
