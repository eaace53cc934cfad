"""How large a run fits into a time: pure arithmetic from measured rates to a spec, and the cost of a spec.

The ladder's rungs grow by sqrt(2) in tokens per expert. A rung's preset is the largest whose experts
get at least `TOKENS_PER_PARAMETER`: starved of text, experts lose to a dense twin whatever the
routing; limited by their size, they can win (2410.03529 trains there too).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from potluck.ids import Digest
from potluck.lm.config import PRESETS, ModelConfig
from potluck.lm.flops import forward_flops, train_flops
from potluck.lm.memory import checkpoint_bytes
from potluck.recipe import commit_interval
from potluck.searches import search_for
from potluck.specs.choices import ChoicesSpec
from potluck.specs.cluster import ClusterSpec
from potluck.specs.contest import ContestSpec
from potluck.specs.crisp import CrispSpec
from potluck.specs.instantiate import InstantiateSpec
from potluck.specs.run import RunSpec
from potluck.specs.sections import CommonSpec, EvalSpec, ModelShape, TextSpec
from potluck.specs.single import SingleSpec
from potluck.specs.smalltalk import ControlSpec, DenseSpec, ExpertSpec, RouterSpec, SearchSpec, SmallTalkSpec
from potluck.specs.soup import SoupSpec

TOKENS_PER_PARAMETER = 20.0
SAFETY = 0.75
"""Share of the measured rate that is counted on: evaluation, fetching and other programs take the rest."""
FIXED_SECONDS = 25.0
"""Process starts, ingest, BPE, tokenising, the last evaluation's start."""
SECONDS_PER_ROUND = 1.5
"""Leases, fetches and the assignment between a round's trainings."""
SECONDS_PER_CHUNK = 1.0
BASE_TOKENS = 65_536
"""Tokens per expert on the lowest rung."""
NUM_RUNGS = 29
CHUNK_GRAIN_ROWS = 64
"""An expert's rows of a chunk are a multiple of this: every batch size of a search divides it."""
SMALL_ROUTER_BELOW = "0.08M"
"""Experts smaller than this preset get the smaller router, or routing would cost a third of the run."""
EXPERT_PRESETS = (
    "0.04M",
    "0.05M",
    "0.08M",
    "0.11M",
    "0.16M",
    "0.35M",
    "0.9M",
    "2.5M",
    "6M",
    "14M",
    "30M",
    "60M",
    "100M",
)
HELD_OUT_SHARE = 0.05
"""Test text as a share of training text."""
EPOCH_MARGIN = 0.95
"""Share of the estimated tokens a run may use: the estimate is made before the tokenizer exists."""
UNKNOWN_CORPUS = Digest("0" * 64)


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What one thread does while every core is busy with the same."""

    expert_flops_per_second: float
    router_tokens_per_second: float
    """Targets of router training."""
    score_tokens_per_second: float
    """Tokens read while scoring prefixes."""

    def scaled(self, factor: float) -> Rates:
        return Rates(
            expert_flops_per_second=self.expert_flops_per_second * factor,
            router_tokens_per_second=self.router_tokens_per_second * factor,
            score_tokens_per_second=self.score_tokens_per_second * factor,
        )


@dataclass(frozen=True, kw_only=True)
class Machine:
    cores: int
    nodes: int
    rates: Rates


@dataclass(frozen=True, kw_only=True)
class Rung:
    index: int
    preset: str
    tokens_per_expert: int
    rounds: int
    round_sequences: int


@dataclass(frozen=True, kw_only=True)
class Commits:
    """How often a training of full rows hands in a checkpoint, and how large one is."""

    steps: int
    """Between commits. The ends of chunks come to these."""
    bytes: int
    """Weights and optimizer state."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a spec asks for. Tokens are targets; FLOPs by the accounting of `potluck.lm.flops`."""

    router_steps: int
    expert_steps: int
    dense_steps: int
    router_tokens: int
    expert_tokens: int
    """Of all experts."""
    dense_tokens: int
    router_flops: float
    scoring_flops: float
    expert_flops: float
    """Of all experts."""
    dense_flops: float
    random_split_flops: float
    expert_commits: Commits
    expert_memory_bytes: int
    """Beyond what a worker holds with no model."""

    @property
    def mixture_flops(self) -> float:
        return self.router_flops + self.scoring_flops + self.expert_flops


def ladder() -> list[Rung]:
    """All rungs, cheapest first."""
    rungs = []
    for index in range(NUM_RUNGS):
        tokens = int(BASE_TOKENS * math.sqrt(2) ** index)
        rounds = min(12, 2 + round(0.8 * index))
        sequences = 512 if index < 2 else 1024 if index < 4 else 2048
        rungs.append(
            Rung(
                index=index,
                preset=_preset_for(tokens),
                tokens_per_expert=tokens,
                rounds=rounds,
                round_sequences=sequences,
            )
        )
    return rungs


