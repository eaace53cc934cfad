"""For people: how a world failed, and what the worlds have been through."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import combinations

from tests.simulation.weather import KINDS
from tests.simulation.world import Outcome

RARE_BRANCHES: tuple[str, ...] = (
    "asked-anew-while-leased",
    "blobs-of-a-round-given-up",
    "blobs-put-again",
    "commit-known-already",
    "commit-refused",
    "commit-under-a-stale-fence",
    "denied refused.stale-request",
    "divergence-noted",
    "done-by-another-than-the-holder",
    "drain-received",
    "hub-stopped-after-drain",
    "holder-won",
    "joined-late",
    "lapsed expired",
    "lapsed suspect",
    "lease-of-unwanted-work",
    "lease-returned",
    "lease-returned-with-error",
    "mixture-proposal",
    "mixture-set",
    "node-left",
    "outbox-redelivered",
    "packet-into-partition",
    "refused.revoked",
    "renewal-refused",
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
    "started-from-snapshot",
    "steering refused.gate-open",
    "steering refused.run-ended",
    "steering refused.too-late",
    "stream-broke",
)
"""Branches of the product that only faults reach; the worlds of the suite must reach each."""

OF_A_THOUSAND: tuple[str, ...] = ("lapsed left", "inputs-of-an-ended-lease-are-gone")
"""Branches that two hundred worlds may miss."""

_ALIASES: Mapping[str, tuple[str, ...]] = {"crash-node": ("crash-node, holding a lease", "crash-node, idle")}
MAX_NAMED = 20
"""Pairs of faults that the report names."""


class Coverage:
    """What the worlds have been through: each kind of fault alone, beside others, and each method."""

    def __init__(self) -> None:
        self.marks: Counter[str] = Counter()
        self.runs: Counter[str] = Counter()
        self.on: Counter[str] = Counter()
        """Worlds by kind that was on."""
        self.fired: Counter[str] = Counter()
        """Worlds by kind that struck at least once."""
        self.alone: Counter[str] = Counter()
        """Worlds by kind that was on with no other."""
        self.pairs_on: set[tuple[str, ...]] = set()
        self.pairs_fired: set[tuple[str, ...]] = set()

    def add(self, outcome: Outcome) -> None:
        on = list(outcome.weather.swarm)
        counts = fault_counts(outcome.marks)
        fired = [kind for kind in on if counts[kind]]
        self.marks += outcome.marks
        self.runs.update(outcome.weather.programme.methods)
        self.on.update(on)
        self.fired.update(fired)
        self.alone.update(on if len(on) == 1 else ())
        self.pairs_on.update(combinations(on, 2))
        self.pairs_fired.update(combinations(fired, 2))

    def table(self) -> str:
        lines = [f"runs: {', '.join(f'{count} {method}' for method, count in sorted(self.runs.items()))}"]
        lines += ["faults: worlds in which it was on, alone, and struck; how often it struck"]
        lines += [
            f"  {self.on[kind]:6d} {self.alone[kind]:6d} {self.fired[kind]:6d} {count:9d}  {kind}"
            for kind, count in fault_counts(self.marks).items()
        ]
        lines += [self._pairs("were never on together", self.pairs_on)]
        lines += [self._pairs("never struck one world", self.pairs_fired)]
        lines += ["rare branches"]
        lines += [f"  {count:9d}  {name}" for name, count in branch_counts(self.marks).items()]
        lines += [f"  {self.marks[name]:9d}  {name}" for name in OF_A_THOUSAND]
        return "\n".join(lines)

    @staticmethod
    def _pairs(what: str, met: set[tuple[str, ...]]) -> str:
        pairs = list(combinations(KINDS, 2))
        missed = [f"{a} + {b}" for a, b in pairs if (a, b) not in met]
        named = f": {', '.join(missed[:MAX_NAMED])}" if missed else ""
        more = ", ..." if len(missed) > MAX_NAMED else ""
        return f"pairs of faults that {what}: {len(missed)} of {len(pairs)}{named}{more}"


def fault_counts(marks: Mapping[str, int]) -> dict[str, int]:
    """Hits by kind of fault."""
    return {kind: sum(marks.get(name, 0) for name in _ALIASES.get(kind, (kind,))) for kind in KINDS}


def branch_counts(marks: Mapping[str, int]) -> dict[str, int]:
    return {name: marks.get(name, 0) for name in RARE_BRANCHES}


def failure_text(outcome: Outcome) -> str:
    """What was broken, how to see it again, and what led to it."""
    assert outcome.violation is not None
    parts = [
        f"world {outcome.seed}: {outcome.violation}",
        f"again: python -m tests.simulation --seed {outcome.seed}",
        outcome.weather.told(),
        outcome.story,
        outcome.raised,
    ]
    return "\n".join(parts)
