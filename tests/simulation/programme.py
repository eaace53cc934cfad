"""What the worlds run: a small run of each method, and which of them a world has."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from potluck.lm.soup_spread import Spread
from potluck.specs.cluster import ClusterSpec
from potluck.specs.crisp import CrispSpec, FinetuneSpec
from potluck.specs.partition import MixtureSpec, PartitionSpec
from potluck.specs.run import RunSpec
from potluck.specs.sections import EvalSpec, ModelShape, TextSpec
from potluck.specs.single import SingleSpec, TrainingSpec
from potluck.specs.smalltalk import DenseSpec, ExpertSpec, RouterSpec, SmallTalkSpec
from potluck.specs.soup import BankSpec, SoupSpec
from tests.simulation.fake import CORPUS_DIGEST, TARGET_DIGEST

TINY = ModelShape(hidden=8, layers=1, heads=1, ffn=8)
TEXT = TextSpec(vocab_size=300, sequence_length=16, prefix_length=8)
FEW_SAMPLES, MORE_SAMPLES = 200, 300
METHODS: tuple[str, ...] = (
    *["smalltalk"] * 8,
    *["steered"] * 4,
    *["soup"] * 3,
    *["crisp"] * 3,
    "single",
    "cluster",
)
"""A world draws one of these: those with more states more often."""
MAX_PRIORITY = 2
NUM_VARIANTS = 4


@dataclass(frozen=True, kw_only=True)
class Programme:
    """The runs of a world, in the order in which people start them, and who changes mixtures."""

    specs: tuple[RunSpec, ...]
    priority: int = 0
    """Of the second run."""

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(method_of(spec) for spec in self.specs)


def programme_of(chance: random.Random) -> Programme:
    """One run; in half of the worlds a second one, which may share all of its lineages with the first."""
    first = spec_of(chance.choice(METHODS), chance.randrange(NUM_VARIANTS))
    if chance.random() >= 0.5:
        return Programme(specs=(first,))
    twin = chance.random() < 0.5
    second = twin_of(first) if twin else spec_of(chance.choice(METHODS), chance.randrange(NUM_VARIANTS))
    if second.id == first.id:
        second = twin_of(first)
    return Programme(specs=(first, second), priority=chance.randint(0, MAX_PRIORITY))


def twin_of(spec: RunSpec) -> RunSpec:
    """A run with the same lineages, unless it is steered, and most tasks; only its tables differ."""
    return replace(spec, evaluation=EvalSpec(bootstrap_samples=MORE_SAMPLES))


def spec_of(method: str, variant: int) -> RunSpec:
    match method:
        case "smalltalk":
            return smalltalk_spec(variant)
        case "single":
            return single_spec(variant)
        case "steered":
            return single_spec(variant, domains=PartitionSpec(by="source") if variant % 2 else _clusters(4))
        case "crisp":
            return crisp_spec(variant)
        case "soup":
            return soup_spec(variant)
        case _:
            assert method == "cluster", method
            return cluster_spec(variant)


def method_of(spec: RunSpec) -> str:
    """As `spec_of` has it: a single model that can be steered is another method."""
    return "steered" if is_steerable(spec) else spec.method


def is_steerable(spec: RunSpec) -> bool:
    return isinstance(spec, SingleSpec) and spec.partition.by != "none"


def smalltalk_spec(variant: int, *, expert_steps: int = 4) -> SmallTalkSpec:
    """A SmallTalk run of some thirty tasks and thirty commits. `variant` is even for 2 experts, odd for 3.

    `expert_steps`: of each chunk, and expert.
    """
    num = 2 + variant % 2
    return SmallTalkSpec(
        corpus=CORPUS_DIGEST,
        seed=variant,
        text=TEXT,
        routers=RouterSpec(model=TINY, rounds=2, chunk_sequences=4 * num, batch_size=1),
        experts=ExpertSpec(model=TINY, num=num, chunks=2, chunk_sequences=expert_steps * num, batch_size=1),
        dense=DenseSpec(batch_size=4),
        evaluation=EvalSpec(bootstrap_samples=FEW_SAMPLES),
    )


def single_spec(variant: int, *, domains: PartitionSpec | None = None) -> SingleSpec:
    """One model; with `domains` its mixture can be changed between its twelve segments."""
    return SingleSpec(
        method="single",
        corpus=CORPUS_DIGEST,
        seed=variant,
        text=TEXT,
        model=TINY,
        training=TrainingSpec(steps=48, batch_size=2),
        partition=domains or PartitionSpec(),
        mixture=MixtureSpec(segments=12, gate_segments=1 + variant // 2),
        evaluation=EvalSpec(bootstrap_samples=FEW_SAMPLES),
    )


def crisp_spec(variant: int) -> CrispSpec:
    """Specialist and generalist, side by side or one from the other's middle, with fine-tuning or without."""
    return CrispSpec(
        method="crisp",
        corpus=CORPUS_DIGEST,
        target=TARGET_DIGEST,
        seed=variant,
        text=TEXT,
        model=TINY,
        training=TrainingSpec(steps=32, batch_size=2),
        partition=_clusters(4),
        switch_fraction=0.5 if variant % 2 else 0.0,
        finetune=FinetuneSpec(steps=4 if variant >= 2 else 0, checks=2),
        evaluation=EvalSpec(bootstrap_samples=FEW_SAMPLES),
    )


def soup_spec(variant: int) -> SoupSpec:
    """A soup that is a lineage; or one of two parts: eight rounds of one step, or of two local ones."""
    local_steps = 2 if variant == 2 else 1
    spread = Spread(parts=2, local_steps=local_steps, outer_momentum=0.9 if local_steps > 1 else 0.0)
    return SoupSpec(
        method="soup",
        corpus=CORPUS_DIGEST,
        seed=variant,
        text=TEXT,
        model=TINY,
        training=TrainingSpec(steps=8 * local_steps, batch_size=2),
        partition=_clusters(2) if variant == 3 else PartitionSpec(by="source"),
        bank=BankSpec(experts=2, hidden=4, mixtures_per_step=2, support=2),
        spread=spread if variant else Spread(),
        evaluation=EvalSpec(bootstrap_samples=FEW_SAMPLES),
    )


def cluster_spec(variant: int) -> ClusterSpec:
    return ClusterSpec(
        method="cluster",
        corpus=CORPUS_DIGEST,
        seed=variant,
        text=TEXT,
        partition=_clusters(2 + variant),
        evaluation=EvalSpec(bootstrap_samples=FEW_SAMPLES),
    )


def _clusters(k: int) -> PartitionSpec:
    return PartitionSpec(by="clusters", k=k)
