"""From a recipe's optimizer section to an optimizer."""

from __future__ import annotations

from torch import nn

from potluck.lm.optim.adamw import AdamW
from potluck.recipe import AdamWConfig, OptimizerConfig


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> AdamW:
    if isinstance(config, AdamWConfig):
        return AdamW(dict(model.named_parameters()), config)
    raise NotImplementedError(config.name)
