"""Tiny soups over a corpus of made-up languages, on one node or spread."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from potluck.ids import Digest
from potluck.specs.sections import EvalSpec, ModelShape, TextSpec
from potluck.specs.single import TrainingSpec
from potluck.specs.soup import BankSpec, SoupControls, SoupSpec


def soup_spec(corpus: Digest, *, steps: int = 12, **changes: Any) -> SoupSpec:
    """Eight experts, four mixtures a step, no controls."""
    spec = SoupSpec(
        method="soup",
        corpus=corpus,
        seed=3,
        text=TextSpec(vocab_size=300, sequence_length=16, prefix_length=8),
        model=ModelShape(hidden=16, layers=1, heads=2, ffn=24),
        training=TrainingSpec(steps=steps, batch_size=8, learning_rate=1e-2),
        bank=BankSpec(experts=8, mixtures_per_step=4, support=2, hidden=8),
        controls=SoupControls(generic=False, constant=False),
        evaluation=EvalSpec(bootstrap_samples=100, probe_rows=8),
    )
    return replace(spec, **changes)