def spec_of(rung: Rung, *, seed: int = 0) -> SmallTalkSpec:
    """The spec of a rung, its corpus not known yet; batch and learning rates as the search nearest to it found them."""
    found = search_for(rung.index)
    experts = ExpertSpec(
        model=ModelShape(preset=rung.preset).resolved("experts.model"),
        batch_size=found.expert_batch,
        learning_rate=found.expert_learning_rate,
    )
    text = TextSpec()
    rows = rung.tokens_per_expert // text.sequence_length
    chunk = max(1, rows // experts.chunks // CHUNK_GRAIN_ROWS) * CHUNK_GRAIN_ROWS * experts.num
    small = EXPERT_PRESETS.index(rung.preset) < EXPERT_PRESETS.index(SMALL_ROUTER_BELOW)
    return SmallTalkSpec(
        corpus=UNKNOWN_CORPUS,
        seed=seed,
        text=text,
        routers=RouterSpec(
            model=ModelShape(preset="router-16" if small else "router-24").resolved("routers.model"),
            rounds=rung.rounds,
            chunk_sequences=rung.round_sequences,
            score_batch=64,
        ),
        experts=replace(experts, chunk_sequences=chunk),
        dense=DenseSpec(batch_size=found.dense_batch, learning_rate=found.dense_learning_rate),
        controls=ControlSpec(random_split="one"),
        search=SearchSpec(mode="recorded", table=found.table),
        evaluation=EvalSpec(),
    )


def cost_of(spec: SmallTalkSpec) -> Cost:
    """Steps, tokens, FLOPs and memory of every side of a run."""
    expert, router = spec.expert_model(), spec.router_model()
    length, prefix, num = spec.text.sequence_length, spec.text.prefix_length, spec.experts.num
    rounds = spec.routers.rounds if spec.has_routers else 0
    router_rows = rounds * spec.routers.chunk_sequences
    expert_rows = spec.experts.chunks * spec.experts.chunk_sequences
    scored_rows = (rounds - 1) * spec.routers.chunk_sequences + expert_rows if rounds else 0
    router_flops = router_rows * train_flops(router, prefix)
    scoring_flops = scored_rows * num * forward_flops(router, prefix)
    expert_flops = expert_rows * train_flops(expert, length)
    per_dense_step = spec.dense.batch_size * train_flops(expert, length)
    total = router_flops + scoring_flops + expert_flops
    dense_steps = max(1, int(total // per_dense_step)) if spec.dense.enabled else 0
    controls = {"none": 0.0, "one": 1.0 / num, "all": 1.0}[spec.controls.random_split]
    expert_steps = expert_rows // (num * spec.experts.batch_size)
    return Cost(
        router_steps=router_rows // (num * spec.routers.batch_size),
        expert_steps=expert_steps,
        dense_steps=dense_steps,
        router_tokens=router_rows * (prefix - 1),
        expert_tokens=expert_rows * length,
        dense_tokens=dense_steps * spec.dense.batch_size * length,
        router_flops=router_flops,
        scoring_flops=scoring_flops,
        expert_flops=expert_flops,
        dense_flops=dense_steps * per_dense_step,
        random_split_flops=controls * expert_flops,
        expert_commits=_commits(spec, expert, batch_size=spec.experts.batch_size, total_steps=expert_steps),
        expert_memory_bytes=max(
            spec.memory_for(expert, batch_size=batch, sequence=length)
            for batch in (spec.experts.batch_size, spec.dense.batch_size)
        ),
    )


def commits_of(spec: SingleSpec | CrispSpec | SoupSpec) -> Commits:
    """Of the model that the run trains on full rows; of a soup with its bank, or the rounds of one that is spread."""
    how = spec.training
    if isinstance(spec, SoupSpec) and spec.spread.parts > 1:
        return Commits(steps=spec.spread.local_steps, bytes=spec.round_bytes())
    if isinstance(spec, SoupSpec):
        cost = spec.cost()
        held = spec.full_model().num_parameters + cost.bank_parameters + cost.coefficient_parameters
        steps = commit_interval(
            num_parameters=held,
            batch_size=how.batch_size,
            targets_per_row=spec.text.sequence_length,
            total_steps=how.steps,
            bytes_per_token=spec.bytes_per_token,
        )
        return Commits(steps=steps, bytes=cost.checkpoint_bytes)
    return _commits(spec, spec.full_model(), batch_size=how.batch_size, total_steps=how.steps)


def training_bytes(spec: RunSpec) -> int:
    """Peak memory of training the largest model of a run, beyond the program itself."""
    if isinstance(spec, SmallTalkSpec):
        return cost_of(spec).expert_memory_bytes
    if isinstance(spec, ClusterSpec | InstantiateSpec | ContestSpec | ChoicesSpec):
        return 0
    if isinstance(spec, SoupSpec):
        return spec.cost().memory_bytes
    batch = spec.training.batch_size
    return spec.memory_for(spec.full_model(), batch_size=batch, sequence=spec.text.sequence_length)


def predict_seconds(spec: SmallTalkSpec, machine: Machine, *, train_tokens: int) -> float:
    """Wall-clock seconds of a run whose nodes share this machine's cores, at the rates given."""
    cost, rates, num = cost_of(spec), machine.rates, spec.experts.num
    expert, length, prefix = spec.expert_model(), spec.text.sequence_length, spec.text.prefix_length
    scored = (spec.routers.rounds - 1) * spec.routers.chunk_sequences
    scored += spec.experts.chunks * spec.experts.chunk_sequences
    routers = cost.router_tokens / rates.router_tokens_per_second
    routers += scored * num * prefix / rates.score_tokens_per_second
    flops = rates.expert_flops_per_second
    test_rows = train_tokens * HELD_OUT_SHARE / length
    models = num + int(spec.dense.enabled) + {"none": 0, "one": 1, "all": num}[spec.controls.random_split]
    evaluation = test_rows * forward_flops(expert, length) / flops
    jobs = [(routers + cost.expert_flops / flops) / num] * num
    jobs += [cost.dense_flops / flops] if cost.dense_steps else []
    jobs += [cost.random_split_flops / flops] if cost.random_split_flops else []
    waiting = spec.routers.rounds * SECONDS_PER_ROUND + spec.experts.chunks * SECONDS_PER_CHUNK
    spread = makespan(jobs, workers=machine.nodes, cores=machine.cores)
    tail = makespan([evaluation] * models, workers=machine.nodes, cores=machine.cores)
    return FIXED_SECONDS + waiting + spread + tail


def makespan(jobs: Sequence[float], *, workers: int, cores: int) -> float:
    """Seconds until all jobs are done, longest first, when `workers` one-thread processes share `cores`.

    Args:
        jobs: core-seconds of each.
    """
    waiting = sorted(jobs)
    active: list[float] = []
    now = 0.0
    while waiting or active:
        while waiting and len(active) < workers:
            active.append(waiting.pop())
        speed = min(1.0, cores / len(active))
        least = min(active)
        now += least / speed
        active = [left - least for left in active if left - least > 1e-9]
    return now


@dataclass(frozen=True, kw_only=True)
class Sized:
    rung: Rung
    spec: SmallTalkSpec
    seconds: float
    """Predicted, at the safe rate."""
    epochs: float
    """Times the side that reads most, the dense twin, goes over the text."""
    limited_by: str
    """time | text | floor"""


def choose(minutes: float, machine: Machine, *, train_tokens: int, seed: int = 0) -> Sized:
    """The highest rung that fits the time and reads no text twice; the lowest if none does."""
    safe = replace(machine, rates=machine.rates.scaled(SAFETY))
    best: Sized | None = None
    limited_by = "time"
    for rung in ladder():
        spec = spec_of(rung, seed=seed)
        cost = cost_of(spec)
        reads = max(cost.dense_tokens, cost.expert_tokens)
        seconds = predict_seconds(spec, safe, train_tokens=train_tokens)
        epochs = reads / max(1, train_tokens)
        if seconds > 60 * minutes or epochs > EPOCH_MARGIN:
            limited_by = "time" if seconds > 60 * minutes else "text"
            if best is None:
                return Sized(rung=rung, spec=spec, seconds=seconds, epochs=epochs, limited_by="floor")
            break
        best = Sized(rung=rung, spec=spec, seconds=seconds, epochs=epochs, limited_by=limited_by)
    assert best is not None
    return replace(best, limited_by=limited_by)


def _commits(spec: CommonSpec, model: ModelConfig, *, batch_size: int, total_steps: int) -> Commits:
    return Commits(
        steps=commit_interval(
            num_parameters=model.num_parameters,
            batch_size=batch_size,
            targets_per_row=spec.text.sequence_length,
            total_steps=max(1, total_steps),
            bytes_per_token=spec.bytes_per_token,
        ),
        bytes=checkpoint_bytes(model, spec.optimizer),
    )


def _preset_for(tokens_per_expert: int) -> str:
    fitting = [
        name
        for name in EXPERT_PRESETS
        if tokens_per_expert >= TOKENS_PER_PARAMETER * _parameters(name, TextSpec().vocab_size)
    ]
    return fitting[-1] if fitting else EXPERT_PRESETS[0]


def _parameters(preset: str, vocab: int) -> int:
    p = PRESETS[preset]
    shape = ModelShape(hidden=p.hidden, layers=p.layers, heads=p.heads, ffn=p.ffn)
    return shape.config(vocab=vocab, context=TextSpec().sequence_length + 1).num_parameters
