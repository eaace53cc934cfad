"""Which domain each request's text lies in: placed after the answer, in a thread of its own, then only counted."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

from potluck import telemetry
from potluck.errors import NotReachable, PotluckError
from potluck.ids import Digest
from router.book import Loaded
from router.placing import Fetch, Files, fetch_partition, load_placing
from router.traffic import DomainCounts
from sampling.partition import Placer

MAX_WAITING = 64
"""Requests that wait to be placed; more are not counted, which keeps the shares and bounds memory."""
WINDOWS = 4
"""Of a text, so much is placed."""
RETRY_S = 30.0
"""After a partition that could not be fetched."""

log = telemetry.logger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Answered:
    loaded: Loaded
    ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class _Held:
    placer: Placer
    blobs: frozenset[Digest]


class Counting:
    """Partitions of the current views, in memory, and the requests that wait to be placed. One event loop owns it."""

    def __init__(
        self,
        *,
        current: Callable[[], tuple[Loaded, ...]],
        fetch: Fetch,
        scratch: Path,
        counts: DomainCounts,
        executor: Executor,
    ) -> None:
        """
        Args:
            current: the views that are served.
            scratch: an existing folder.
            executor: one thread that no request waits for. Partitions that decide are loaded elsewhere again, for
                an encoder is no thing to share between threads.
        """
        self._current = current
        self._fetch = fetch
        self._scratch = scratch
        self._counts = counts
        self._executor = executor
        self._held: dict[Digest, _Held] = {}
        self._refused: set[Digest] = set()
        self._waiting: deque[_Answered] = deque()
        self._woken = asyncio.Event()

    @property
    def digests(self) -> frozenset[Digest]:
        """The blobs that the loaded partitions are made of."""
        return frozenset[Digest]().union(*(held.blobs for held in self._held.values()))

    @property
    def is_settled(self) -> bool:
        """Whether `digests` is all: no partition is still to be loaded."""
        return self._wanted() <= {*self._held, *self._refused}

    def wake(self) -> None:
        """The current views have changed."""
        self._woken.set()

    def answered(self, loaded: Loaded, ids: tuple[int, ...]) -> None:
        """A request was answered; never blocks."""
        if loaded.view.partition and len(self._waiting) < MAX_WAITING:
            self._waiting.append(_Answered(loaded=loaded, ids=ids[: WINDOWS * loaded.view.sequence_length + 1]))
            self._woken.set()

    async def run(self) -> None:
        """Loads partitions and places requests as they come, for ever."""
        while True:
            await self._woken.wait()
            self._woken.clear()
            wanted = self._wanted()
            self._held = {partition: held for partition, held in self._held.items() if partition in wanted}
            self._refused &= wanted
            for partition in wanted - {*self._held, *self._refused}:
                await self._load(partition)
            while self._waiting:
                await self._count(self._waiting.popleft())

    def _wanted(self) -> set[Digest]:
        return {loaded.view.partition for loaded in self._current() if loaded.view.partition}

    async def _load(self, partition: Digest) -> None:
        """Loads it, or says once why its requests are not counted. Without the coordinator it is tried again."""
        try:
            paths = await fetch_partition(partition, self._fetch)
            files = Files(paths=paths, scratch=self._scratch)
            placer = await asyncio.get_running_loop().run_in_executor(self._executor, load_placing, partition, files)
        except NotReachable as error:
            log.fact("partition-not-fetched", partition=partition, error_id=error.error_id, why=error.message)
            asyncio.get_running_loop().call_later(RETRY_S, self._woken.set)
        except PotluckError as error:
            log.fact(
                "requests-not-counted",
                partition=partition,
                error_id=error.error_id,
                why=error.message,
                fix=error.fix,
            )
            self._refused.add(partition)
        else:
            self._held[partition] = _Held(placer=placer, blobs=frozenset(paths))

    async def _count(self, answered: _Answered) -> None:
        view = answered.loaded.view
        if (held := self._held.get(view.partition)) is None:
            return
        try:
            domain = await asyncio.get_running_loop().run_in_executor(self._executor, _domain_of, held.placer, answered)
        except Exception as error:  # the boundary of a loop that nobody waits for: serving goes on
            log.failure("requests-not-counted", error)
            del self._held[view.partition]
            self._refused.add(view.partition)
            return
        if domain is not None:
            self._counts.add(view.run, view.partition, held.placer.partition.domains, domain)


def _domain_of(placer: Placer, answered: _Answered) -> int | None:
    """None: there is no text in it."""
    text = answered.loaded.scorer.text(answered.ids)
    if not text.strip():
        return None
    (placed,) = placer.place([text])
    return placed.domain
