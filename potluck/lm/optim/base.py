"""What a trainer asks of an optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor


class Optimizer(Protocol):
    def step(self, learning_rate: float) -> None:
        """One update from the gradients that the parameters hold; parameters without one are left alone."""
        ...

    def zero_grad(self) -> None: ...

    def state_tensors(self) -> dict[str, Tensor]:
        """All that the next step needs beside the weights and the number of steps; by name, not copied."""
        ...

    def load_state_tensors(self, tensors: Mapping[str, Tensor], *, step: int) -> None:
        """Takes over the state after `step` updates, bit by bit.

        Raises:
            DataError: ``data.wrong-optimizer``, names or shapes are not those of this model at that step.
        """
        ...
