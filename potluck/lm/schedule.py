"""The learning rate as a function of the step."""

from __future__ import annotations

import math

from potluck.recipe import Schedule


def learning_rate(schedule: Schedule, step: int) -> float:
    """Rate used by 0-based step `step`.

    Warm-up is linear and its first step is not zero: step t < W uses (t + 1) / W of the peak. Then
    the rate is constant, or follows half a cosine from the peak at step W to `final_fraction` of it
    at step T; steps beyond T stay there.
    """
    peak, warmup = schedule.learning_rate, schedule.warmup_steps
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule.kind == "constant":
        return peak
    span = max(1, schedule.total_steps - warmup)
    progress = min(1.0, (step - warmup) / span)
    cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
    return peak * (schedule.final_fraction + (1.0 - schedule.final_fraction) * cosine)
