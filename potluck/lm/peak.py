"""What this process's matrix products reach at most: the measure of a model's FLOP/s utilisation.

MFU (PaLM, 2204.02311, appendix B) divides the FLOP/s of training by the hardware's peak. No data sheet
knows a shared core or a laptop on battery, so the peak is the best of a few large products, with the
profile's device, dtype and threads. A number for people: it decides nothing and enters no digest.
"""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING

from potluck.lm.flops import train_flops
from potluck.recipe import Profile, Recipe

if TYPE_CHECKING:
    import torch

BUDGET_SECONDS = 0.08
SIDE_CPU = 512
"""Three float32 matrices of 1 MiB stay in cache; larger ones were no faster."""
SIDE_ACCELERATOR = 4096


def peak_flops_per_second(profile: Profile) -> float:
    """Of all the profile's processes; 0 where it cannot be measured. Timed once per process, in about 0.1 s.

    Call it after `apply_profile`.
    """
    return _measured(profile.device, profile.dtype) * profile.processes


def training_speed(recipe: Recipe, tokens_per_second: float, peak: float) -> dict[str, float]:
    """What a rate of targets is in FLOP/s, by `potluck.lm.flops`, and over the peak; 0 where that is not known."""
    sequence = recipe.columns - 1
    flops = train_flops(recipe.model, sequence) / sequence * tokens_per_second
    mfu = flops / peak if peak > 0 else 0.0
    return {"tokens_per_second": tokens_per_second, "flops_per_second": flops, "mfu": mfu}


@functools.cache
def _measured(device: str, dtype: str) -> float:
    """The best of the products that fit the budget, at least one after a warm-up."""
    import torch

    side = SIDE_CPU if torch.device(device).type == "cpu" else SIDE_ACCELERATOR
    try:
        with torch.inference_mode():
            # No random numbers: the generators' states are not ours to move.
            left = torch.linspace(-1, 1, side * side, device=device).reshape(side, side).to(getattr(torch, dtype))
            right = left.T.contiguous()
            _seconds(left, right)
            began, best = time.perf_counter(), _seconds(left, right)
            while time.perf_counter() - began < BUDGET_SECONDS:
                best = min(best, _seconds(left, right))
    except RuntimeError:  # No memory for it, or no such product there: the number is not known, the work goes on.
        return 0.0
    return 2.0 * side**3 / best


def _seconds(left: torch.Tensor, right: torch.Tensor) -> float:
    began = time.perf_counter()
    product = left @ right
    product[0, 0].item()  # An accelerator has finished once a value is here.
    return time.perf_counter() - began
