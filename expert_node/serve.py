"""What this node serves: models in the serving child, requests from whoever is attached."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from expert_node.child import Child, GroupNote
from expert_node.frames import Message
from expert_node.soups import NO_MEMORY
from potluck.errors import PotluckError
from potluck.ids import Digest
from potluck.telemetry import logger

MAX_CRASHES = 3
"""Deaths of the child, without a model loaded in between, before its slots are called failed."""
LOST = ("net.replica-lost", "the serving process ended; the request may be tried elsewhere")

log = logger("expert_node.serve")


@dataclass(frozen=True, kw_only=True)
class Slot:
    """One model to serve under a name."""

    run: str
    slot: str
    weights: Digest
    model_json: str


@dataclass(frozen=True, kw_only=True)
class SlotState:
    slot: Slot
    state: str
    """loading | ready | failed"""
    reason: str = ""


class Asker(Protocol):
    """Whoever sent a request: an attachment to a router."""

    def answer(self, request: int, message: Message) -> None:
        """Takes one answer of the child: tokens, scores or failed."""


Fetch = Callable[[Digest], Awaitable[Path]]


class Serving:
    """Slots, their models and open requests. All methods run in the event loop.

    Args:
        fetch: brings weights to this node.
        publish: told of every change of what is served.
    """

    def __init__(self, *, notes: GroupNote, fetch: Fetch, publish: Callable[[tuple[SlotState, ...]], None]) -> None:
        self._notes = notes
        self._fetch = fetch
        self._publish = publish
        self._assigned: tuple[Slot, ...] = ()
        self._states: dict[Slot, SlotState] = {}
        """Of what is assigned, and of what it supersedes until that is ready."""
        self._loads: dict[Digest, asyncio.Task[None]] = {}
        self._child: Child | None = None
        self._crashes = 0
        self._askers: dict[int, tuple[Asker, int]] = {}
        self._keys: dict[tuple[int, int], int] = {}
        self._last_key = 0

    @property
    def states(self) -> tuple[SlotState, ...]:
        return tuple(self._states.values())

    async def assign(self, slots: Sequence[Slot]) -> None:
        """The whole of what to serve; replaces what was said before. Models in use stay loaded.

        A slot that gets other weights is served with those it has until the new ones are ready, or until there turns
        out to be no room for both.
        """
        self._assigned = tuple(slots)
        before = {slot.weights for slot in self._states}
        kept = {slot: state for slot, state in self._states.items() if state.state != "failed"}
        names = {(s.run, s.slot) for s in slots if s not in kept or kept[s].state != "ready"}
        old = {s: state for s, state in kept.items() if state.state == "ready" and (s.run, s.slot) in names}
        self._states = old | {s: kept.get(s) or SlotState(slot=s, state="loading") for s in slots}
        after = {slot.weights for slot in self._states}
        for weights in before - after:
            self._stop_loading(weights)
            self._send({"type": "unload", "weights": weights})
        # A second name for weights that are here already needs no loading.
        ready = {s.slot.weights for s in self._states.values() if s.state == "ready"}
        for weights in after & ready:
            self._set(weights, "ready")
        if slots:
            await self._ensure_child()
        for slot, state in list(self._states.items()):
            if state.state == "loading":
                self._start_loading(slot)
        self._drop_superseded()
        self._publish(self.states)

    def ask(self, asker: Asker, request: int, message: Message) -> None:
        """Hands work to the child under a key of our own; answers go to the asker."""
        if self._child is None:
            asker.answer(request, {"type": "failed", "error_id": LOST[0], "message": LOST[1]})
            return
        self._last_key += 1
        key = self._last_key
        self._askers[key] = (asker, request)
        self._keys[id(asker), request] = key
        self._send({**message, "key": key})

    def credit(self, asker: Asker, request: int, tokens: int) -> None:
        if (key := self._keys.get((id(asker), request))) is not None:
            self._send({"type": "credit", "key": key, "tokens": tokens})

    def cancel(self, asker: Asker, request: int) -> None:
        if (key := self._keys.get((id(asker), request))) is not None:
            self._forget(key)
            self._send({"type": "cancel", "key": key})

    def forget_asker(self, asker: Asker) -> None:
        """Its stream is gone: so are its requests."""
        for _, request in [pair for pair in self._askers.values() if pair[0] is asker]:
            self.cancel(asker, request)

    def kill_child(self) -> None:
        """Ends the serving process by force; it is started again with all its models."""
        if self._child is not None:
            self._child.kill()

    async def close(self) -> None:
        for task in self._loads.values():
            task.cancel()
        await asyncio.gather(*self._loads.values(), return_exceptions=True)
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            await child.ended()

    async def _ensure_child(self) -> None:
        if self._child is None:
            self._child = await Child.start(
                "expert_node.serving_child",
                (),
                environment={"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
                on_message=self._on_message,
                on_exit=self._on_exit,
            )
            self._notes.note("serving", self._child.pid)

    def _start_loading(self, slot: Slot) -> None:
        if slot.weights in self._loads:
            return
        task = asyncio.create_task(self._load(slot), name=f"load {slot.slot}")
        self._loads[slot.weights] = task
        task.add_done_callback(lambda done: self._loaded(slot.weights, done))

    def _loaded(self, weights: Digest, done: asyncio.Task[None]) -> None:
        if self._loads.get(weights) is done:
            del self._loads[weights]
        if not done.cancelled() and (error := done.exception()) is not None:
            log.failure("load-failed", error, weights=weights)

    def _stop_loading(self, weights: Digest) -> None:
        if (task := self._loads.pop(weights, None)) is not None:
            task.cancel()

    async def _load(self, slot: Slot) -> None:
        try:
            path = await self._fetch(slot.weights)
        except PotluckError as error:
            log.fact("weights-not-fetched", slot=slot.slot, error_id=error.error_id, message=error.message)
            self._set(slot.weights, "failed", str(error.message))
            self._publish(self.states)
            return
        self._send({"type": "load", "weights": slot.weights, "model_json": slot.model_json, "path": str(path)})

    async def _on_message(self, child: Child, message: Message) -> None:
        match message["type"]:
            case "loaded":
                self._crashes = 0
                self._set(message["weights"], "ready")
                self._drop_superseded()
                self._publish(self.states)
            case "load-failed":
                if message["error_id"] != NO_MEMORY or not self._give_way(message["weights"]):
                    self._set(message["weights"], "failed", f"[{message['error_id']}] {message['message']}")
                self._publish(self.states)
            case _:
                self._answer(message)

    def _answer(self, message: Message) -> None:
        key = message["key"]
        if key not in self._askers:
            return  # Cancelled meanwhile.
        asker, request = self._askers[key]
        if message["type"] != "tokens" or message["finish"]:
            self._forget(key)
        asker.answer(request, message)

    async def _on_exit(self, child: Child, code: int) -> None:
        if self._child is not child:
            return  # Ended by us.
        self._child = None
        self._crashes += 1
        log.fact("serving-child-ended", code=code, crashes=self._crashes)
        for key, (asker, request) in list(self._askers.items()):
            self._forget(key)
            asker.answer(request, {"type": "failed", "error_id": LOST[0], "message": LOST[1]})
        for weights in list(self._loads):
            self._stop_loading(weights)
        if self._crashes < MAX_CRASHES:
            self._states = {slot: SlotState(slot=slot, state="loading") for slot in self._assigned}
            await self.assign(self._assigned)
            return
        # Tried anew when the coordinator next says what to serve.
        self._crashes = 0
        for slot in self._states:
            self._set(slot.weights, "failed", f"the serving process ended with code {code}")
        self._publish(self.states)

    def _set(self, weights: str, state: str, reason: str = "") -> None:
        for slot, old in self._states.items():
            if slot.weights == weights:
                self._states[slot] = replace(old, state=state, reason=reason)

    def _drop_superseded(self) -> None:
        self._drop({(s.run, s.slot) for s in self._assigned if self._states[s].state == "ready"})

    def _give_way(self, weights: str) -> bool:
        """Loads weights anew without what they supersede; False if they supersede nothing."""
        waiting = [slot for slot in self._assigned if slot.weights == weights]
        if not self._drop({(slot.run, slot.slot) for slot in waiting}):
            return False
        self._start_loading(waiting[0])
        return True

    def _drop(self, names: Collection[tuple[str, str]]) -> bool:
        """Ends serving what slots of these names were assigned before; says whether there was any of it."""
        superseded = [s for s in self._states if s not in self._assigned and (s.run, s.slot) in names]
        for old in superseded:
            del self._states[old]
            if all(slot.weights != old.weights for slot in self._states):
                self._send({"type": "unload", "weights": old.weights})
        return bool(superseded)

    def _forget(self, key: int) -> None:
        asker, request = self._askers.pop(key)
        del self._keys[id(asker), request]

    def _send(self, message: Message) -> None:
        if self._child is not None:
            self._child.send(message)
