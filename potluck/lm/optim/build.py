"""From a recipe's optimizer section to an optimizer."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from potluck.lm.optim.adamw import AdamW
from potluck.lm.optim.ademamix import AdEMAMix
from potluck.lm.optim.ademamix_compiled import CompiledAdEMAMix
from potluck.lm.optim.base import Optimizer
from potluck.lm.optim.horizon import resolve_optimizer
from potluck.recipe import AdEMAMixConfig, OptimizerConfig


def build_optimizer(
    parameters: Mapping[str, nn.Parameter], config: OptimizerConfig, total_steps: int, *, compile: bool = False
) -> Optimizer:
    """Before the first of `total_steps` steps of the parameters' run.

    Args:
        compile: have AdEMAMix's kernel compiled, if the parameters are on the CPU.

    Raises:
        SpecError: ``spec.beta3-too-slow``.
        ResourceError: ``resource.no-compiler``.
    """
    config = resolve_optimizer(config, total_steps)
    if isinstance(config, AdEMAMixConfig):
        if compile and all(p.device.type == "cpu" for p in parameters.values()):
            return CompiledAdEMAMix(parameters, config, total_steps)
        return AdEMAMix(parameters, config, total_steps)
    return AdamW(parameters, config)
