"""The core's numbers, each with its reason. All times are milliseconds of a monotonic clock."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class CoreSettings:
    lease_ms: int = 30_000
    """Term of a lease; every renewal and every heartbeat that carries its fence starts it anew."""
    renew_ms: int = 10_000
    """When a node renews: three tries before the term is over."""
    heartbeat_ms: int = 1_000
    suspect_ms: int = 5_000
    """Silence after which a node's work may be granted anew; commits are compare-and-set, so being wrong is cheap."""
    suspect_steady_ms: int = 3_000
    """The same for a node whose heartbeats come steadily, as they do on a LAN."""
    steady_gap_ms: int = 1_500
    """The longest silence that such a node may have kept lately: a heartbeat half a period late."""
    yield_grace_ms: int = 1_000
    """A training is not interrupted for work younger than this: an idle node that was woken is there sooner."""
    overdue_ms: int = 60_000
    """Ordinary tasks (rank 1) that waited this long go as if they held lineages up."""
    wake_again_ms: int = 2_000
    """A wake-up may be lost; it is repeated this often while there is work for an idle node."""
    spare_speedup: float = 2.0
    """A second node trains a lineage only if it would be so many times as fast as who holds it."""
    straggler_factor: float = 3.0
    """A second node does a task that took so many times what such tasks take."""
    spare_gain_ms: int = 2_000
    """And only if it saves this much: fetching what the holder has already costs seconds, too."""
    max_failures: int = 3
    """Attempts at one piece of work that may end in an error before its runs fail."""
    serve_replicas: int = 2
    """Nodes that serve each published slot, if there are as many."""
    ledger_commits: int = 10_000
    """Most commits that ledgers of finished runs tell, 5 MB in a snapshot; the oldest are folded, never the newest."""
    max_served_runs: int = 16
    """Only the newest runs with published slots are served: memory of nodes is bounded."""
