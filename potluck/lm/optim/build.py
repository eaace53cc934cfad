"""From a recipe's optimizer section to an optimizer."""

from __future__ import annotations

from torch import nn

from potluck.lm.optim.adamw import AdamW
from potluck.recipe import OptimizerConfig


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> AdamW:
    match config.name:
        case "adamw":
            return AdamW(dict(model.named_parameters()), config)
