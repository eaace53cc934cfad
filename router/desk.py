"""Where requests are worked: checks, routing, and the hand-over to the node. Knows no wire format."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Executor
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

from potluck.client_values import NOT_ROUTED, Generated, Instantiated, Routed, Scored
from potluck.errors import NotReachable, ResourceError, UsageError
from potluck.lm.stopping import StopScanner
from potluck.soup_names import Shares
from router.book import Loaded, ViewBook
from router.choose import Decision
from router.detokenise import StoppedText
from router.fleet import Fleet, Sampling
from router.patience import Patience
from router.soups import check_slot, soup_model
from router.view import ReplicaKey

DEFAULT_MAX_TOKENS = 64
MAX_TOKENS = 1024
"""Most tokens of one generation; gRPC buffers for a client that never reads, so this bounds memory."""
MAX_TEXT_BYTES = 65_536
MAX_PROMPT_TOKENS = 65_536
"""Text as long as a corpus section; ids as many as such a text can have."""
MAX_WAITING = 256
"""Routing decisions that may wait for the scoring thread: seconds of work."""

Prompt = str | tuple[int, ...]
OnAnswered = Callable[[Loaded, tuple[int, ...]], None]
"""Told of every request once it is answered: its view and its tokens. Must not block."""
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A prompt on its way to a slot, with the view it was decided under."""

    loaded: Loaded
    ids: tuple[int, ...]
    slot: str
    expert: int
    """The slot's index, or `NOT_ROUTED` for a slot that is no expert."""
    mixture: Shares = ()
    """Of a slot that holds a soup: which of its models."""
    model: str = ""
    """That model's one name."""

    @property
    def key(self) -> ReplicaKey:
        return self.loaded.view.key(self.slot)


def checked_sampling(*, max_tokens: int, temperature: float, top_k: int, top_p: float, seed: int) -> Sampling:
    """Sampling as asked, with zeros standing for defaults.

    Raises:
        UsageError: ``usage.bad-sampling``, naming the parameter and what is allowed.
    """
    allowed = {
        "max_tokens": (
            0 <= max_tokens <= MAX_TOKENS,
            max_tokens,
            f"1 to {MAX_TOKENS}, or 0 for the default of {DEFAULT_MAX_TOKENS}",
        ),
        "temperature": (math.isfinite(temperature) and temperature >= 0, temperature, "0 (greedy) or more"),
        "top_k": (top_k >= 0, top_k, "0 (off) or more"),
        "top_p": (0 <= top_p <= 1, top_p, "above 0 and at most 1; 0 stands for 1"),
        "seed": (0 <= seed < 2**64, seed, "0 to 2**64 - 1"),
    }
    for name, (ok, value, fix) in allowed.items():
        if not ok:
            raise UsageError("usage.bad-sampling", f"{name} = {value}", f"allowed: {fix}")
    return Sampling(
        max_tokens=max_tokens or DEFAULT_MAX_TOKENS,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p or 1.0,
        seed=seed,
    )


