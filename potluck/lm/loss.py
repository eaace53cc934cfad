"""Next-token cross entropy that never holds all logits.

A tiny model spends most of its arithmetic in the output layer, and a naive loss spends most of its
time moving logits through memory. Here logits are made `CHUNK` positions at a time, used while they
are in cache, and their gradient is taken on the spot: the backward pass only scales.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from potluck.lm.model import Decoder

CHUNK = 256
"""Positions whose logits live at once: 256 x 1,024 words x 4 bytes is the 1 MiB of an L2 cache."""
LEAST_CHANCE = 1e-30
"""Below it a float32 probability is no longer exact, and its logarithm is taken another way."""


def mean_nll(hidden: Tensor, embedding: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean cross entropy of tied-head logits; with weights w the mean of w * cross entropy.

    Args:
        hidden: [positions, hidden], after the final norm.
        embedding: [vocab, hidden].
        targets: [positions], long.
        weights: [positions] of hidden's dtype; they are not normalised, and carry no gradient.

    Returns:
        Scalar, nats per target; differentiable in `hidden` and `embedding`.
    """
    if torch.is_grad_enabled() and (hidden.requires_grad or embedding.requires_grad):
        return _MeanNll.apply(hidden, embedding, targets, weights)  # type: ignore[no-any-return, no-untyped-call]
    return _weighted_mean(position_nll(hidden, embedding, targets), weights)


def token_nll(model: Decoder, ids: Tensor) -> Tensor:
    """Cross entropy of every next token.

    Args:
        model: the decoder.
        ids: [batch, T], long.

    Returns:
        [batch, T - 1] float32, nats; entry t is that of token t + 1. Carries no gradient.
    """
    with torch.no_grad():
        hidden = model(ids[:, :-1])
        flat = hidden.reshape(-1, hidden.shape[-1])
        nll = position_nll(flat, model.embedding.weight, ids[:, 1:].reshape(-1))
    return nll.view(ids.shape[0], -1)


def position_nll(hidden: Tensor, embedding: Tensor, targets: Tensor) -> Tensor:
    """[positions] cross entropy in nats, without gradient; float32, or float64 of float64."""
    exact = torch.promote_types(hidden.dtype, torch.float32)
    nll = torch.empty(hidden.shape[0], 1, dtype=exact, device=hidden.device)
    head = embedding.t()
    for start in range(0, hidden.shape[0], CHUNK):
        target = targets[start : start + CHUNK].unsqueeze(1)
        logits = torch.mm(hidden[start : start + CHUNK], head).to(exact)
        torch.gather(torch.log_softmax(logits, 1), 1, target, out=nll[start : start + CHUNK])
    return nll.neg_().squeeze(1)


class _MeanNll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, embedding: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        count, vocab = hidden.shape[0], embedding.shape[0]
        grad_hidden = torch.empty_like(hidden)
        grad_head = hidden.new_zeros(hidden.shape[1], vocab)
        chosen = hidden.new_empty(count, 1)
        logits, chances = hidden.new_empty(2, min(CHUNK, count), vocab)
        head = embedding.t()
        for start in range(0, count, CHUNK):
            h, target = hidden[start : start + CHUNK], targets[start : start + CHUNK].unsqueeze(1)
            chance = chances[: h.shape[0]]
            torch.softmax(torch.mm(h, head, out=logits[: h.shape[0]]), 1, out=chance)
            torch.gather(chance, 1, target, out=chosen[start : start + CHUNK])
            chance.scatter_add_(1, target, torch.full_like(target, -1, dtype=hidden.dtype))
            if weights is not None:
                chance.mul_(weights[start : start + CHUNK].unsqueeze(1))
            torch.mm(chance, embedding, out=grad_hidden[start : start + CHUNK])
            grad_head.addmm_(h.t(), chance)
        ctx.save_for_backward(grad_hidden, grad_head)
        if chosen.min() < LEAST_CHANCE:
            return _weighted_mean(position_nll(hidden, embedding, targets), weights)
        return _weighted_mean(chosen.log_().squeeze(1), weights).neg_()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden, grad_head = ctx.saved_tensors
        scale = grads[0] / grad_hidden.shape[0]
        return grad_hidden * scale, grad_head.t() * scale, None, None


def _weighted_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    return values.mean() if weights is None else (values * weights).mean()
