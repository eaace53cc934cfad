"""A soup that several nodes train together: rounds of tasks in place of a lineage.

The state after a round is named by the digests of its blobs, so a round is known by what it starts from, and is done
once. With one local step, the gradients of all parts make the next state, which is that of one node's step; with more,
each part trains on its own and the changes of shared model and coefficients are averaged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from coordinator.core.values import CommittedStep, SteeringEntry, TaskKind, TaskResult
from coordinator.plans.base import Results, Wishes
from coordinator.plans.held_out import NUM_PROBES
from coordinator.plans.soup_exchange import Exchanged, exchanged
from coordinator.plans.trainings import FIRST_RANK, Training
from potluck.config import to_mapping
from potluck.ids import NO_DIGEST, Digest, Json, LineageId, TaskId, digest_json, task_id
from potluck.lm.soup_spread import Spread, SpreadSetting, exchange_key
from potluck.recipe import Mixtures

MAX_POINTS = 64
"""Of a loss curve."""
MAX_TOLD = 16
"""Rounds that were not averaged as wished, in the report."""
MAX_REMEMBERED = 1 << 12
"""Rounds whose tasks are: those of the longest run twice over, a few KiB each."""


@dataclass(frozen=True, kw_only=True)
class Walked:
    """How far the rounds have come."""

    chain: Mapping[int, CommittedStep]
    """Checkpoints that were put together, by step: what commits are to a lineage."""
    losses: tuple[float, ...]
    """Of the rounds that are done, nats per target, the mean of its steps."""
    total: int
    """Rounds."""
    spread: Spread
    steps: int
    hub_instead: tuple[tuple[int, str], ...] = ()
    """Rounds, from 1, that the hub averaged because what another transport did was not believed, and why."""

    @property
    def exchange(self) -> dict[str, Json]:
        """How rounds were averaged, for the report; nothing where the hub is the transport."""
        if self.spread.transport == "hub":
            return {}
        told: dict[str, Json] = {
            "rounds": self.total,
            "by_hivemind": len(self.losses) - len(self.hub_instead),
            "hub_instead": [list(each) for each in self.hub_instead[:MAX_TOLD]],
        }
        return {"exchange": told}

    @property
    def stage(self) -> str:
        return f"training: round {min(len(self.losses) + 1, self.total)} of {self.total}"

    def loss_curve(self) -> list[Json]:
        """[step, mean loss since the point before], some rounds to a point."""
        each = -(-self.total // MAX_POINTS)
        curve: list[Json] = []
        for first in range(0, len(self.losses), each):
            own = self.losses[first : first + each]
            curve.append([self.spread.steps(first + len(own) - 1, self.steps).stop, sum(own) / len(own)])
        return curve


@dataclass(frozen=True, kw_only=True)
class StandIn:
    """Results in which a soup in rounds has commits like any lineage (a `Results`)."""

    results: Results
    lineage: LineageId
    chain: Mapping[int, CommittedStep]

    def task(self, task: TaskId) -> TaskResult | None:
        return self.results.task(task)

    def commits(self, lineage: LineageId) -> Mapping[int, CommittedStep]:
        return self.chain if lineage == self.lineage else self.results.commits(lineage)

    def steering(self) -> tuple[SteeringEntry, ...]:
        return self.results.steering()

    def is_settled(self, task: TaskId) -> bool:
        return self.results.is_settled(task)


@dataclass(frozen=True, kw_only=True)
class _State:
    setting: Digest
    common: Digest
    banks: tuple[Digest, ...]
    optimizers: tuple[Digest, ...] = ()
    """Of the parts; with one local step of their banks alone, then that of `common`. None before the first round."""
    momentum: Digest = NO_DIGEST

    @property
    def weights(self) -> dict[str, Digest]:
        return {"weights-common": self.common} | _numbered("weights-bank", self.banks)

    def optimizer(self, index: int) -> dict[str, Digest]:
        return {"weights-optimizer": self.optimizers[index]} if self.optimizers else {}


@dataclass(frozen=True, kw_only=True)
class Rounds:
    wishes: Wishes
    training: Training
    data: Mixtures
    spread: Spread

    def walk(self) -> Walked:
        """Wants what the next round waits for, and the checkpoints of those that are done."""
        steps = self.training.total_steps
        total = self.spread.rounds(steps)
        chain: dict[int, CommittedStep] = {}
        losses: list[float] = []
        hub_instead: list[tuple[int, str]] = []
        state = self._begun()
        probed = _probed_rounds(total)
        following = self._exact_round if self.spread.local_steps == 1 else self._local_round
        while state is not None and len(losses) < total:
            state, loss, doubt = following(len(losses), state)
            if state is not None:
                losses.append(loss)
                hub_instead += [(len(losses), doubt)] if doubt else []
                if len(losses) in probed:
                    self._put_together(state, len(losses), chain)
        return Walked(
            chain=chain,
            losses=tuple(losses),
            total=total,
            spread=self.spread,
            steps=steps,
            hub_instead=tuple(hub_instead),
        )

    def _begun(self) -> _State | None:
        setting = SpreadSetting(recipe=self.training.recipe, data=self.data, spread=self.spread)
        params: dict[str, Json] = {"what": "begin", "setting": to_mapping(setting)}
        begun = self._want("outer_step", params, {}, "begin the soup")
        if begun is None:
            return None
        banks = tuple(begun.blobs[f"bank-{part:03d}"] for part in range(self.spread.parts))
        return _State(setting=begun.blobs["setting"], common=begun.blobs["common"], banks=banks)

    def _exact_round(self, number: int, state: _State) -> tuple[_State | None, float, str]:
        """One step: every part's gradients, then what each of them owns, and what all share."""
        parts = self._results(_part_tasks("gradients", number, state, self.data))
        gradients = tuple(result.blobs["gradients"] for result in parts)
        stepped = self._results(_outer_tasks(number, state, gradients)) if gradients else []
        if not stepped:
            return None, 0.0, ""
        *banks, common = stepped
        following = replace(
            state,
            common=common.blobs["common"],
            banks=tuple(result.blobs["bank"] for result in banks),
            optimizers=tuple(result.blobs["optimizer"] for result in stepped),
        )
        return following, _mean_loss(parts), ""

    def _local_round(self, number: int, state: _State) -> tuple[_State | None, float, str]:
        """Local steps of every part, and the average of their changes; last, why the hub averaged after all."""
        parts = self._results(_part_tasks("local_steps", number, state, self.data))
        averaged, doubt = self._averaged(number, state, parts) if parts else (None, "")
        if averaged is None:
            return None, 0.0, doubt
        following = replace(
            state,
            common=averaged.blobs["common"],
            banks=tuple(result.blobs["bank"] for result in parts),
            optimizers=tuple(result.blobs["optimizer"] for result in parts),
            momentum=averaged.blobs.get("momentum", NO_DIGEST),
        )
        return following, _mean_loss(parts), doubt

    def _averaged(self, number: int, state: _State, parts: list[TaskResult]) -> tuple[TaskResult | None, str]:
        """The outer step by what the parts averaged among themselves, if that is believed, else by their changes."""
        changes, how, doubt = _numbered("weights-delta", tuple(result.blobs["delta"] for result in parts)), "", ""
        if self.spread.transport == "hivemind":
            found = exchanged(exchange_key(state.setting, number, state.common), parts)
            if isinstance(found, Exchanged):
                changes, how = {"weights-averaged": found.averaged}, ", by hivemind"
            else:
                doubt = found.reason
                how = f", by the hub: {doubt}"
        stepped = self._results(_average_task(number, state, tuple(changes.items()), how))
        return (stepped[0] if stepped else None), doubt

    def _put_together(self, state: _State, done: int, chain: dict[int, CommittedStep]) -> None:
        params: dict[str, Json] = {"what": "assemble"}
        made = self._want("outer_step", params, state.weights, f"put the soup together after round {done}")
        if made is None:
            return
        step = self.spread.steps(done - 1, self.training.total_steps).stop
        chain[step] = CommittedStep(
            step=step,
            checkpoint=digest_json([state.common, *state.banks, *state.optimizers, state.momentum]),
            weights=made.blobs["weights"],
            optimizer=NO_DIGEST,
            figures={},
        )

    def _results(self, tasks: tuple[_RoundTask, ...]) -> list[TaskResult]:
        """Those of all the tasks, or none while any is wanted."""
        results = self.wishes.results
        found = [
            results.task(task.id)
            if results.is_settled(task.id)
            else self._want(task.kind, dict(task.params), dict(task.inputs), task.label)
            for task in tasks
        ]
        done = [result for result in found if result is not None]
        return done if len(done) == len(found) else []

    def _want(
        self, kind: TaskKind, params: Mapping[str, Json], inputs: Mapping[str, Digest], label: str
    ) -> TaskResult | None:
        memory = self.training.memory_bytes
        return self.wishes.task(kind, params, inputs, label=label, rank=FIRST_RANK, memory_bytes=memory)


