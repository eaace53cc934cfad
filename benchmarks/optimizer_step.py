"""AdEMAMix's step over that of torch's fused AdamW on the same weights and gradients, on one thread.

    python -m benchmarks.optimizer_step [--seconds 10] [--json FILE]

A figure is the median of the ratios of adjacent steps, with a 95% interval of that median from order statistics.
Time is that of the thread, so that a busy machine's other programs take none of it; they still take memory
bandwidth. The JSON file has the figures of the largest preset, and `FIGURE_PRESET` of the others.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from pathlib import Path

import torch

from potluck.lm.config import PRESETS, ModelConfig
from potluck.lm.model import init_decoder
from potluck.lm.optim.base import Optimizer
from potluck.lm.optim.build import build_optimizer
from potluck.lm.train import apply_profile
from potluck.recipe import AdamWConfig, AdEMAMixConfig, OptimizerConfig, Profile

PRESETS_TIMED = ("0.11M", "6M", "14M")
VOCAB, TOTAL_STEPS = 1024, 1_000_000
CONTENDERS: dict[str, tuple[OptimizerConfig, bool]] = {
    "ademamix_vs_adamw": (AdEMAMixConfig(), False),
    "ademamix_bf16_vs_adamw": (AdEMAMixConfig(slow_dtype="bfloat16"), False),
    "ademamix_beta1_0_vs_adamw": (AdEMAMixConfig(beta1=0.0), False),
    "ademamix_compiled_vs_adamw": (AdEMAMixConfig(), True),
    "ademamix_compiled_bf16_vs_adamw": (AdEMAMixConfig(slow_dtype="bfloat16"), True),
}
"""And whether the kernel is compiled."""
RATE = 1e-5


def _seconds(optimizer: Optimizer, steps: int) -> float:
    start = time.thread_time()
    for _ in range(steps):
        optimizer.step(RATE)
    return (time.thread_time() - start) / steps


def ratios(preset: str, seconds: float) -> tuple[dict[str, list[float]], float]:
    """Ratios of adjacent steps by figure, and AdamW's median seconds a step."""
    p = PRESETS[preset]
    config = ModelConfig(vocab=VOCAB, context=128, hidden=p.hidden, layers=p.layers, heads=p.heads, ffn=p.ffn)
    model = init_decoder(config, seed=0)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) * 1e-3
    adamw = build_optimizer(dict(model.named_parameters()), AdamWConfig(), TOTAL_STEPS)
    contenders = {
        name: build_optimizer(dict(model.named_parameters()), config, TOTAL_STEPS, compile=compiled)
        for name, (config, compiled) in CONTENDERS.items()
    }
    steps = max(1, 1_000_000 // config.num_parameters)  # of a turn: the clock's grain is coarse for small models
    for optimizer in (adamw, *contenders.values()):
        _seconds(optimizer, 2)
    found: dict[str, list[float]] = {name: [] for name in contenders}
    baseline: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(baseline) < 30:
        for name, optimizer in contenders.items():
            baseline.append(_seconds(adamw, steps))
            found[name].append(_seconds(optimizer, steps) / baseline[-1])
    return found, statistics.median(baseline)


def median_with_interval(values: list[float]) -> dict[str, float]:
    """The ranks between which the median of the population lies with 95% (normal approximation to the binomial)."""
    ordered, n = sorted(values), len(values)
    low = max(0, math.floor(n / 2 - 0.98 * math.sqrt(n)))
    high = min(n - 1, math.ceil(n / 2 + 0.98 * math.sqrt(n)))
    return {"median": statistics.median(ordered), "low": ordered[low], "high": ordered[high]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each preset")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    apply_profile(Profile())
    figures: dict[str, dict[str, float]] = {}
    for preset in PRESETS_TIMED:
        found, seconds = ratios(preset, options.seconds)
        print(f"{preset}: AdamW {seconds * 1e3:.2f} ms a step, {len(next(iter(found.values())))} pairs")
        for name, values in found.items():
            figure = median_with_interval(values)
            print(f"  {name:28s} {figure['median']:.3f}  [{figure['low']:.3f}, {figure['high']:.3f}]")
            figures[name if preset == PRESETS_TIMED[-1] else f"{name}_{preset}"] = figure
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
