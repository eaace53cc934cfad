"""One model trained on a mixture that can change on the way: set from outside, or proposed and put to the gate.

The training is a chain of lineages. Its mixture changes between segments; a proposal at step s ends the
lineage there and starts two forks from the checkpoint at s, one by the running mixture, one by the
proposal. Both train the gate's steps, both are measured on held-out text, and the one that is kept goes
on as the training; the other ends. Every step is in some lineage's ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from coordinator.core.values import LineageWanted, Steering, SteeringEntry, TaskResult
from coordinator.plans.base import Wishes
from coordinator.plans.held_out import Examiner
from coordinator.plans.partition import Labelled
from coordinator.plans.seeds import derive
from coordinator.plans.trainings import Training
from potluck.ids import Digest, Json, canonical_json
from potluck.recipe import Clustered, Origin, Segment
from potluck.specs.partition import MixtureSpec

AHEAD = 2
"""Segments given out beyond the last that is done: a node always has the next one."""
CURRENT, PROPOSAL = "current", "proposal"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What the rows of a step follow from."""

    mixture: Digest
    version: int
    """0 is the natural mixture, n the n-th change."""
    since: int
    """Step of the whole training at which it took effect."""


@dataclass(kw_only=True)
class Track:
    """One lineage of the chain."""

    training: Training
    first: int
    """Step of the whole training at which it begins."""
    segments: list[Segment] = field(default_factory=list)

    @property
    def known(self) -> int:
        """Step of the whole training up to which its rows are known."""
        return self.first + (self.segments[-1].end_step if self.segments else 0)

    def wanted(self, *, ended: bool) -> LineageWanted:
        wanted = self.training.wanted(tuple(self.segments))
        return replace(wanted, total_steps=wanted.known_steps) if ended else wanted


Start = Callable[[Origin | None, str, str], Training]
"""From an origin, a rule's name and a label for people to a lineage of the rest of the training."""
Judge = Callable[[SteeringEntry, Training, Digest, Digest], TaskResult | None]
"""From a proposal, its fork, and the weights of proposal and current to the gate's figures, once there."""


@dataclass(frozen=True, kw_only=True)
class Course:
    """How far the training has come."""

    tracks: tuple[Track, ...]
    """The chain that is kept, in order; the last one goes on."""
    steering: Steering
    total_steps: int

    @property
    def last(self) -> Training:
        return self.tracks[-1].training

    def curve(self, wishes: Wishes) -> list[Json]:
        """[step of the whole training, mean loss since the commit before], along the chain."""
        return [
            point for track in self.tracks for point in wishes.loss_curve(track.training.recipe.id, first=track.first)
        ]


