"""The models of a CRISP run: generalist, specialist, and both fine-tuned on the target's own text."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property

from coordinator.core.values import TaskResult
from coordinator.plans.held_out import Examiner, made_models
from coordinator.plans.one_model import model_training
from coordinator.plans.partition import Labelled
from coordinator.plans.seeds import derive
from coordinator.plans.text import Text
from coordinator.plans.trainings import CONTROL_RANK, Training
from potluck.ids import NO_DIGEST, Digest, Json
from potluck.lm.config import ModelConfig
from potluck.recipe import Clustered, Origin, Schedule, Segment, Stream
from potluck.specs.crisp import CrispSpec

SPECIALIST, GENERALIST = "specialist", "generalist"


def tuned(name: str) -> str:
    return f"{name} fine-tuned"


@dataclass(frozen=True, kw_only=True)
class Models:
    """Wants the lineages, each once, and what is asked of them."""

    spec: CrispSpec
    examiner: Examiner
    target: Text
    labelled: Labelled
    mixture: Digest

    @cached_property
    def generalist(self) -> Training:
        """Evenly over the corpus; at the switch, if there is one, it passes a checkpoint on."""
        rule = self._rule("evenly", self.labelled.natural)
        training = model_training(self.spec, rule, label=GENERALIST)
        cuts = (0, self.switch_step, training.total_steps) if self.switch_step else (0, training.total_steps)
        segments = [
            self._segment(index, begin, end, self.labelled.natural)
            for index, (begin, end) in enumerate(itertools.pairwise(cuts))
        ]
        self.examiner.wishes.lineage(training.wanted(tuple(segments)))
        return training

    @cached_property
    def specialist(self) -> Training | None:
        """By the target's histogram, from the start or from the switch; None until the checkpoint is there."""
        origin = None
        if self.switch_step:
            commit = self.examiner.wishes.results.commits(self.generalist.recipe.id).get(self.switch_step)
            if commit is None:
                return None
            origin = Origin(weights=commit.weights, optimizer=commit.optimizer, step=self.switch_step)
        training = model_training(self.spec, self._rule("target", self.mixture), label=SPECIALIST, origin=origin)
        segment = self._segment(0, 0, training.total_steps, self.mixture, version=1)
        self.examiner.wishes.lineage(training.wanted((segment,)))
        return training

    @property
    def switch_step(self) -> int:
        return round(self.spec.switch_fraction * self.spec.training.steps)

    def all_trained(self) -> bool:
        pair = (self.specialist, self.generalist)
        return all(model is not None and self.examiner.final_weights(model) is not None for model in pair)

    def scored(self, tokens: Digest, whose: str, *, with_tuned: bool = False) -> dict[str, TaskResult | None]:
        """NLL on a corpus' test text by model; None where it is not there yet."""
        found: dict[str, TaskResult | None] = {}
        for name, training in ((SPECIALIST, self.specialist), (GENERALIST, self.generalist)):
            weights = self.examiner.final_weights(training) if training is not None else None
            found[name] = self._score(training, weights, tokens, whose, name)
            if with_tuned and self.spec.finetune.steps:
                best = self._tuned(training, weights, tuned(name))
                found[tuned(name)] = self._score(training, best, tokens, whose, tuned(name))
        return found

    def made(self) -> dict[str, Json]:
        """Both models, and of each the best checkpoint of its fine-tuning; their rows are the corpus'."""
        found: dict[str, tuple[Digest, ModelConfig]] = {}
        for name, training in ((SPECIALIST, self.specialist), (GENERALIST, self.generalist)):
            weights = self.examiner.final_weights(training) if training is not None else None
            best = self._tuned(training, weights, tuned(name)) if self.spec.finetune.steps else None
            found |= {
                key: (digest, self.spec.full_model())
                for key, digest in ((name, weights), (tuned(name), best))
                if digest is not None
            }
        return made_models(self.examiner.text.tokens, found)

    def _score(
        self, training: Training | None, weights: Digest | None, tokens: Digest, whose: str, name: str
    ) -> TaskResult | None:
        if training is None or weights is None:
            return None
        label = f"NLL of the {name} on {whose} test text"
        return self.examiner.nll_of(training, weights, "test", label=label, tokens=tokens)

    def _tuned(self, parent: Training | None, weights: Digest | None, name: str) -> Digest | None:
        """The checkpoint of fine-tuning with the least NLL on the target's valid text; the parent's own counts too."""
        if parent is None or weights is None:
            return None
        how = self.spec.finetune
        schedule = Schedule(kind="constant", learning_rate=how.learning_rate, warmup_steps=0, total_steps=how.steps)
        key = derive(self.spec.seed, "finetune")
        rule: dict[str, Json] = {"rule": "finetune", "tokens": self.target.tokens, "key": key, "from": weights}
        training = model_training(
            self.spec,
            rule,
            label=name,
            rank=CONTROL_RANK,
            origin=Origin(weights=weights, optimizer=NO_DIGEST, step=0),
            schedule=schedule,
            batch_size=how.batch_size,
        )
        ends = sorted({-(-how.steps * check // how.checks) for check in range(1, how.checks + 1)})
        starts = [0, *ends[:-1]]
        segments = [
            Segment(
                index=index,
                start_step=start,
                end_step=end,
                data=Stream(tokens=self.target.tokens, key=key, start=start * how.batch_size),
            )
            for index, (start, end) in enumerate(zip(starts, ends, strict=True))
        ]
        self.examiner.wishes.lineage(training.wanted(tuple(segments)))
        return self._best(training, weights, ends, name)

    def _best(self, training: Training, weights: Digest, ends: list[int], name: str) -> Digest | None:
        if not self.target.valid_rows:
            return self.examiner.final_weights(training)  # nothing to choose by
        scores: list[tuple[float, Digest]] = []
        for step in (0, *ends):
            digest = weights if step == 0 else self.examiner.wishes.weights(training.recipe.id, step)
            if digest is None:
                return None
            label = f"valid NLL of the {name} after {step} steps"
            scored = self.examiner.nll_of(training, digest, "valid", label=label, tokens=self.target.tokens)
            nll = scored.figures.get("nll_all") if scored is not None else None
            if scored is None:
                return None
            if isinstance(nll, int | float):
                scores.append((float(nll), digest))
        return min(scores, key=lambda pair: pair[0])[1] if scores else weights

    def _rule(self, name: str, mixture: Digest) -> dict[str, Json]:
        return {
            "rule": name,
            "tokens": self.examiner.text.tokens,
            "labels": self.labelled.labels,
            "mixture": mixture,
            "mode": self.spec.mixture.mode,
            "key": derive(self.spec.seed, "mixture", 0),
            "switch": self.switch_step,
        }

    def _segment(self, index: int, begin: int, end: int, mixture: Digest, version: int = 0) -> Segment:
        batch = self.spec.training.batch_size
        data = Clustered(
            tokens=self.examiner.text.tokens,
            labels=self.labelled.labels,
            mixture=mixture,
            key=derive(self.spec.seed, "mixture", version),
            start=begin * batch,
            mode=self.spec.mixture.mode if version else "cluster",
        )
        return Segment(index=index, start_step=begin, end_step=end, data=data, mixture_version=version)
