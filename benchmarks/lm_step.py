"""Tokens per second on one thread: training steps, prefix scoring, and a plain rendition of both to compare with.

    python -m benchmarks.lm_step [--seconds 3] [--json FILE]

Each line has the best of turns that alternate, so that other work on the machine harms both sides alike, and the
median of the paired ratios with their range.
The plain rendition runs in a process of its own, since the profile changes how memory is allocated.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from potluck.lm.config import PRESETS, ModelConfig
from potluck.recipe import AdamWConfig, Recipe, Schedule

VOCAB, BATCH, SEQUENCE, PREFIX = 1024, 16, 128, 32
TURNS = 3


def recipe_of(preset: str, columns: int) -> Recipe:
    p = PRESETS[preset]
    model = ModelConfig(vocab=VOCAB, context=columns, hidden=p.hidden, layers=p.layers, heads=p.heads, ffn=p.ffn)
    return Recipe(
        role="expert",
        index=0,
        model=model,
        optimizer=AdamWConfig(),
        schedule=Schedule(kind="constant", learning_rate=3e-3, warmup_steps=10, total_steps=1000),
        batch_size=BATCH,
        columns=columns,
        init_seed=0,
        data_rule="{}",
        commit_every=1,
    )


class Plain:
    """The textbook: a product for each of q, k, v, gate and up, rotary by halves, all logits, torch's own AdamW."""

    def __init__(self, recipe: Recipe) -> None:
        torch.set_num_threads(1)
        c = self.config = recipe.model
        self.columns = recipe.columns
        generator = torch.Generator().manual_seed(0)

        def matrix(rows: int, columns: int) -> torch.Tensor:
            return torch.randn(rows, columns, generator=generator).mul_(columns**-0.5).requires_grad_()

        shapes = [(c.hidden, c.hidden)] * 4 + [(c.ffn, c.hidden)] * 2 + [(c.hidden, c.ffn)]
        self.layers = [[matrix(*shape) for shape in shapes] for _ in range(c.layers)]
        self.gains = [torch.ones(c.hidden, requires_grad=True) for _ in range(2 * c.layers + 1)]
        self.embedding = matrix(c.vocab, c.hidden)
        self.parameters = [self.embedding, *self.gains, *(w for layer in self.layers for w in layer)]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=3e-3, betas=(0.9, 0.99), weight_decay=0.1)
        head_dim = c.hidden // c.heads
        frequencies = 10_000 ** (-torch.arange(0, head_dim, 2) / head_dim)
        angles = torch.outer(torch.arange(c.context), frequencies).repeat(1, 2)
        self.cos, self.sin = angles.cos(), angles.sin()
        self.rows = torch.randint(0, c.vocab, (8, BATCH, recipe.columns), generator=generator)

    def turn(self, x: torch.Tensor) -> torch.Tensor:
        a, b = x.chunk(2, -1)
        t = x.shape[2]
        return x * self.cos[:t] + torch.cat([-b, a], -1) * self.sin[:t]

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        def norm(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
            return torch.mul(x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6), gain)

        b, t = ids.shape
        c, x = self.config, self.embedding[ids]
        future = torch.full((t, t), -torch.inf).triu(1)
        for i, (wq, wk, wv, wo, gate, up, down) in enumerate(self.layers):
            y = norm(x, self.gains[2 * i])
            q, k, v = (F.linear(y, w).view(b, t, c.heads, -1).transpose(1, 2) for w in (wq, wk, wv))
            scores = self.turn(q) @ self.turn(k).transpose(-1, -2) / q.shape[-1] ** 0.5 + future
            x = x + F.linear((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, -1), wo)
            y = norm(x, self.gains[2 * i + 1])
            x = x + F.linear(F.silu(F.linear(y, gate)) * F.linear(y, up), down)
        return F.linear(norm(x, self.gains[-1]), self.embedding)

    def loss(self, i: int) -> torch.Tensor:
        ids = self.rows[i % len(self.rows)]
        return F.cross_entropy(self.logits(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())

    def step(self, i: int) -> int:
        self.optimizer.zero_grad()
        self.loss(i).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        return BATCH * (self.columns - 1)

    def score(self, i: int) -> int:
        with torch.no_grad():
            self.loss(i)
        return BATCH * self.columns


def _rate(call: Callable[[int], int], seconds: float) -> float:
    for i in range(3):
        call(i)
    start, done, i = time.perf_counter(), 0, 0
    while time.perf_counter() - start < seconds:
        done += call(i)
        i += 1
    return done / (time.perf_counter() - start)


def _potluck_rate(recipe: Recipe, seconds: float, mode: str) -> float:
    command = [sys.executable, "-m", "potluck.lm.stepper", "--recipe-json", recipe.to_json(), "--mode", mode]
    command += ["--seconds", str(seconds), "--batch", str(BATCH)]
    line = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return float(next(iter(json.loads(line).values())))


def _plain_in_a_process(recipe: Recipe, seconds: float, mode: str) -> float:
    command = [sys.executable, __file__, "--plain", recipe.to_json(), "--seconds", str(seconds), "--mode", mode]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the ratios there")
    parser.add_argument("--plain", default="", help=argparse.SUPPRESS)
    parser.add_argument("--mode", default="train", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plain:
        plain = Plain(Recipe.from_json(options.plain))
        print(_rate(plain.step if options.mode == "train" else plain.score, options.seconds))
        return
    cases = [("0.08M", SEQUENCE + 1, "train"), ("0.16M", SEQUENCE + 1, "train"), ("router-24", PREFIX, "train")]
    cases.append(("router-24", PREFIX, "score"))
    figures: dict[str, dict[str, float]] = {}
    for preset, columns, mode in cases:
        recipe = recipe_of(preset, columns)
        pairs = []
        for _ in range(TURNS):
            ours = _potluck_rate(recipe, options.seconds, mode)
            pairs.append((ours, _plain_in_a_process(recipe, options.seconds, mode)))
        best, theirs = (max(side) for side in zip(*pairs, strict=True))
        ratios = sorted(ours / plain for ours, plain in pairs)
        figure = {"median": statistics.median(ratios), "low": ratios[0], "high": ratios[-1]}
        figures[f"{mode}_vs_plain_{preset}"] = figure
        spread = f"{figure['median']:.2f} x [{figure['low']:.2f}, {figure['high']:.2f}]"
        print(f"{preset:10s} {mode:6s} {best:9,.0f} tokens/s, plain {theirs:9,.0f}, {spread}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
