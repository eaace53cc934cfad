"""How long a specialist and its generalist may train in a given time; pure arithmetic, as `potluck.sizing` does it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from potluck.lm.flops import forward_flops, train_flops
from potluck.searches import search_for
from potluck.sizing import (
    FIXED_SECONDS,
    HELD_OUT_SHARE,
    SAFETY,
    UNKNOWN_CORPUS,
    Machine,
    Rung,
    ladder,
    makespan,
)
from potluck.specs.crisp import CrispSpec, FinetuneSpec, TargetWeight
from potluck.specs.partition import PartitionSpec
from potluck.specs.sections import ModelShape, TextSpec
from potluck.specs.single import TrainingSpec

BATCH_SIZE = 16
MAX_EPOCHS = 0.5
"""Of the corpus: the specialist reads a part of it and comes back to that the sooner."""
PREPARING_ROWS_PER_SECOND = 500.0
"""Tokenised, embedded by LSI, clustered and described, on one core."""
SENTENCE_ROWS_PER_SECOND = 25.0
"""Embedded by a small sentence encoder."""
BOTH = 2


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a person asked for beside the time."""

    partition: PartitionSpec
    weights: tuple[TargetWeight, ...] = ()
    switch_fraction: float = 0.0
    finetune_steps: int = 0
    preset: str = ""
    """Empty: the largest that gets enough text."""
    has_encoder: bool = False
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Cost:
    tokens: int
    """Of each of the two models."""
    flops: float
    """Of both, fine-tuning included."""
    epochs: float
    """Times the generalist reads the corpus."""


@dataclass(frozen=True, kw_only=True)
class Sized:
    spec: CrispSpec
    """Its texts not known yet."""
    seconds: float
    """Predicted, at the safe rate."""
    limited_by: str
    """time | text | floor"""


def spec_for(wish: Wish, *, steps: int) -> CrispSpec:
    """The spec of a specialist that trains so many steps; the preset by its tokens, unless the wish names one."""
    tokens = steps * BATCH_SIZE * TextSpec().sequence_length
    rung = next((rung for rung in reversed(ladder()) if rung.tokens_per_expert <= tokens), ladder()[0])
    return _spec(wish, rung, steps)


def cost_of(spec: CrispSpec, *, train_tokens: int) -> Cost:
    how, length, model = spec.training, spec.text.sequence_length, spec.full_model()
    rows = how.steps * how.batch_size
    tuned = BOTH * spec.finetune.steps * spec.finetune.batch_size
    return Cost(
        tokens=rows * length,
        flops=((BOTH - spec.switch_fraction) * rows + tuned) * train_flops(model, length),
        epochs=rows * length / max(1, train_tokens),
    )


def predict_seconds(spec: CrispSpec, machine: Machine, *, train_tokens: int, has_encoder: bool) -> float:
    """Wall-clock seconds of a run whose nodes share this machine's cores, at the rates given."""
    length, model, flops = spec.text.sequence_length, spec.full_model(), machine.rates.expert_flops_per_second
    workers = min(machine.nodes, machine.cores)
    rows = train_tokens / length
    preparing = rows / PREPARING_ROWS_PER_SECOND
    embedding = rows / SENTENCE_ROWS_PER_SECOND / workers if has_encoder else 0.0
    whole = spec.training.steps * spec.training.batch_size * train_flops(model, length) / flops
    tuned = spec.finetune.steps * spec.finetune.batch_size * train_flops(model, length) / flops
    held_out = rows * HELD_OUT_SHARE * forward_flops(model, length) / flops
    training = makespan([whole, whole * (1 - spec.switch_fraction)], workers=machine.nodes, cores=machine.cores)
    tail = makespan([tuned + held_out] * BOTH, workers=machine.nodes, cores=machine.cores)
    return FIXED_SECONDS + preparing + embedding + training + tail


def choose(minutes: float, machine: Machine, wish: Wish, *, train_tokens: int) -> Sized:
    """The highest rung of the ladder whose two models fit the time and the text; the lowest if none does."""
    safe = replace(machine, rates=machine.rates.scaled(SAFETY))
    best: Sized | None = None
    for rung in ladder():
        spec = _spec(wish, rung, max(1, rung.tokens_per_expert // (BATCH_SIZE * TextSpec().sequence_length)))
        seconds = predict_seconds(spec, safe, train_tokens=train_tokens, has_encoder=wish.has_encoder)
        epochs = cost_of(spec, train_tokens=train_tokens).epochs
        if seconds > 60 * minutes or epochs > MAX_EPOCHS:
            limited_by = "time" if seconds > 60 * minutes else "text"
            return (
                replace(best, limited_by=limited_by) if best else Sized(spec=spec, seconds=seconds, limited_by="floor")
            )
        best = Sized(spec=spec, seconds=seconds, limited_by="time")
    assert best is not None
    return best


def _spec(wish: Wish, rung: Rung, steps: int) -> CrispSpec:
    return CrispSpec(
        method="crisp",
        corpus=UNKNOWN_CORPUS,
        target=UNKNOWN_CORPUS,
        target_weights=wish.weights,
        seed=wish.seed,
        switch_fraction=wish.switch_fraction,
        model=ModelShape(preset=wish.preset or rung.preset).resolved("model"),
        training=TrainingSpec(
            steps=steps, batch_size=BATCH_SIZE, learning_rate=search_for(rung.index).dense_learning_rate
        ),
        partition=wish.partition,
        finetune=FinetuneSpec(steps=wish.finetune_steps),
    )
