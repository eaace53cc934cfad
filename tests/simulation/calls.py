"""A node's unary calls: a packet there, a packet back, each of which may be lost; the first answer counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from coordinator.core import effects as say
from coordinator.core import events as hear
from coordinator.core.effects import Answer
from coordinator.core.events import Event
from expert_node import effects as do
from expert_node.values import Lease, TaskLease, TrainLease
from potluck.ids import Digest, NodeId
from tests.simulation.hub import Hub
from tests.simulation.network import HUB, Network
from tests.simulation.process import Process

DEADLINE_MS = 10_000

MakeEvent = Callable[[int], Event]


@dataclass(frozen=True, kw_only=True)
class Failed:
    """No answer came, or the way was shut at once."""


Came = Answer | Failed | tuple[Digest, ...]
"""An answer, none, or what the store lacks."""


@dataclass(kw_only=True)
class _Call:
    done: bool = False


class Calls:
    """The calls of one life of a node."""

    def __init__(self, node: Process, name: NodeId, network: Network, hub: Hub) -> None:
        self._node = node
        self._name = name
        self._network = network
        self._hub = hub

    def send(
        self,
        event: MakeEvent,
        answered: Callable[[Came], None],
        needs: tuple[Digest, ...] = (),
    ) -> None:
        """Calls the hub. `needs`: blobs that its store must hold, else the answer lists the missing ones."""
        call = _Call()

        def settle(answer: Came) -> None:
            if not call.done:
                call.done = True
                answered(answer)

        def back(answer: Answer | tuple[Digest, ...]) -> None:
            self._network.send(HUB, self._name, lambda: self._node.enter(life, lambda: settle(answer)))

        def arrive() -> None:
            missing = self._hub.missing(needs)
            if missing:
                back(missing)
            else:
                self._hub.submit(event(self._hub.now_ms), back)

        life = self._node.life
        if not self._hub.alive and self._network.passes_both(self._name, HUB):
            self._node.later(self._network.latency_ms(), lambda: settle(Failed()))
            return
        self._network.send(self._name, HUB, self._hub.here(arrive))
        self._node.later(DEADLINE_MS, lambda: settle(Failed()))

    def delivery(self, effect: do.PutAndCommit | do.PutAndComplete, now_ms: int) -> Event:
        node = self._name
        if isinstance(effect, do.PutAndCommit):
            commit = effect.commit
            return hear.CheckpointCommitted(
                now_ms=now_ms,
                node=node,
                request_id=effect.request_id,
                fence=commit.fence,
                lineage=commit.lineage,
                parent=commit.parent,
                start_step=commit.start_step,
                end_step=commit.end_step,
                child=commit.child,
                weights=commit.weights,
                optimizer=commit.optimizer,
                figures=commit.figures,
            )
        result = effect.result
        return hear.TaskCompleted(
            now_ms=now_ms,
            node=node,
            request_id=effect.request_id,
            fence=result.fence,
            task=result.task,
            blobs=result.blobs,
            figures=result.figures,
        )


def lease_of(answer: say.TrainGranted | say.TaskGranted) -> Lease:
    """What the wire makes of a grant."""
    if isinstance(answer, say.TrainGranted):
        wanted = answer.lineage
        return TrainLease(
            fence=answer.fence,
            term_ms=answer.term_ms,
            lineage=wanted.id,
            recipe_json=wanted.recipe_json,
            segments_json=f"[{','.join(wanted.segments_json)}]",
            profile_json=wanted.profile_json,
            head_step=answer.head_step,
            head=answer.head,
            weights=answer.weights,
            optimizer=answer.optimizer,
            target_step=answer.target_step,
            label=wanted.label,
        )
    task = answer.task
    return TaskLease(
        fence=answer.fence,
        term_ms=answer.term_ms,
        task=task.id,
        kind=task.kind,
        params_json=task.params_json,
        inputs=task.inputs,
        label=task.label,
    )
