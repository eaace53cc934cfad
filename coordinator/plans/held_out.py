"""What is asked of a model on held-out text: NLL once it is trained; on the way, probes that decide what is served."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from coordinator.core.values import CommittedStep, Publication, TaskResult
from coordinator.plans.base import Wishes
from coordinator.plans.seeds import derive
from coordinator.plans.text import Text
from coordinator.plans.trainings import Training
from potluck.config import to_mapping
from potluck.ids import Digest, Json, canonical_json
from potluck.lm.config import ModelConfig
from potluck.lm.memory import predict_inference_bytes
from potluck.specs.sections import CommonSpec

PROBE_RANK = 1
EVAL_RANK = 2
PROBE_TOLERANCE = 0.05
"""Nats per token a later publication may be worse than the one before."""
NUM_PROBES = 4
"""At the first commit at or beyond each quarter."""
MAX_NAMED = 4
"""Slots whose last probe failed that a stage names."""


def bootstrap_params(spec: CommonSpec, purpose: str) -> dict[str, Json]:
    """What a task needs to put an interval around a difference; each purpose draws anew."""
    evaluation = spec.evaluation
    return {
        "bootstrap_samples": evaluation.bootstrap_samples,
        "confidence": evaluation.confidence,
        "seed": derive(spec.seed, purpose),
    }


@dataclass(frozen=True, kw_only=True)
class Probed:
    publication: Publication | None
    """The last checkpoint that passed."""
    is_complete: bool
    """Every probe up to the last step has been taken."""
    refusal: str = ""
    """Where the last probe failed: the slot, the probe's figures, and what is served instead."""


@dataclass(frozen=True, kw_only=True)
class Examiner:
    """Puts a run's models of full rows to held-out text."""

    spec: CommonSpec
    text: Text
    wishes: Wishes

    def final_weights(self, training: Training) -> Digest | None:
        return self.wishes.weights(training.recipe.id, training.total_steps)

    def made(self, trainings: Mapping[str, Training]) -> dict[str, Json]:
        """`made_models` of fully trained models, by their names."""
        weights = {name: self.final_weights(training) for name, training in trainings.items()}
        models = {name: (digest, trainings[name].recipe.model) for name, digest in weights.items() if digest}
        return made_models(self.text.tokens, models)

    def nll(self, training: Training, split: str) -> TaskResult | None:
        """NLL of every held-out row under a fully trained model, once it is."""
        weights = self.final_weights(training)
        if weights is None:
            return None
        return self.nll_of(training, weights, split, label=f"{split} NLL of {training.label}")

    def nll_of(
        self, training: Training, weights: Digest, split: str, *, label: str, tokens: Digest | None = None
    ) -> TaskResult | None:
        """NLL of every row of a split under one checkpoint.

        Args:
            tokens: the manifest of other text than the run's own, tokenised alike.
        """
        model, rows = training.recipe.model, tokens or self.text.tokens
        return want_nll(self.spec, self.wishes, model, weights, rows, split, label=label)

    def probes(
        self,
        training: Training,
        slot: str,
        *,
        tokens: Digest | None = None,
        model_of: Callable[[CommittedStep], Digest | None] | None = None,
    ) -> Probed:
        """A checkpoint is published if it is finite and below ln V at first, and hardly worse than before later.

        Args:
            tokens: the manifest of other text than the run's own, where the model is for that.
            model_of: the weights that are probed and published, where they are made of the commit's; None while they
                are not there.
        """
        commits = self.wishes.results.commits(training.recipe.id)
        publication: Publication | None = None
        before: float | None = None
        refusal = ""
        is_complete = True
        for step in _probe_steps(training.total_steps, tuple(commits)):
            if step is None:
                is_complete = False
                continue
            weights = commits[step].weights if model_of is None else model_of(commits[step])
            if weights is None:
                is_complete = False
                continue
            probe = self._probe(training, weights, tokens or self.text.tokens, f"probe {training.label} at step {step}")
            is_complete = is_complete and probe is not None
            if probe is None or not is_complete:  # probes count in order, whichever result comes first
                continue
            nll = probe.figures.get("mean_nll")
            bound = _number(probe.figures.get("log_vocab")) if before is None else before + PROBE_TOLERANCE
            if probe.figures.get("finite") is True and isinstance(nll, int | float) and nll < bound:
                before, refusal = float(nll), ""
                publication = Publication(
                    slot=slot,
                    lineage=training.recipe.id,
                    step=step,
                    weights=weights,
                    tokenizer=self.text.tokenizer,
                    model_json=canonical_json(to_mapping(training.recipe.model)),
                )
            elif publication is None:
                refusal = f"{slot} (probe {_shown(nll)}, ln V {bound:.2f})"
            else:
                served = f"serves step {publication.step}"
                refusal = f"{slot} at step {step} (probe {_shown(nll)}, at most {bound:.2f}; {served})"
        return Probed(publication=publication, is_complete=is_complete, refusal=refusal)

    def _probe(self, training: Training, weights: Digest, tokens: Digest, label: str) -> TaskResult | None:
        rows = self.spec.evaluation.probe_rows
        return self.wishes.task(
            "eval",
            {
                "what": "probe",
                "rows": rows,
                "key": derive(self.spec.seed, "probe"),
                **model_params(self.spec, training.recipe.model),
            },
            {"weights": weights, "tokens_manifest": tokens},
            label=label,
            rank=PROBE_RANK,
            memory_bytes=inference_bytes(self.spec, training.recipe.model),
        )


