"""The hub's state in the checkers' plain values."""

from __future__ import annotations

from collections.abc import Iterable

from coordinator.core.state import CommitRecord, State, TrainLease
from coordinator.core.values import Finished
from tests.simulation.check_results import Chain
from tests.simulation.checkers import Snapshot
from tests.simulation.oracle import Link


def snapshot_of(state: State) -> Snapshot:
    durable = state.durable
    return Snapshot(
        chains={lineage: _chain(one.commits) for lineage, one in durable.lineages.items() if one.commits},
        results={task: one.result for task, one in durable.tasks.items() if one.result is not None},
        ledgers={
            run: {line.lineage: _chain(line.commits) for line in one.ledger}
            for run, one in durable.runs.items()
            if isinstance(one.status, Finished)
        },
        leases={
            fence: (lease.node, lease.lineage if isinstance(lease, TrainLease) else lease.task)
            for fence, lease in durable.leases.items()
        },
    )


def _chain(commits: Iterable[CommitRecord]) -> Chain:
    return tuple(
        Link(start_step=one.start_step, end_step=one.end_step, parent=one.parent, child=one.checkpoint)
        for one in commits
    )
