"""AdEMAMix (2409.03137, algorithm 1) by its formulas in float64 numpy, and small trainings to compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from potluck.lm.optim.adamw import is_decayed
from potluck.recipe import AdEMAMixConfig

CONFIG = AdEMAMixConfig(beta3=0.99, alpha=8.0)
CHANGES: list[dict[str, Any]] = [
    {},
    {"warmup_fraction": 0.0},
    {"warmup_fraction": 0.5},
    {"beta1": 0.0},
    {"beta1": 0.0, "warmup_fraction": 0.0},
    {"beta1": 0.3},
    {"from_fraction": 0.4},
    {"until_fraction": 0.6},
    {"from_fraction": 0.25, "until_fraction": 0.75, "warmup_fraction": 0.5},
    {"beta1": 0.0, "from_fraction": 0.25, "until_fraction": 0.75},
    {"beta3": 0.9, "alpha": 20.0, "warmup_fraction": 0.0},
]
"""Of that config: with and without each average, warm-up and switch."""


def parameters_of(dtype: torch.dtype, seed: int = 0) -> dict[str, nn.Parameter]:
    """A decayed matrix that is cut in four slices, a small one, and two undecayed tensors."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"large": (33, 31), "matrix": (5, 7), "norm": (7,), "embedding.weight": (11, 3)}
    return {
        name: nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))
        for name, shape in shapes.items()
    }


def give_gradients(parameters: Mapping[str, nn.Parameter], step: int) -> None:
    for i, parameter in enumerate(parameters.values()):
        noise = np.random.default_rng([step, i]).standard_normal(tuple(parameter.shape))
        parameter.grad = torch.from_numpy(0.05 * noise + 0.02).to(parameter.dtype)


def rate_at(step: int) -> float:
    return 0.01 * (1 + np.cos(step / 30))


def weights_after(
    steps: int,
    make: Callable[[dict[str, nn.Parameter]], Any],
    dtype: torch.dtype = torch.float64,
    without_gradient: Callable[[int], bool] = lambda step: False,
) -> dict[str, np.ndarray]:
    parameters = parameters_of(dtype)
    optimizer = make(parameters)
    for step in range(steps):
        optimizer.zero_grad()
        give_gradients(parameters, step)
        for name in ("matrix", "large", "norm") if without_gradient(step) else ():
            parameters[name].grad = None
        optimizer.step(rate_at(step))
    return {name: p.detach().numpy().copy() for name, p in parameters.items()}


def difference(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> float:
    """Largest difference, relative to the tensor's largest weight."""
    return max(float(np.abs(a[name] - b[name]).max() / np.abs(b[name]).max()) for name in b)


class Formulas:
    """Card, algorithm 1: t incremented first, eps outside the root, no bias correction on m2, decay times the rate."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: AdEMAMixConfig, total: int) -> None:
        self.parameters, self.config = parameters, config
        self.theta = {name: p.detach().numpy().copy() for name, p in parameters.items()}
        self.m1, self.m2, self.nu = ({n: np.zeros_like(x) for n, x in self.theta.items()} for _ in range(3))
        self.first, self.end = round(config.from_fraction * total), round(config.until_fraction * total)
        self.t = 0

    def zero_grad(self) -> None: ...

    def step(self, rate: float) -> None:
        c = self.config
        active = self.first <= self.t < self.end
        self.t += 1
        t, warmup = self.t - self.first, round(c.warmup_fraction * (self.end - self.first))
        alpha, beta3 = c.alpha, c.beta3
        if active and t < warmup:
            alpha = c.alpha * t / warmup
            start, end, u = np.log(c.beta1 + 1e-8), np.log(c.beta3), t / warmup
            beta3 = min(np.exp(start * end / ((1 - u) * end + u * start)), c.beta3)
        for name, p in self.parameters.items():
            if p.grad is None:
                continue
            g, theta = p.grad.numpy(), self.theta[name]
            self.m1[name] = c.beta1 * self.m1[name] + (1 - c.beta1) * g
            self.nu[name] = c.beta2 * self.nu[name] + (1 - c.beta2) * g * g
            first = self.m1[name] / (1 - c.beta1**self.t)
            if active:
                self.m2[name] = beta3 * self.m2[name] + (1 - beta3) * g
                first = first + alpha * self.m2[name]
            root = np.sqrt(self.nu[name] / (1 - c.beta2**self.t)) + c.epsilon
            decay = c.weight_decay if is_decayed(name, p) else 0.0
            theta -= rate * (first / root + decay * theta)
            with torch.no_grad():
                p.copy_(torch.from_numpy(theta))
