"""Gradients of a decoder's loss, a micro-batch at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from potluck.lm.loss import mean_nll
from potluck.recipe import Profile


def add_gradients(
    forward: Callable[[Tensor], Tensor],
    embedding: Tensor,
    rows: np.ndarray,
    weights: np.ndarray | None,
    profile: Profile,
    *,
    share: float = 1.0,
) -> Tensor:
    """Adds the gradients of `share` x the rows' mean loss to those that the parameters hold.

    Args:
        forward: from ids [rows, T] to [rows, T, hidden].
        embedding: [vocab, hidden], the output layer.
        rows: [rows, columns] uint16; column c predicts column c + 1.
        weights: [rows] float32, what each row's mean NLL counts for in the mean; None: one.
        profile: device, dtype and rows at a time.
        share: of these rows in the step's loss.

    Returns:
        The loss that was taken the gradients of, a scalar, nats per target.
    """
    total = rows.shape[0]
    size = min(profile.micro_batch or total, total)
    ids = torch.from_numpy(rows.astype(np.int64)).to(profile.device)
    row_weights = None if weights is None else torch.from_numpy(weights.astype(np.float32)).to(profile.device)
    parts = []
    for start in range(0, total, size):
        piece = slice(start, start + size)
        loss = _loss(forward, embedding, ids[piece], None if row_weights is None else row_weights[piece], profile)
        factor = share if size == total else share * (size / total)
        loss = loss if factor == 1.0 else loss * factor
        torch.autograd.backward(loss)
        parts.append(loss.detach())
    return torch.stack(parts).sum()


def _loss(
    forward: Callable[[Tensor], Tensor], embedding: Tensor, ids: Tensor, weights: Tensor | None, profile: Profile
) -> Tensor:
    bfloat16 = profile.dtype == "bfloat16"
    with torch.autocast(torch.device(profile.device).type, dtype=torch.bfloat16, enabled=bfloat16):
        hidden = forward(ids[:, :-1])
    exact = torch.promote_types(hidden.dtype, torch.float32)
    flat, targets = hidden.to(exact).reshape(-1, hidden.shape[-1]), ids[:, 1:]
    of_positions = None if weights is None else weights.repeat_interleave(targets.shape[1])
    return mean_nll(flat, embedding, targets.reshape(-1), of_positions)