class Desk:
    """One per router. Blocking work goes to the one scoring thread of `executor`."""

    def __init__(
        self, book: ViewBook, fleet: Fleet, executor: Executor, patience: Patience, on_answered: OnAnswered
    ) -> None:
        self._book = book
        self._fleet = fleet
        self._executor = executor
        self._patience = patience
        self._on_answered = on_answered
        self._num_waiting = 0

    async def route(self, prompt: Prompt, *, run: str) -> Routed:
        """Decides the expert of a text.

        Raises:
            UsageError: ``usage.empty-text``, ``usage.too-long``, ``usage.bad-token``, ``usage.unknown-run``.
            NotReachable: ``net.no-view``.
            ResourceError: ``resource.busy``.
        """
        loaded = await self._pick(run)
        ids, decision = await self._decide(loaded, prompt)
        self._on_answered(loaded, ids)
        return Routed(
            expert=decision.expert,
            prefix_nll=decision.prefix_nll,
            prefix_tokens=min(len(ids), loaded.view.prefix_length),
            view_version=loaded.version,
            run=loaded.view.run,
            weights=loaded.view.expert_keys[decision.expert].weights,
        )

    async def score(self, prompt: Prompt, *, run: str, slot: str, model: str = "") -> Scored:
        """Log-probabilities of tokens 2..n under the routed expert, under `slot`, or under a soup's `model`.

        Raises:
            UsageError: as `route`, `check_slot` and `soup_model`, and ``usage.slot-and-model``.
            NotReachable, ResourceError: as `route`, `soup_model` and `Fleet.score`.
        """
        while True:
            placed = await self._place(prompt, run=run, slot=slot, model=model)
            try:
                log_probs = await self._score(placed)
                break
            except NotReachable:
                if self._book.is_current(placed.loaded):
                    raise
        key = placed.key
        self._on_answered(placed.loaded, placed.ids)
        return Scored(
            expert=placed.expert,
            log_probs=log_probs,
            ids=placed.ids,
            view_version=placed.loaded.version,
            run=key.run,
            weights=key.weights,
            model=placed.model,
        )

    async def instantiate(self, model: str, *, run: str) -> Instantiated:
        """Has a node make a model of a soup, unless it has it.

        Raises:
            UsageError: ``usage.unknown-run``; as `soup_model`.
            NotReachable, ResourceError: ``net.no-view``; as `soup_model` and `Fleet.instantiate`.
        """
        while True:
            placed = await self._place_model(None, await self._pick(run), model)
            try:
                await self._await_replica(placed)
                made, node = await self._fleet.instantiate(placed.key, placed.mixture)
                break
            except NotReachable:
                if self._book.is_current(placed.loaded):
                    raise
        return Instantiated(
            model=placed.model,
            digest=made.digest,
            cached=made.cached,
            build_ms=made.build_ms,
            coefficients=made.coefficients,
            view_version=placed.loaded.version,
            run=placed.key.run,
            weights=placed.key.weights,
            node=node,
        )

    async def generate(
        self, prompt: Prompt, *, run: str, slot: str, sampling: Sampling, stop: Sequence[str] = (), model: str = ""
    ) -> AsyncGenerator[Generated, None]:
        """Streams a continuation of the prompt. Asking for the next piece says that this one was written.

        Args:
            stop: the text ends before the first of these; its tokens end with the one that completed it.

        Raises:
            UsageError: as `score`, and ``usage.bad-stop``.
            NotReachable, ResourceError, ReplicaLost: as `Fleet.generate`.
        """
        scanner = StopScanner(stop)
        while True:
            placed = await self._place(prompt, run=run, slot=slot, model=model)
            answered = False
            try:
                async with aclosing(self._answer(placed, sampling, scanner)) as pieces:
                    async for piece in pieces:
                        answered = True
                        yield piece
                return
            except NotReachable:
                # A view that was replaced meanwhile has lost its replicas; nothing has been said under it yet.
                if answered or self._book.is_current(placed.loaded):
                    raise
            finally:
                if answered:
                    self._on_answered(placed.loaded, placed.ids)

    async def _answer(
        self, placed: Placed, sampling: Sampling, scanner: StopScanner
    ) -> AsyncGenerator[Generated, None]:
        await self._await_replica(placed)
        key, stream = placed.key, StoppedText(placed.loaded.scorer.text_stream(), scanner)
        async with aclosing(self._fleet.generate(key, placed.ids, sampling, placed.mixture)) as pieces:
            async for piece in pieces:
                placed.loaded.scorer.check(piece.ids)
                ids, text = stream.feed(piece.ids, is_last=bool(piece.finish))
                if stream.stopped:
                    await pieces.aclose()  # Ends the node's work before anybody is told.
                yield Generated(
                    ids=ids,
                    text=text,
                    expert=placed.expert,
                    view_version=placed.loaded.version,
                    run=key.run,
                    weights=key.weights,
                    finish="stop" if stream.stopped else piece.finish,
                    model=placed.model,
                )

    async def _score(self, placed: Placed) -> tuple[float, ...]:
        if len(placed.ids) < 2:
            return ()
        await self._await_replica(placed)
        return await self._fleet.score(placed.key, placed.ids, placed.mixture)

    async def _place(self, prompt: Prompt, *, run: str, slot: str, model: str) -> Placed:
        if slot and model:
            raise UsageError("usage.slot-and-model", f"slot {slot!r} and model {model[:80]!r}", "name one of them")
        loaded = await self._pick(run)
        if model:
            return await self._place_model(prompt, loaded, model)
        if slot:
            check_slot(loaded.view, slot)
            ids = await self._run(lambda: _ids_of(loaded, prompt))
            experts = loaded.view.expert_slots
            return Placed(
                loaded=loaded, ids=ids, slot=slot, expert=experts.index(slot) if slot in experts else NOT_ROUTED
            )
        ids, decision = await self._decide(loaded, prompt)
        return Placed(loaded=loaded, ids=ids, slot=loaded.view.expert_slots[decision.expert], expert=decision.expert)

    async def _place_model(self, prompt: Prompt | None, loaded: Loaded, model: str) -> Placed:
        """At a model of the view's soup; without a prompt, for the model's own sake."""
        held = self._book.current

        def blocking() -> Placed:
            named = soup_model(loaded, model, held)
            ids = () if prompt is None else _ids_of(loaded, prompt)
            return Placed(
                loaded=loaded, ids=ids, slot=named.slot, expert=NOT_ROUTED, mixture=named.mixture, model=named.name
            )

        return await self._run(blocking)

    async def _pick(self, run: str) -> Loaded:
        """The view a request is worked under; a router that is about to have its first is waited for."""
        await self._patience.wait_for(lambda: self._book.newest is not None)
        return self._book.pick(run)

    async def _await_replica(self, placed: Placed) -> None:
        """Nodes attach and load models after the router has its view; the fleet says so if none came."""
        await self._patience.wait_for(
            lambda: placed.key in self._fleet.ready or not self._book.is_current(placed.loaded)
        )

    async def _decide(self, loaded: Loaded, prompt: Prompt) -> tuple[tuple[int, ...], Decision]:
        def blocking() -> tuple[tuple[int, ...], Decision]:
            ids = _ids_of(loaded, prompt)
            return ids, loaded.scorer.decide(ids)

        return await self._run(blocking)

    async def _run(self, blocking: Callable[[], T]) -> T:
        if self._num_waiting >= MAX_WAITING:
            what = f"{self._num_waiting} routing decisions are waiting"
            raise ResourceError("resource.busy", what, "try again shortly, or start a second router")
        self._num_waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, blocking)
        finally:
            self._num_waiting -= 1


def _ids_of(loaded: Loaded, prompt: Prompt) -> tuple[int, ...]:
    """A prompt's ids, checked for length and vocabulary.

    Raises:
        UsageError: ``usage.empty-text``, ``usage.too-long``, ``usage.bad-token``.
    """
    if isinstance(prompt, str) and (size := len(prompt.encode())) > MAX_TEXT_BYTES:
        raise UsageError("usage.too-long", f"the text has {size} bytes", f"send at most {MAX_TEXT_BYTES}")
    ids = loaded.scorer.encode(prompt) if isinstance(prompt, str) else prompt
    if not ids:
        raise UsageError("usage.empty-text", "the text is empty", "send at least one token")
    if len(ids) > MAX_PROMPT_TOKENS:
        raise UsageError("usage.too-long", f"{len(ids)} token ids", f"send at most {MAX_PROMPT_TOKENS}")
    loaded.scorer.check(ids)
    return ids
