"""From a view's JSON to a view in memory: fetches blobs, loads models in a thread, installs; keeps the last on disk."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

from potluck import telemetry
from potluck.errors import PotluckError
from potluck.ids import Digest, Json, RunId, canonical_json
from potluck.net.counters import Plane
from potluck.net.identity import write_private
from router.book import Loaded, ViewBook
from router.fleet import Fleet
from router.patience import Patience
from router.placing import Fetch, Files, fetch_partition
from router.score import Scorer
from router.view import View

RETRY_S = 5.0
"""After a failed load; the next view of the same run comes sooner, if there is one."""
FILE_NAME = "view.json"

log = telemetry.logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What the coordinator sent for one run; a later one of the same run takes its place."""

    run: RunId
    version: int
    view_json: str


class Loader:
    """Loads one offer at a time. Views that are not full yet wait for their successor."""

    def __init__(
        self, *, home: Path, book: ViewBook, fleet: Fleet, fetch: Fetch, executor: Executor, patience: Patience
    ) -> None:
        self._file = home / FILE_NAME
        self._book = book
        self._fleet = fleet
        self._fetch = fetch
        self._executor = executor
        self._offers: dict[RunId, Offer] = {}
        self._offered = asyncio.Event()
        self._patience = patience
        self._missing: dict[RunId, str] = {}
        self._failure = ""
        self._fetched: set[Digest] = set()

    @property
    def why_empty(self) -> str:
        """Why nothing is loaded, as far as views that were offered go; empty when none was."""
        if self._offers:
            return f"loading failed: {self._failure}" if self._failure else "its models are loading"
        return "; ".join(self._missing.values())

    def offer(self, offer: Offer) -> None:
        """Takes a view from the coordinator; never blocks."""
        self._offers[offer.run] = offer
        self._offered.set()

    async def restore(self, path_of: Callable[[Digest], Path]) -> None:
        """Serves from the views kept on disk, without the coordinator. What cannot be loaded is logged and
        left to `run`, which fetches what is missing.

        Args:
            path_of: the path of a blob on disk; raises `PotluckError` when it is not there.
        """

        async def fetch(digest: Digest, _plane: Plane) -> Path:
            return path_of(digest)

        kept = read_kept(self._file)
        self._offers = {offer.run: offer for offer in kept}
        for offer in kept:
            try:
                await self._load(offer, fetch)
                del self._offers[offer.run]
            except PotluckError as error:
                log.fact("view-not-restored", run=offer.run, error_id=error.error_id, message=error.message)
        if self._offers:
            self._offered.set()

    async def run(self) -> None:
        """Loads offers as they come, for ever. A failed load is logged and tried again while it is the latest."""
        while True:
            await self._offered.wait()
            self._offered.clear()
            failed = [offer for offer in tuple(self._offers.values()) if not await self._try(offer)]
            if failed:
                await self._pause()

    def wants(self, digest: Digest) -> bool:
        """Whether a view that is still to be loaded names the digest, or has fetched it."""
        return digest in self._fetched or any(digest in offer.view_json for offer in self._offers.values())

    def keep(self) -> None:
        """Writes the current views to disk, whole or not at all; those still to be loaded stay in the file."""
        current = {loaded.view.run for loaded in self._book.current}
        views: list[Json] = [
            {"run": kept.run, "version": kept.version, "view": kept.view_json}
            for kept in read_kept(self._file)
            if kept.run in self._offers and kept.run not in current
        ]
        views += [
            {"run": loaded.view.run, "version": loaded.version, "view": loaded.view.to_json()}
            for loaded in self._book.current
        ]
        write_private(self._file, canonical_json({"views": views}).encode())

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(RETRY_S):
                await self._offered.wait()
        except TimeoutError:
            self._offered.set()

    async def _try(self, offer: Offer) -> bool:
        try:
            with self._patience.loading():
                await self._load(offer, self._fetch)
        except PotluckError as error:
            log.fact(
                "view-not-loaded", run=offer.run, version=offer.version, error_id=error.error_id, why=error.message
            )
            self._failure = f"{error.message} ({error.fix})" if error.fix else error.message
            return False
        except Exception as error:  # The daemon's loop: no blob that somebody made may end the router.
            log.failure("view-not-loaded", error, run=offer.run, version=offer.version)
            self._failure = f"{type(error).__name__}; see the router's log"
            return False
        self._failure = ""
        if self._offers.get(offer.run) is offer:
            del self._offers[offer.run]
        return True

    async def _load(self, offer: Offer, fetch: Fetch) -> None:
        view = View.from_json(offer.view_json)
        self._missing.pop(view.run, None)
        if not view.is_full:
            missing = [slot for slot in view.expert_slots if slot not in view.slots]
            self._missing[view.run] = f"run {view.name} has not published {', '.join(missing)}"
            log.fact("view-not-full", run=view.run, version=offer.version, slots=len(view.slots))
            return
        held = self._book.find(view.run)
        if held is not None and _same_models(held.view, view):
            scorer, listed = held.scorer, held.listed
        else:
            scorer, listed = await self._models(view, fetch)
        self._book.install(Loaded(view=view, version=offer.version, scorer=scorer, listed=listed), self._fleet.ready)
        self._fetched.clear()
        log.fact("view-loaded", run=view.run, name=view.name, version=offer.version, experts=view.num_experts)

    async def _models(self, view: View, fetch: Fetch) -> tuple[Scorer, frozenset[Digest]]:
        """The scorer, and the blobs that a partition that decides lists."""
        self._fetched.clear()

        async def noted(digest: Digest, plane: Plane) -> Path:
            self._fetched.add(digest)
            return await fetch(digest, plane)

        paths = {view.tokenizer: await noted(view.tokenizer, "corpus")}
        for digest in view.routers:
            paths[digest] = await noted(digest, "weights")
        if view.soup is not None:
            paths[view.soup.labels] = await noted(view.soup.labels, "corpus")
        listed = await fetch_partition(view.partition, noted) if view.route_by == "partition" else {}
        files = Files(paths={**paths, **listed}, scratch=self._file.parent)
        scorer = await asyncio.get_running_loop().run_in_executor(self._executor, Scorer.load, view, files)
        return scorer, frozenset(listed)


def _same_models(held: View, view: View) -> bool:
    """Whether what a scorer is made of has not changed: new versions mostly bring new experts only."""
    deciding = ("route_by", "tokenizer", "routers", "router_model", "partition", "prefix_length")
    names = (*deciding, "expert_model", "soup")
    return all(getattr(held, name) == getattr(view, name) for name in names)


def read_kept(file: Path) -> list[Offer]:
    """The views that `Loader.keep` wrote, oldest run first; none when there is no file."""
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))["views"]
        return [Offer(run=RunId(k["run"]), version=int(k["version"]), view_json=str(k["view"])) for k in kept]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.fact("view-file-broken", path=os.fspath(file), error=error)
        return []
