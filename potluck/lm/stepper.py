"""Measures this machine: real steps on random rows for a few seconds, then one line of JSON.

    python -m potluck.lm.stepper --recipe-json '{...}' --seconds 5
    python -m potluck.lm.stepper --recipe-json '{...}' --seconds 5 --mode score --batch 16

Nothing it learns is kept. `tokens_per_second` counts the targets of training steps;
`score_tokens_per_second` counts the tokens that were read, `columns` a row. The first steps are
warm-up and not counted.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np

from potluck.ids import canonical_json
from potluck.recipe import Profile, Recipe

WARM_UP_CALLS = 3
NUM_BATCHES = 8


def measure_training(recipe: Recipe, seconds: float) -> float:
    """Targets per second of training steps with one thread."""
    from potluck.lm.train import Trainer

    trainer = Trainer(recipe, Profile())
    batches = _random_rows(recipe, recipe.batch_size)
    return _rate(lambda i: trainer.train_step(batches[i % NUM_BATCHES]).tokens, seconds)


def measure_scoring(recipe: Recipe, seconds: float, batch_size: int) -> float:
    """Tokens read per second of prefix scoring, a prefix being the recipe's columns, with one thread."""
    from potluck.lm.model import init_decoder
    from potluck.lm.score import prefix_mean_nll
    from potluck.lm.train import apply_profile

    apply_profile(Profile())
    model = init_decoder(recipe.model, seed=recipe.init_seed).eval()
    batches = _random_rows(recipe, batch_size)

    def score(i: int) -> int:
        rows = batches[i % NUM_BATCHES]
        prefix_mean_nll(model, rows, prefix=recipe.columns, batch_size=batch_size)
        return int(rows.size)

    return _rate(score, seconds)


def _rate(call: Callable[[int], int], seconds: float) -> float:
    for i in range(WARM_UP_CALLS):
        call(i)
    start = time.perf_counter()
    done, calls = 0, 0
    while not calls or time.perf_counter() - start < seconds:
        done += call(calls)
        calls += 1
    return done / (time.perf_counter() - start)


def _random_rows(recipe: Recipe, batch_size: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (batch_size, recipe.columns)
    return [rng.integers(0, recipe.model.vocab, shape).astype(np.uint16) for _ in range(NUM_BATCHES)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m potluck.lm.stepper", description=__doc__)
    parser.add_argument("--recipe-json", required=True, help="the recipe to time, as its canonical JSON")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--mode", choices=("train", "score"), default="train")
    parser.add_argument("--batch", type=int, default=16, help="rows a forward pass, for --mode score")
    options = parser.parse_args(arguments)
    recipe = Recipe.from_json(options.recipe_json)
    if options.mode == "train":
        figures = {"tokens_per_second": measure_training(recipe, options.seconds)}
    else:
        figures = {"score_tokens_per_second": measure_scoring(recipe, options.seconds, options.batch)}
    sys.stdout.write(canonical_json(figures) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