def want_nll(
    spec: CommonSpec,
    wishes: Wishes,
    model: ModelConfig,
    weights: Digest,
    tokens: Digest,
    split: str,
    *,
    label: str,
    rank: int = EVAL_RANK,
) -> TaskResult | None:
    """NLL of every row of a split. Runs that agree in text, evaluation and dtype ask for one and the same task."""
    return wishes.task(
        "eval",
        {"what": "nll", "split": split, "prefix_length": spec.text.prefix_length, **model_params(spec, model)},
        {"weights": weights, "tokens_manifest": tokens},
        label=label,
        rank=rank,
        memory_bytes=inference_bytes(spec, model),
    )


def made_models(tokens: Digest, models: Mapping[str, tuple[Digest, ModelConfig]]) -> dict[str, Json]:
    """What a finished run says it made, so that a contest can name it: models of full rows, by their names."""
    listed: dict[str, Json] = {
        name: {"weights": weights, "model": to_mapping(model)} for name, (weights, model) in models.items()
    }
    return {"tokens": tokens, "models": listed}


def model_params(spec: CommonSpec, model: ModelConfig) -> dict[str, Json]:
    """What a task needs to run a model."""
    return {"batch_size": spec.evaluation.batch_size, "dtype": spec.profile.dtype, "model": to_mapping(model)}


def inference_bytes(spec: CommonSpec, model: ModelConfig) -> int:
    """Memory of a task that reads full rows with a model."""
    return predict_inference_bytes(model, batch_size=spec.evaluation.batch_size, sequence=spec.text.sequence_length)


def _shown(nll: Json) -> str:
    return f"{nll:.2f}" if isinstance(nll, int | float) else "not finite"


def _probe_steps(total: int, steps: tuple[int, ...]) -> list[int | None]:
    """The first commit at or beyond each quarter, each once; None where there is none yet."""
    found: dict[int | None, None] = {}
    for quarter in range(1, NUM_PROBES + 1):
        threshold = -(-total * quarter // NUM_PROBES)
        found[next((step for step in steps if step >= threshold), None)] = None
    return list(found)


def _number(value: Json) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def last_stage(probed: Sequence[Probed]) -> str:
    """The stage of a finished run, with what its probes kept from being served."""
    return with_refusals("done", probed)


def with_refusals(stage: str, probed: Sequence[Probed]) -> str:
    """A stage, and which slots' last checkpoint was not published, and why."""
    refused = [probe.refusal for probe in probed if probe.refusal]
    if not refused:
        return stage
    more = f" and {len(refused) - MAX_NAMED} more" if len(refused) > MAX_NAMED else ""
    return f"{stage}; not published: {', '.join(refused[:MAX_NAMED])}{more}"
