"""A block of the model whose activations are computed again in the backward pass (1604.06174).

`torch.utils.checkpoint` does the same, but its first call loads the compiler: 70 MB, for a means to save memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def recomputed(block: Callable[..., Tensor], x: Tensor, *positions: Tensor | None) -> Tensor:
    """`block(x, *positions)`, of which only the arguments are kept.

    Args:
        block: deterministic; its parameters get their gradients as if it were called plainly.
        x: carries a gradient.
        positions: carry none.
    """
    return _Recomputed.apply(block, x, *positions)  # type: ignore[no-any-return, no-untyped-call]


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, block: Callable[..., Tensor], x: Tensor, *positions: Tensor | None) -> Tensor:
        kind = x.device.type
        ctx.block = block
        ctx.autocast = {
            "device_type": kind,
            "dtype": torch.get_autocast_dtype(kind),
            "enabled": torch.is_autocast_enabled(kind),
        }
        ctx.save_for_backward(x, *positions)
        return block(x, *positions)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved, *positions = ctx.saved_tensors
        x = saved.detach().requires_grad_()
        with torch.enable_grad(), torch.autocast(**ctx.autocast):
            y = ctx.block(x, *positions)
        torch.autograd.backward(y, grads)
        return None, x.grad, *(None for _ in positions)
