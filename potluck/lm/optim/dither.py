"""Rounding to bfloat16 that does not drift.

A slow average moves by less than half a unit of bfloat16's last place, so rounding to nearest would hold it
where it is. Here the 16 bits that go are compared with a threshold instead, and the threshold takes every value
once in 65,536 steps, in the order of the golden ratio: after n steps the roundings up are as many as they
should be within a few, where random thresholds would be off by the root of n.
"""

from __future__ import annotations

import torch
from torch import Tensor

WIDTH = 1024
"""Positions after which thresholds repeat: the table stays in the nearest cache."""
STEP_STRIDE = 40_503
"""65,536 over the golden ratio."""
POSITION_STRIDE = 27_145
"""65,536 times (the root of 2 - 1): neighbours are rounded apart."""
LOW_BITS = 0xFFFF


class Dither:
    """The thresholds of one step: a function of the step and of the position, nothing else."""

    def __init__(self, device: torch.device) -> None:
        positions = torch.arange(WIDTH, dtype=torch.int32, device=device)
        self._base = (positions * POSITION_STRIDE).bitwise_and_(LOW_BITS)
        self._now = self._base.clone()

    def turn_to(self, step: int) -> None:
        torch.add(self._base, step * STEP_STRIDE & LOW_BITS, out=self._now)
        self._now.bitwise_and_(LOW_BITS)

    def round_(self, values: Tensor) -> None:
        """Rounds float32 values in place to such that bfloat16 holds.

        Args:
            values: [n * WIDTH], contiguous.
        """
        # On the bits: adding carries into the upper half or not, whatever the sign; zero stays zero.
        bits = values.view(torch.int32).view(-1, WIDTH)
        bits.add_(self._now).bitwise_and_(~LOW_BITS)
