"""How many requests routers counted, by run and domain. Kept in memory only: a restart forgets it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from coordinator.core.state import State
from coordinator.mixtures import read_labels
from coordinator.runtime import Runtime
from potluck.errors import PotluckError
from potluck.ids import Digest, RunId
from potluck.net.blobs.store import BlobStore
from potluck.telemetry import logger
from potluck.v1 import node_pb2

MAX_REQUESTS = 1_000_000_000
"""Requests of one domain that one message may tell of; what is above is no count."""

log = logger("coordinator.traffic")


@dataclass(kw_only=True)
class Counter:
    """Requests of one run since a time."""

    domains: frozenset[str]
    """Names of the run's partition: no other is kept."""
    since_unix_ms: int
    counts: dict[str, int] = field(default_factory=dict)
    unknown: int = 0

    def add(self, requests: Mapping[str, int]) -> None:
        for name, told in requests.items():
            count = min(max(told, 0), MAX_REQUESTS)
            if name not in self.domains:
                self.unknown += count
            elif count:
                self.counts[name] = self.counts.get(name, 0) + count


class Traffic:
    """At most one counter a run, with at most one count a domain of its partition."""

    def __init__(self, *, runtime: Runtime, store: BlobStore) -> None:
        self._runtime = runtime
        self._store = store
        self._counters: dict[RunId, Counter] = {}

    async def take(self, told: node_pb2.Traffic) -> None:
        """Adds what a router counted; of a run without a partition nothing is kept."""
        run = RunId(told.run)
        counter = self._counters.get(run) or await self._begun(run)
        if counter is not None:
            counter.add(told.requests)

    def counted(self, run: RunId) -> Counter | None:
        """What was counted for a run; None if no router has told of it."""
        return self._counters.get(run)

    def reset(self, run: RunId) -> None:
        """Begins to count anew."""
        counter = self._counters.get(run)
        if counter is not None:
            self._counters[run] = Counter(domains=counter.domains, since_unix_ms=self._runtime.unix_ms())

    async def _begun(self, run: RunId) -> Counter | None:
        labels = await self._runtime.read(lambda state: _labels_of(state, run))
        if labels is None:
            return None
        try:
            domains = frozenset(read_labels(labels, self._store).domains)
        except PotluckError as error:
            # The router's session is worth more than its counts: they are all unknown from here on.
            log.fact("traffic-not-counted", run=run, error_id=error.error_id, why=error.message)
            domains = frozenset()
        # Another router's message may have come in between.
        return self._counters.setdefault(run, Counter(domains=domains, since_unix_ms=self._runtime.unix_ms()))


def _labels_of(state: State, run: RunId) -> Digest | None:
    found = state.durable.runs.get(run)
    if found is None or found.steering is None:
        return None
    return Digest(json.loads(found.steering.json)["labels"])
