"""For people: how a world failed, and what the worlds have been through."""

from __future__ import annotations

from collections.abc import Mapping

from tests.simulation.weather import PACKETS, POINTS, STRIKES
from tests.simulation.world import Outcome

RARE_BRANCHES: tuple[str, ...] = (
    "asked-anew-while-leased",
    "blobs-put-again",
    "commit-known-already",
    "commit-refused",
    "commit-under-a-stale-fence",
    "denied refused.stale-request",
    "divergence-noted",
    "done-by-another-than-the-holder",
    "drain-received",
    "hub-stopped-after-drain",
    "lapsed expired",
    "lapsed left",
    "lapsed suspect",
    "lease-of-unwanted-work",
    "lease-returned",
    "lease-returned-with-error",
    "node-left",
    "outbox-redelivered",
    "packet-into-partition",
    "refused.revoked",
    "renewal-refused",
    "holder-won",
    "replayed",
    "request-repeated",
    "result-diverged",
    "result-known-already",
    "result-refused",
    "rest-begins-with-commit",
    "revoke-received",
    "rows-lost",
    "second-lease",
    "second-run",
    "spare-won",
    "stream-broke",
)
"""Branches of the product that only faults reach; the worlds of the suite must reach each."""

_ALIASES: Mapping[str, tuple[str, ...]] = {
    "crash-node": ("crash-node, holding a lease", "crash-node, idle"),
    "worker-fails": ("work-failed",),
    "inputs-fail": ("work-failed",),
    "put-refused": ("work-failed",),
}


def fault_counts(marks: Mapping[str, int]) -> dict[str, int]:
    """Hits by kind of fault."""
    return {
        kind: sum(marks.get(name, 0) for name in _ALIASES.get(kind, (kind,))) for kind in (*PACKETS, *STRIKES, *POINTS)
    }


def branch_counts(marks: Mapping[str, int]) -> dict[str, int]:
    return {name: marks.get(name, 0) for name in RARE_BRANCHES}


def coverage_table(marks: Mapping[str, int]) -> str:
    lines = ["faults"]
    lines += [f"  {count:7d}  {kind}" for kind, count in fault_counts(marks).items()]
    lines.append("rare branches")
    lines += [f"  {count:7d}  {name}" for name, count in branch_counts(marks).items()]
    return "\n".join(lines)


def failure_text(outcome: Outcome) -> str:
    """What was broken, how to see it again, and what led to it."""
    assert outcome.violation is not None
    parts = [
        f"world {outcome.seed}: {outcome.violation}",
        f"again: python -m tests.simulation --seed {outcome.seed}",
        outcome.story,
        outcome.raised,
    ]
    return "\n".join(parts)
