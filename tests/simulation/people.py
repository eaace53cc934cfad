"""What people do in a world: they enrol nodes, start runs, change mixtures, and ask again until they are answered."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from coordinator.core import events as hear
from coordinator.core.effects import Answer
from coordinator.core.events import Event
from potluck.ids import Digest, RunId, digest_json
from tests.simulation import fake
from tests.simulation.node import Node
from tests.simulation.programme import is_steerable

if TYPE_CHECKING:
    from tests.simulation.world import World

ADMIN_AGAIN_MS = 2_000
STEER_EVERY_MS = 4_000


class People:
    def __init__(self, world: World) -> None:
        self._world = world
        self._kernel = world.kernel
        self._requests = 0

    def enrol(self, node: Node) -> None:
        token = Digest(f"token of {node.name}")
        name = node.name
        self.ask(lambda now: hear.InviteIssued(now_ms=now, token_digest=token, role="node", expires_unix_ms=1))
        self.ask(
            lambda now: hear.PeerEnrolled(
                now_ms=now, node=name, role="node", name=name, curve_public_key=name, token_digest=token
            )
        )

    def start(self, run: RunId) -> None:
        """Starts a run, or takes it up again."""
        spec_json = self._world.specs[run].to_json()
        request_id = self._next_request()
        self.ask(
            lambda now_ms: hear.RunSubmitted(
                now_ms=now_ms,
                unix_ms=now_ms,
                request_id=request_id,
                run=run,
                spec_json=spec_json,
                corpus_json=fake.CORPUS.to_json(),
                name="simulated",
                priority=self._world.priorities.get(run, 0),
            )
        )

    def pause(self, run: RunId, for_ms: float) -> None:
        self.rest(
            lambda now_ms: hear.RunPaused(now_ms=now_ms, run=run),
            lambda now_ms: hear.RunResumed(now_ms=now_ms, run=run),
            for_ms,
        )

    def rest(self, begin: Callable[[int], Event], end: Callable[[int], Event], for_ms: float) -> None:
        """Asked for until it is answered, and no longer once its end has come."""
        over: list[bool] = []
        self.ask(begin, wanted=lambda: not over)

        def go_on() -> None:
            over.append(True)
            self.ask(end)

        self._kernel.after(for_ms, go_on)

    def steer(self, run: RunId) -> None:
        """Changes the run's mixture now and then, until the storm is over: sets one, or has the gate judge it."""
        if is_steerable(self._world.specs[run]):
            self._kernel.after(self._steer_pause_ms(), lambda: self._change(run))

    def ask(
        self,
        event: Callable[[int], Event],
        wanted: Callable[[], bool] = lambda: True,
        answered: Callable[[Answer], None] = lambda answer: None,
    ) -> None:
        """A person's call, repeated until it is answered, or no longer wanted."""
        answers: list[Answer] = []

        def take(answer: Answer) -> None:
            answers.append(answer)
            if len(answers) == 1:
                answered(answer)

        def attempt() -> None:
            if answers or not wanted():
                return
            if self._world.hub.runs:
                self._world.hub.submit(event(self._world.hub.now_ms), take)
            self._kernel.after(ADMIN_AGAIN_MS, attempt)

        attempt()

    def _change(self, run: RunId) -> None:
        """One change at a time; the mixture is in the store before it is named, as the service has it."""
        chance = self._world.chance
        if self._world.healed:
            return
        request_id = self._next_request()
        mixture = digest_json(["mixture", request_id])
        kind = chance.choice(("set", "proposal"))
        origin = chance.choice(("person", "target", "traffic"))

        def steered(now_ms: int) -> Event:
            self._world.hub.put([mixture])
            return hear.MixtureSteered(
                now_ms=now_ms,
                unix_ms=now_ms,
                request_id=request_id,
                run=run,
                kind=kind,
                mixture=mixture,
                origin=origin,
                reason="a change",
            )

        self.ask(
            steered,
            answered=lambda answer: self._kernel.after(self._steer_pause_ms(), lambda: self._change(run)),
        )

    def _steer_pause_ms(self) -> float:
        return self._world.chance.expovariate(1 / STEER_EVERY_MS)

    def _next_request(self) -> str:
        self._requests += 1
        return f"request-{self._requests}"
