"""The end of a lease, whatever ended it."""

from __future__ import annotations

from coordinator.core.state import Lease, State

MAX_FORMER = 1024
"""Ended leases remembered; a holder that has not heard of it by then learns it from its commit."""


def release(state: State, lease: Lease, now_ms: int) -> None:
    """Ends a lease; what it named waits for a node again, if nobody else holds it and something is left to do."""
    del state.durable.leases[lease.fence]
    work = state.durable.holder(lease)
    if work is not None and lease.fence in work.leases:
        del work.leases[lease.fence]
        if not work.leases:
            work.ready_ms = now_ms
        state.durable.queues.refile(work)
    ephemeral = state.ephemeral
    ephemeral.deadlines_ms.pop(lease.fence, None)
    ephemeral.lapses_asked.pop(lease.fence, None)
    ephemeral.former[lease.fence] = lease
    while len(ephemeral.former) > MAX_FORMER:
        del ephemeral.former[next(iter(ephemeral.former))]
