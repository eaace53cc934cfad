"""How far back AdEMAMix looks: half-lives, its two schedulers, and beta3 from the length of a run. No torch here.

The half-life of an average is the number of latest gradients that hold half of its mass (2409.03137, appendix A.1).
"""

from __future__ import annotations

import math
from dataclasses import replace

from potluck.config import to_mapping
from potluck.errors import SpecError
from potluck.ids import Json
from potluck.recipe import AdEMAMixConfig, OptimizerConfig

DERIVED_HALF_LIVES = 20
"""Steps at work over the derived half-life; the paper's own runs lie between 10 and 40 where beta3 suits them."""
FEWEST_HALF_LIVES = 4
"""With fewer, the slow average never fills and alpha means less than it says."""
_TINY = 1e-8
"""Inside the logarithms of the beta3 scheduler, as in the paper's PyTorch code: beta1 = 0 has a half-life too."""


def half_life(beta: float) -> float:
    """Steps; ln 0.5 / ln beta - 1."""
    return math.log(0.5) / math.log(beta) - 1


def beta_of(half_life_steps: float) -> float:
    """The inverse of `half_life`."""
    return float(0.5 ** (1 / (half_life_steps + 1)))


def alpha_at(step: int, *, alpha: float, warmup_steps: int) -> float:
    """Linear from 0 at step 0 to `alpha` at `warmup_steps`; steps count from 1."""
    return alpha * step / warmup_steps if step < warmup_steps else alpha


def beta3_at(step: int, *, beta1: float, beta3: float, warmup_steps: int) -> float:
    """From `beta1` to `beta3`, the half-life linear in the step; steps count from 1."""
    if step >= warmup_steps:
        return beta3
    start, end, done = math.log(beta1 + _TINY), math.log(beta3), step / warmup_steps
    return min(math.exp(start * end / ((1 - done) * end + done * start)), beta3)


def active_range(config: AdEMAMixConfig, total_steps: int) -> tuple[int, int]:
    """The steps [first, end) in which the slow average is at work."""
    return round(config.from_fraction * total_steps), round(config.until_fraction * total_steps)


def is_active(config: AdEMAMixConfig, total_steps: int, step: int) -> bool:
    """Whether step `step`, counted from 0, has the slow average; with until_fraction = 1 it never retires."""
    first, end = active_range(config, total_steps)
    return step >= first and (step < end or config.until_fraction == 1)


def resolve_optimizer(config: OptimizerConfig, total_steps: int, *, of: str = "the run") -> OptimizerConfig:
    """The same with a literal beta3, for a lineage of `total_steps` steps.

    Args:
        of: whose steps they are, for the message.

    Raises:
        SpecError: ``spec.beta3-too-slow``, its half-life is more than a quarter of the steps it is at work.
    """
    if not isinstance(config, AdEMAMixConfig):
        return config
    first, end = active_range(config, total_steps)
    steps = end - first
    derived = max(config.beta1, round(beta_of(steps / DERIVED_HALF_LIVES), 10))
    if config.beta3 == 0:
        return replace(config, beta3=derived)
    largest = max(config.beta1, beta_of(steps / FEWEST_HALF_LIVES))
    if config.beta3 > largest:
        raise SpecError(
            "spec.beta3-too-slow",
            f"optimizer.beta3 = {config.beta3} has a half-life of {half_life(config.beta3):,.0f} steps, "
            f"more than a quarter of the {steps:,} steps it is at work in {of}",
            f"give at most {math.floor(largest * 1e6) / 1e6:g}, or 0 to derive it ({derived:g} here)",
        )
    return config


def describe_horizon(config: OptimizerConfig, total_steps: int, *, of: str = "the run") -> str:
    """One line for people; empty for an optimizer without a slow average. Refuses what `resolve_optimizer` does."""
    resolved = resolve_optimizer(config, total_steps, of=of)
    if not isinstance(resolved, AdEMAMixConfig):
        return ""
    first, end = active_range(resolved, total_steps)
    switch = "" if (first, end) == (0, total_steps) else f", at work in steps {first:,} to {end:,}"
    return (
        f"AdEMAMix beta3 = {resolved.beta3:g}, half-life {_half_life_or_zero(resolved.beta3):,.0f} steps "
        f"of {total_steps:,}{switch}"
    )


def optimizer_facts(config: OptimizerConfig) -> dict[str, Json]:
    """A resolved optimizer as it goes into reports: its numbers, and the half-life in steps."""
    facts: dict[str, Json] = dict(to_mapping(config))
    if isinstance(config, AdEMAMixConfig):
        facts["half_life"] = _half_life_or_zero(config.beta3)
    return facts


def _half_life_or_zero(beta: float) -> float:
    return max(0.0, half_life(beta)) if beta > 0 else 0.0
