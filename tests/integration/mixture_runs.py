"""Tiny runs on a mixture: a corpus of made-up languages, a target in one of them."""

from __future__ import annotations

import json
from pathlib import Path

from potluck.ids import Digest
from potluck.specs.crisp import CrispSpec, FinetuneSpec
from potluck.specs.partition import MixtureSpec, PartitionSpec
from potluck.specs.sections import EvalSpec, ModelShape, TextSpec
from potluck.specs.single import SingleSpec, TrainingSpec
from sampling.ingest import Ingested, ingest
from tests.reference.languages import write_languages

TEXT = TextSpec(vocab_size=300, sequence_length=32, prefix_length=8)
MODEL = ModelShape(hidden=16, layers=2, heads=2, ffn=40)
LANGUAGES = 4


def corpus_of(folder: Path, documents: int = 40) -> Ingested:
    """So many documents of each language."""
    folder.mkdir(parents=True, exist_ok=True)
    return ingest(write_languages(folder / "languages.jsonl", documents=documents, seed=0), folder / "corpus")


def target_of(folder: Path, language: int = 1) -> Ingested:
    """New text in one of the corpus' languages."""
    folder.mkdir(parents=True, exist_ok=True)
    path = write_languages(folder / "all.jsonl", documents=120, seed=0)
    lines = path.read_text(encoding="utf-8").splitlines()
    mine = [line for line in lines if json.loads(line)["domain"] == f"language-{language}"][40:]
    target = folder / "target.jsonl"
    target.write_text("\n".join(mine) + "\n", encoding="utf-8")
    return ingest(target, folder / "corpus")


def partition() -> PartitionSpec:
    return PartitionSpec(by="clusters", k=LANGUAGES, dim=16, features=1 << 12, sample_rows=2000)


def crisp_spec(corpus: Digest, target: Digest, *, switch: float = 0.0, finetune_steps: int = 0) -> CrispSpec:
    return CrispSpec(
        method="crisp",
        corpus=corpus,
        target=target,
        seed=3,
        text=TEXT,
        model=MODEL,
        training=TrainingSpec(steps=120, batch_size=8, learning_rate=1e-2),
        partition=partition(),
        mixture=MixtureSpec(),
        finetune=FinetuneSpec(steps=finetune_steps, checks=2, batch_size=4),
        switch_fraction=switch,
        evaluation=EvalSpec(bootstrap_samples=500),
        bytes_per_token=16.0,
    )


def steered_spec(corpus: Digest, *, steps: int = 96, by: str = "clusters") -> SingleSpec:
    divided = partition() if by == "clusters" else PartitionSpec(by="source")
    return SingleSpec(
        method="single",
        corpus=corpus,
        seed=4,
        text=TEXT,
        model=MODEL,
        training=TrainingSpec(steps=steps, batch_size=8, learning_rate=1e-2),
        partition=divided,
        mixture=MixtureSpec(segments=12, gate_segments=2),
        evaluation=EvalSpec(bootstrap_samples=500),
        bytes_per_token=16.0,
    )
