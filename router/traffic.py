"""Requests by domain, counted until they are sent, and blurred before if that was asked for. Pure.

What the noise protects is the domain of any one request: whoever reads all that a router sends can shift his
odds between two domains by at most a factor of e^epsilon (Dwork et al., 2006). Another domain for one request
changes two counts by one each, so every count, those of 0 too, gets Laplace noise of scale 2/epsilon, once,
in the only message that the request is part of. That there were requests, and about how many, is not hidden;
n requests of one client are protected as one would be by n times epsilon.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from potluck.errors import UsageError
from potluck.ids import Digest, RunId
from sampling.traffic import laplace

MAX_TALLIES = 16
"""Runs that are counted at a time; beyond it the one that began first is forgotten."""
MAX_NAMES = 2048
"""Domains in one message, which keeps it well below a MiB."""
NOISY_INTERVAL_S = 60.0
"""Between blurred counts: each adds noise to every domain, so there should be few."""


@dataclass(frozen=True, kw_only=True)
class Counted:
    """What one message says."""

    run: RunId
    requests: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Noise:
    epsilon: float
    seed: Callable[[], int]
    """Secret, and new at each call: whoever knows it can take the noise away."""

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < math.inf:
            fix = "allowed: above 0, finite; the less, the more noise; 1 is usual"
            raise UsageError("usage.bad-noise", f"noise = {self.epsilon}", fix)

    def draw(self, domains: tuple[str, ...]) -> np.ndarray:
        """float64 [domains]."""
        return laplace(list(domains), 2.0 / self.epsilon, self.seed())


class DomainCounts:
    """Counts that wait to be sent. They hold names of domains and numbers, nothing else."""

    def __init__(self, noise: Noise | None = None) -> None:
        self._noise = noise
        self._tallies: dict[tuple[RunId, Digest], _Tally] = {}
        self._blurred_at_s: float | None = None
        self._unsent: deque[Counted] = deque()

    def add(self, run: RunId, partition: Digest, domains: tuple[str, ...], domain: int) -> None:
        """Counts one request.

        Args:
            domains: the partition's.
            domain: index of the request's.
        """
        tally = self._tallies.setdefault((run, partition), _Tally(domains))
        tally.fresh[domain] += 1
        while len(self._tallies) > MAX_TALLIES:
            del self._tallies[next(iter(self._tallies))]

    def sending(self, now_s: float) -> Iterator[Counted]:
        """What is to be sent now. Asking for the next says that this one was sent; else it is the first of the
        next time, as it is: what was blurred once is not blurred again, for that would tell more.

        Args:
            now_s: of a clock that never goes back; infinity: all that there is, for this is the last time.
        """
        if not self._unsent or now_s == math.inf:
            self._unsent.extend(self._take(now_s))
        while self._unsent:
            yield self._unsent[0]
            self._unsent.popleft()

    def _take(self, now_s: float) -> list[Counted]:
        if not self._is_due(now_s):
            return []
        taken: list[Counted] = []
        for (run, _), tally in self._tallies.items():
            if tally.fresh:
                noise = self._noise
                counts = list(tally.exact() if noise is None else tally.blurred(noise.draw(tally.domains)))
                pieces = (counts[begin : begin + MAX_NAMES] for begin in range(0, len(counts), MAX_NAMES))
                taken += [Counted(run=run, requests=dict(piece)) for piece in pieces]
        if self._noise is None:
            self._tallies.clear()
        return taken

    def _is_due(self, now_s: float) -> bool:
        """Blurred counts keep to a grid of times that no request decides."""
        if self._noise is None:
            return True
        if self._blurred_at_s is None:
            self._blurred_at_s = now_s
        if now_s < math.inf and now_s - self._blurred_at_s < NOISY_INTERVAL_S:
            return False
        self._blurred_at_s = now_s
        return True


class _Tally:
    """Counts of one run by one partition."""

    def __init__(self, domains: tuple[str, ...]) -> None:
        self.domains = domains
        self.fresh: Counter[int] = Counter()
        self._owed = np.zeros(len(domains))

    def exact(self) -> Iterator[tuple[str, int]]:
        for domain, count in sorted(self.fresh.items()):
            yield self.domains[domain], count

    def blurred(self, noise: np.ndarray) -> Iterator[tuple[str, int]]:
        """Whole numbers from 0; what cutting at 0 and rounding adds is taken off the next time.

        Only noisy sums are carried on, so this tells nothing more of the counts.
        """
        exact = np.bincount(list(self.fresh), weights=list(self.fresh.values()), minlength=len(self.domains))
        noisy = exact + noise + self._owed
        sent = np.maximum(0.0, np.floor(noisy + 0.5))
        self._owed = noisy - sent
        self.fresh.clear()
        for domain in np.flatnonzero(sent):
            yield self.domains[domain], int(sent[domain])
