"""The views a router holds, and when one takes over from another.

A request takes one `Loaded` at its start and keeps it, so a swap never mixes two versions in one request.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

from potluck.errors import NotReachable, UsageError
from potluck.ids import Digest, RunId
from router.choose import Decision
from router.detokenise import TextStream
from router.view import ReplicaKey, View, may_replace

MAX_RUNS = 8
"""Runs one router serves at a time: the newest; each holds its router LMs in memory."""
MIN_RUN_PREFIX = 6


class Deciding(Protocol):
    """What `router.score.Scorer` offers."""

    @property
    def domains(self) -> tuple[str, ...]: ...

    def encode(self, text: str) -> tuple[int, ...]: ...

    def check(self, ids: tuple[int, ...]) -> None: ...

    def decide(self, ids: tuple[int, ...]) -> Decision: ...

    def text(self, ids: tuple[int, ...]) -> str: ...

    def text_stream(self) -> TextStream: ...


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """One version of one run's view with all it needs in memory."""

    view: View
    version: int
    scorer: Deciding
    listed: frozenset[Digest] = frozenset()
    """What the partition that decides is made of."""


class ViewBook:
    """Current and waiting views by run, oldest run first."""

    def __init__(self, on_swap: Callable[[], None], why_empty: Callable[[], str] = lambda: "") -> None:
        """
        Args:
            why_empty: why no view is held, for whoever asks for one.
        """
        self._on_swap = on_swap
        self._why_empty = why_empty
        self._current: dict[RunId, Loaded] = {}
        self._waiting: dict[RunId, Loaded] = {}

    @property
    def current(self) -> tuple[Loaded, ...]:
        return tuple(self._current.values())

    @property
    def newest(self) -> Loaded | None:
        return next(reversed(self._current.values()), None)

    @property
    def digests(self) -> frozenset[Digest]:
        """Every blob that a held view needs."""
        held = (*self._current.values(), *self._waiting.values())
        return frozenset[Digest]().union(*(loaded.view.digests | loaded.listed for loaded in held))

    def install(self, loaded: Loaded, ready: Collection[ReplicaKey]) -> None:
        """Takes a loaded view: current at once if it may, else it waits for its replicas."""
        self._waiting[loaded.view.run] = loaded
        self.reconsider(ready)

    def reconsider(self, ready: Collection[ReplicaKey]) -> None:
        """The set of ready replicas has changed: lets waiting views take over where they may."""
        swapped = False
        for run, waiting in tuple(self._waiting.items()):
            current = self._current.get(run)
            if may_replace(current.view if current else None, waiting.view, ready):
                del self._waiting[run]
                self._current[run] = waiting
                swapped = True
        while len(self._current) > MAX_RUNS:
            self._current.pop(next(iter(self._current)))
        if swapped:
            self._on_swap()

    def is_serving(self, ready: Collection[ReplicaKey]) -> bool:
        """Whether the newest run's experts all have a ready replica."""
        return self.newest is not None and self.newest.view.is_served(ready)

    def find(self, run: RunId) -> Loaded | None:
        """The latest of a run that is in memory, current or waiting."""
        return self._waiting.get(run) or self._current.get(run)

    def is_current(self, loaded: Loaded) -> bool:
        """Whether requests of its run are worked under it."""
        return self._current.get(loaded.view.run) is loaded

    def pick(self, run: str) -> Loaded:
        """The view of a run by id, name or unique prefix of its id; empty means the newest.

        Raises:
            NotReachable: ``net.no-view``: no view is held yet.
            UsageError: ``usage.unknown-run``.
        """
        if self.newest is None:
            fix = "see `potluck run status` and `potluck nodes`; try again once a run has published all its experts"
            why = self._why_empty()
            what = "this router holds no view of a run yet"
            raise NotReachable("net.no-view", f"{what}: {why}" if why else what, fix)
        if not run:
            return self.newest
        if (exact := self._current.get(RunId(run))) is not None:
            return exact
        named = [loaded for loaded in self._current.values() if loaded.view.name == run]
        if named:
            return named[-1]
        alike = [loaded for key, loaded in self._current.items() if key.startswith(run)]
        if len(run) >= MIN_RUN_PREFIX and len(alike) == 1:
            return alike[0]
        held = ", ".join(f"{loaded.view.run[:12]} ({loaded.view.name})" for loaded in self._current.values())
        raise UsageError("usage.unknown-run", f"run {run!r} is not served here", f"served: {held}")
