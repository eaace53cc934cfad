"""A soup's price: making a model of it against a weighted sum in torch, and training it against a plain model.

    python -m benchmarks.soup [--turns 9] [--json FILE]

`instantiate_vs_weighted_sum`: theta(h) by name, coefficients included, over torch's `addmm(S, alpha, E)` of the same
bytes.
`training_vs_dense_BATCH`: a step on BATCH rows of 128 tokens in 4 mixtures, over a plain model's step on as many:
the bank's share falls with the batch. Ways alternate; a ratio is taken within each turn; figures are the median of
the turns with the least and the greatest. One thread.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.turns import seconds_of, spread
from potluck.lm.config import PRESETS, ModelConfig
from potluck.lm.soup import Soup
from potluck.lm.soup_config import SoupConfig
from potluck.lm.soup_memory import soup_cost
from potluck.lm.train import Trainer
from potluck.recipe import AdamWConfig, Profile, Recipe, Schedule

VOCAB, LENGTH, MIXTURES, DOMAINS = 1024, 128, 4, 64
BATCHES = (16, 64, 128)
TOTAL_STEPS = 10_000


def model_of(preset: str) -> ModelConfig:
    p = PRESETS[preset]
    return ModelConfig(vocab=VOCAB, context=LENGTH + 1, hidden=p.hidden, layers=p.layers, heads=p.heads, ffn=p.ffn)


def recipe_of(preset: str, soup: SoupConfig | None, batch: int) -> Recipe:
    return Recipe(
        role="dense" if soup is None else "soup",
        index=0,
        model=model_of(preset),
        optimizer=AdamWConfig(),
        schedule=Schedule(kind="constant", learning_rate=1e-3, warmup_steps=0, total_steps=TOTAL_STEPS),
        batch_size=batch,
        columns=LENGTH + 1,
        init_seed=0,
        data_rule="{}",
        commit_every=TOTAL_STEPS,
        soup=soup,
    )


def making(preset: str, config: SoupConfig) -> dict[str, Callable[[], object]]:
    soup = Soup(model_of(preset), config, seed=0)
    soup.bank["experts"].normal_(0.0, 0.02)
    h = torch.rand(config.domains)
    h /= h.sum()
    alpha = soup.phi(h.unsqueeze(0)).detach()
    return {
        "instantiate": lambda: soup.instantiate(h),
        "weighted_sum": lambda: torch.addmm(soup.shared, alpha, soup.bank["experts"]),
    }


def training(preset: str, config: SoupConfig, batch: int) -> dict[str, Callable[[], object]]:
    generator = np.random.default_rng(0)
    rows = generator.integers(1, VOCAB, (batch, LENGTH + 1)).astype(np.uint16)
    mixtures = generator.random((MIXTURES, config.domains)).astype(np.float32)
    mixtures /= mixtures.sum(1, keepdims=True)
    soup, plain = (
        Trainer(recipe_of(preset, config, batch), Profile()),
        Trainer(recipe_of(preset, None, batch), Profile()),
    )
    return {"soup": lambda: soup.train_step(rows, None, mixtures), "dense": lambda: plain.train_step(rows)}


def turns_of(ways: dict[str, Callable[[], object]], turns: int) -> list[dict[str, float]]:
    for way in ways.values():
        way()
    return [{name: seconds_of(way) for name, way in ways.items()} for _ in range(turns)]


def show(name: str, figure: dict[str, float]) -> None:
    print(f"{name:34s} {figure['median']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--preset", default="0.9M")
    parser.add_argument("--experts", type=int, default=16)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the ratios there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = SoupConfig(domains=DOMAINS, experts=options.experts)
    figures: dict[str, dict[str, float]] = {}
    turns = turns_of(making(options.preset, config), options.turns)
    figures["instantiate_vs_weighted_sum"] = spread([turn["instantiate"] / turn["weighted_sum"] for turn in turns])
    print(f"{options.preset}, {options.experts} experts as large as the model, one thread")
    show("instantiate_vs_weighted_sum", figures["instantiate_vs_weighted_sum"])
    show("  milliseconds of instantiate", spread([1000 * turn["instantiate"] for turn in turns]))
    for batch in BATCHES:
        turns = turns_of(training(options.preset, config, batch), options.turns)
        name = f"training_vs_dense_{batch}"
        figures[name] = spread([turn["soup"] / turn["dense"] for turn in turns])
        show(name, figures[name])
        model = model_of(options.preset)
        how = {"per_step": MIXTURES, "batch_size": batch, "sequence": LENGTH}
        cost = soup_cost(model, config, **how, profile=Profile(), optimizer=AdamWConfig())
        print(f"  of the bank: {cost.traffic_bytes / 1e6:,.0f} MB moved, {cost.flops / 1e6:,.0f} MFLOP a step")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
