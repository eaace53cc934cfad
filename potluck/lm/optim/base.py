"""What a trainer asks of an optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from potluck.errors import DataError


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


def take_over(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], *, of: str = "", same: str = "") -> None:
    """Copies the tensors of an optimizer's file into its own.

    Args:
        of: for people, which state it should have been, where that says more than the model: " under AdamW".
        same: what else must be the same.

    Raises:
        DataError: ``data.wrong-optimizer``, names, shapes or types differ.
    """
    if _shapes(own) != _shapes(tensors):
        raise DataError(
            "data.wrong-optimizer",
            f"the optimizer file does not belong to this model{of}",
            f"use the optimizer blob that the weights' own manifest names{same}",
        )
    for name, tensor in own.items():
        tensor.copy_(tensors[name])


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[object, object]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