@dataclass(frozen=True, kw_only=True)
class _RoundTask:
    id: TaskId
    kind: TaskKind
    params: Mapping[str, Json]
    inputs: Mapping[str, Digest]
    label: str

    @staticmethod
    def of(kind: TaskKind, params: Mapping[str, Json], inputs: Mapping[str, Digest], label: str) -> _RoundTask:
        return _RoundTask(id=task_id(kind, params, inputs), kind=kind, params=params, inputs=inputs, label=label)


# The tasks of a round follow from the state it starts from. They are remembered, for each evaluation of the plan walks
# through all rounds that are done: that costs a look-up each.


@lru_cache(maxsize=MAX_REMEMBERED)
def _part_tasks(what: str, number: int, state: _State, data: Mixtures) -> tuple[_RoundTask, ...]:
    inputs = {"setting": state.setting, "tokens_manifest": data.tokens, "labels_manifest": data.labels, **state.weights}
    count = len(state.banks)
    return tuple(
        _RoundTask.of(
            "train",
            {"what": what, "part": part, "round": number},
            inputs | (state.optimizer(part) if what == "local_steps" else {}),
            f"round {number + 1}: part {part + 1} of {count}",
        )
        for part in range(count)
    )


@lru_cache(maxsize=MAX_REMEMBERED)
def _outer_tasks(number: int, state: _State, gradients: tuple[Digest, ...]) -> tuple[_RoundTask, ...]:
    """One for the experts of each part, and last the one for what is shared."""
    inputs = {"setting": state.setting, **state.weights, **_numbered("weights-gradients", gradients)}
    count = len(state.banks)
    banks = tuple(
        _RoundTask.of(
            "outer_step",
            {"what": "bank", "part": part, "round": number},
            inputs | state.optimizer(part),
            f"round {number + 1}: experts of part {part + 1}",
        )
        for part in range(count)
    )
    label = f"round {number + 1}: shared model and coefficients"
    params: dict[str, Json] = {"what": "common", "round": number}
    return *banks, _RoundTask.of("outer_step", params, inputs | state.optimizer(count), label)


@lru_cache(maxsize=MAX_REMEMBERED)
def _average_task(number: int, state: _State, changes: tuple[tuple[str, Digest], ...], how: str) -> tuple[_RoundTask]:
    inputs = {"setting": state.setting, "weights-common": state.common, **dict(changes)}
    inputs |= {"weights-momentum": state.momentum} if state.momentum != NO_DIGEST else {}
    params: dict[str, Json] = {"what": "average", "round": number}
    return (_RoundTask.of("outer_step", params, inputs, f"round {number + 1}: average of the parts{how}"),)


def _probed_rounds(total: int) -> set[int]:
    """After how many rounds a checkpoint is put together."""
    return {-(-total * quarter // NUM_PROBES) for quarter in range(1, NUM_PROBES + 1)}


def _numbered(prefix: str, digests: tuple[Digest, ...]) -> dict[str, Digest]:
    return {f"{prefix}-{index:03d}": digest for index, digest in enumerate(digests)}


def _mean_loss(parts: list[TaskResult]) -> float:
    losses = [loss for result in parts if isinstance(loss := result.figures.get("loss"), int | float)]
    return sum(losses) / max(1, len(losses))
