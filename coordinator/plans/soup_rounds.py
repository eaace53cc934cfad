"""A soup that several nodes train together: rounds of tasks in place of a lineage.

The state after a round is named by the digests of its blobs, so a round is known by what it starts from, and is done
once. With one local step, the gradients of all parts make the next state, which is that of one node's step; with more,
each part trains on its own and the changes of shared model and coefficients are averaged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from coordinator.core.values import CommittedStep, SteeringEntry, TaskKind, TaskResult
from coordinator.plans.base import Results, Wishes
from coordinator.plans.held_out import NUM_PROBES
from coordinator.plans.trainings import FIRST_RANK, Training
from potluck.config import to_mapping
from potluck.ids import NO_DIGEST, Digest, Json, LineageId, TaskId, digest_json, task_id
from potluck.lm.soup_spread import Spread, SpreadSetting
from potluck.recipe import Mixtures

MAX_POINTS = 64
"""Of a loss curve."""
MAX_KNOWN = 1 << 16
"""Tasks whose ids are remembered: more than a run has."""


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
        setting = SpreadSetting(recipe=self.training.recipe, data=self.data, spread=self.spread)
        begun = self._task("outer_step", {"what": "begin"}, {}, "begin the soup", {"setting": to_mapping(setting)})
        if begun is not None:
            state: _State | None = _State(
                common=begun.blobs["common"],
                banks=tuple(begun.blobs[f"bank-{part:03d}"] for part in range(self.spread.parts)),
            )
            probed = _probed_rounds(total)
            following = self._exact_round if self.spread.local_steps == 1 else self._local_round
            for number in range(total):
                assert state is not None
                state, loss = following(begun.blobs["setting"], number, state)
                if state is None:
                    break
                losses.append(loss)
                if number + 1 in probed:
                    self._put_together(state, number, chain)
        return Walked(chain=chain, losses=tuple(losses), total=total, spread=self.spread, steps=steps)

    def _exact_round(self, setting: Digest, number: int, state: _State) -> tuple[_State | None, float]:
        """One step: every part's gradients, then what each of them owns, and what all share."""
        parts = self._parts("gradients", setting, number, state.weights | self._text)
        if parts is None:
            return None, 0.0
        inputs = {"setting": setting} | state.weights
        inputs |= _numbered("weights-gradients", [result.blobs["gradients"] for result in parts])
        stepped = [
            self._task(
                "outer_step",
                {"what": "bank", "part": part, "round": number},
                inputs | state.optimizer(part),
                f"round {number + 1}: experts of part {part + 1}",
            )
            for part in range(self.spread.parts)
        ]
        label = f"round {number + 1}: shared model and coefficients"
        common = self._task(
            "outer_step", {"what": "common", "round": number}, inputs | state.optimizer(self.spread.parts), label
        )
        banks = [result for result in stepped if result is not None]
        if common is None or len(banks) < len(stepped):
            return None, 0.0
        following = _State(
            common=common.blobs["common"],
            banks=tuple(result.blobs["bank"] for result in banks),
            optimizers=tuple(result.blobs["optimizer"] for result in [*banks, common]),
        )
        return following, _mean_loss(parts)

    def _local_round(self, setting: Digest, number: int, state: _State) -> tuple[_State | None, float]:
        """Local steps of every part, and the average of their changes."""
        parts = self._parts("local_steps", setting, number, state.weights | self._text, state)
        averaged = self._averaged(setting, number, state, parts) if parts is not None else None
        if parts is None or averaged is None:
            return None, 0.0
        following = _State(
            common=averaged.blobs["common"],
            banks=tuple(result.blobs["bank"] for result in parts),
            optimizers=tuple(result.blobs["optimizer"] for result in parts),
            momentum=averaged.blobs.get("momentum", NO_DIGEST),
        )
        return following, _mean_loss(parts)

    def _averaged(self, setting: Digest, number: int, state: _State, parts: list[TaskResult]) -> TaskResult | None:
        """The outer step over the hub: the seam for any other transport of S and phi."""
        inputs = {"setting": setting, "weights-common": state.common}
        inputs |= _numbered("weights-delta", [result.blobs["delta"] for result in parts])
        inputs |= {"weights-momentum": state.momentum} if state.momentum != NO_DIGEST else {}
        label = f"round {number + 1}: average of the parts"
        return self._task("outer_step", {"what": "average", "round": number}, inputs, label)

    def _parts(
        self, what: str, setting: Digest, number: int, inputs: Mapping[str, Digest], own: _State | None = None
    ) -> list[TaskResult] | None:
        """The `train` tasks of a round, once all are done.

        Args:
            own: whose optimizers the parts go on with, if they have any.
        """
        found = [
            self._task(
                "train",
                {"what": what, "part": part, "round": number},
                {"setting": setting, **inputs, **(own.optimizer(part) if own is not None else {})},
                f"round {number + 1}: part {part + 1} of {self.spread.parts}",
            )
            for part in range(self.spread.parts)
        ]
        done = [result for result in found if result is not None]
        return done if len(done) == len(found) else None

    def _put_together(self, state: _State, number: int, chain: dict[int, CommittedStep]) -> None:
        label = f"put the soup together after round {number + 1}"
        made = self._task("outer_step", {"what": "assemble"}, state.weights, label)
        if made is None:
            return
        step = self.spread.steps(number, self.training.total_steps).stop
        chain[step] = CommittedStep(
            step=step,
            checkpoint=digest_json([state.common, *state.banks, *state.optimizers, state.momentum]),
            weights=made.blobs["weights"],
            optimizer=NO_DIGEST,
            figures={},
        )

    @property
    def _text(self) -> dict[str, Digest]:
        return {"tokens_manifest": self.data.tokens, "labels_manifest": self.data.labels}

    def _task(
        self,
        kind: TaskKind,
        params: Mapping[str, str | int],
        inputs: Mapping[str, Digest],
        label: str,
        more: Mapping[str, Json] | None = None,
    ) -> TaskResult | None:
        if more is None:
            identifier = _known_id(kind, tuple(params.items()), tuple(inputs.items()))
            if self.wishes.results.is_settled(identifier):
                return self.wishes.results.task(identifier)
        return self.wishes.task(
            kind,
            {**params, **(more or {})},
            inputs,
            label=label,
            rank=FIRST_RANK,
            memory_bytes=self.training.memory_bytes,
        )


@lru_cache(maxsize=MAX_KNOWN)
def _known_id(kind: TaskKind, params: tuple[tuple[str, Json], ...], inputs: tuple[tuple[str, Digest], ...]) -> TaskId:
    """`task_id`, remembered: each evaluation walks through all rounds that are done."""
    return task_id(kind, dict(params), dict(inputs))


def _probed_rounds(total: int) -> set[int]:
    """After how many rounds a checkpoint is put together."""
    return {-(-total * quarter // NUM_PROBES) for quarter in range(1, NUM_PROBES + 1)}


def _numbered(prefix: str, digests: list[Digest] | tuple[Digest, ...]) -> dict[str, Digest]:
    return {f"{prefix}-{index:03d}": digest for index, digest in enumerate(digests)}


def _mean_loss(parts: list[TaskResult]) -> float:
    losses = [loss for result in parts if isinstance(loss := result.figures.get("loss"), int | float)]
    return sum(losses) / max(1, len(losses))