class Helm:
    """Walks through the changes of a run and wants what follows from them."""

    def __init__(
        self,
        *,
        examiner: Examiner,
        labelled: Labelled,
        how: MixtureSpec,
        start: Start,
        judge: Judge,
        batch_size: int,
        total_steps: int,
    ) -> None:
        self._examiner = examiner
        self._wishes = examiner.wishes
        self._labelled = labelled
        self._how = how
        self._start = start
        self._judge = judge
        self._batch_size = batch_size
        self._total = total_steps
        self._slice = max(1, -(-total_steps // how.segments))
        self._gate = min(how.gate_segments * self._slice, total_steps)
        self._versions: list[Json] = []
        self._proposals: list[Json] = []

    def follow(self, entries: tuple[SteeringEntry, ...]) -> Course:
        """Wants the lineages that the changes so far make, and says where a new one would hold."""
        rule = Rule(mixture=self._labelled.natural, version=0, since=0)
        self._note_version(rule, "natural", "the corpus as it is", 0)
        tracks = [Track(training=self._start(None, "trunk", ""), first=0)]
        for entry in entries:
            self._extend(tracks[-1], entry.step, rule)
            if entry.kind == "set":
                rule = Rule(mixture=entry.mixture, version=entry.number, since=entry.step)
                self._note_version(rule, entry.origin, entry.reason, entry.unix_ms)
                continue
            passed = self._pass_gate(tracks[-1], entry, rule)
            if passed is None:
                return self._course(tracks, rule, gate_open=True)
            fork, rule = passed
            tracks.append(fork)
        self._extend(tracks[-1], self._ahead_of(tracks[-1]), rule)
        self._wishes.lineage(tracks[-1].wanted(ended=False))
        return self._course(tracks, rule, gate_open=False)

    def _pass_gate(self, trunk: Track, entry: SteeringEntry, rule: Rule) -> tuple[Track, Rule] | None:
        """The fork that is kept and its mixture; None while the gate has not decided."""
        self._wishes.lineage(trunk.wanted(ended=True))
        told: dict[str, Json] = {
            "number": entry.number,
            "at_step": entry.step,
            "gate_steps": entry.gate_steps,
            "state": "training",
            "mixture": entry.mixture,
            "origin": entry.origin,
            "reason": entry.reason,
            "unix_ms": entry.unix_ms,
            **dict.fromkeys(("difference", "low", "high", "smallest_effect"), None),
            "gate_flops": entry.gate_steps * trunk.training.flops_per_step,
        }
        self._proposals.append(told)
        commit = self._wishes.results.commits(trunk.training.recipe.id).get(entry.step - trunk.first)
        if commit is None:
            return None
        origin = Origin(weights=commit.weights, optimizer=commit.optimizer, step=entry.step)
        proposed = Rule(mixture=entry.mixture, version=entry.number, since=entry.step)
        forks = {
            CURRENT: self._fork(origin, entry, CURRENT, rule),
            PROPOSAL: self._fork(origin, entry, PROPOSAL, proposed),
        }
        weights = {
            side: self._wishes.weights(fork.training.recipe.id, entry.gate_steps) for side, fork in forks.items()
        }
        figures = self._verdict(entry, forks, weights, told)
        if figures is None:
            for fork in forks.values():
                self._wishes.lineage(fork.wanted(ended=True))
            return None
        adopted = figures["verdict"] == "adopted"
        told |= {name: figures[name] for name in ("difference", "low", "high", "smallest_effect")}
        told["state"] = "adopted" if adopted else "refused"
        self._wishes.lineage(forks[CURRENT if adopted else PROPOSAL].wanted(ended=True))
        if not adopted:
            return forks[CURRENT], rule
        self._note_version(proposed, entry.origin, entry.reason, entry.unix_ms)
        return forks[PROPOSAL], proposed

    def _fork(self, origin: Origin, entry: SteeringEntry, side: str, rule: Rule) -> Track:
        name = f"fork-{entry.number}-{side}-{entry.mixture}"
        fork = Track(training=self._start(origin, name, f" ({side} of change {entry.number})"), first=entry.step)
        self._extend(fork, entry.step + entry.gate_steps, rule)
        return fork

    def _verdict(
        self,
        entry: SteeringEntry,
        forks: Mapping[str, Track],
        weights: Mapping[str, Digest | None],
        told: dict[str, Json],
    ) -> Mapping[str, Json] | None:
        proposal, current = weights[PROPOSAL], weights[CURRENT]
        if proposal is None or current is None:
            return None
        told["state"] = "evaluating"
        judged = self._judge(entry, forks[PROPOSAL].training, proposal, current)
        return None if judged is None else judged.figures

    def _extend(self, track: Track, until: int, rule: Rule) -> None:
        """Gives rows to the steps up to `until`, segment by segment."""
        at = track.known
        while at < min(until, self._total):
            end = min((at // self._slice + 1) * self._slice, until, self._total)
            data = Clustered(
                tokens=self._examiner.text.tokens,
                labels=self._labelled.labels,
                mixture=rule.mixture,
                key=derive(self._examiner.spec.seed, "mixture", rule.version),
                start=(at - rule.since) * self._batch_size,
                mode=self._how.mode,
            )
            track.segments.append(
                Segment(
                    index=len(track.segments),
                    start_step=at - track.first,
                    end_step=end - track.first,
                    data=data,
                    mixture_version=rule.version,
                )
            )
            at = end

    def _ahead_of(self, track: Track) -> int:
        head = track.first + self._wishes.head_step(track.training.recipe.id)
        return max((head // self._slice + AHEAD) * self._slice, track.known)

    def _note_version(self, rule: Rule, origin: str, reason: str, unix_ms: int) -> None:
        self._versions.append(
            {
                "version": rule.version,
                "from_step": rule.since,
                "mixture": rule.mixture,
                "origin": origin,
                "reason": reason,
                "unix_ms": unix_ms,
            }
        )

    def _course(self, tracks: list[Track], rule: Rule, *, gate_open: bool) -> Course:
        told: dict[str, Json] = {
            "labels": self._labelled.labels,
            "natural": self._labelled.natural,
            "current": rule.mixture,
            "versions": self._versions,
            "proposals": self._proposals,
        }
        steering = Steering(
            to_step=min(tracks[-1].known, self._total),
            total_steps=self._total,
            gate_steps=self._gate,
            gate_open=gate_open,
            json=canonical_json(told),
        )
        return Course(tracks=tuple(tracks), steering=steering, total_steps=self._total)
