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
SAFE_LOGIT = 60.0
"""exp() of logits within +-60 neither overflows nor vanishes in float32, sums of 65,536 included."""


def mean_nll(hidden: Tensor, embedding: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy of tied-head logits.

    Args:
        hidden: [positions, hidden], after the final norm.
        embedding: [vocab, hidden].
        targets: [positions], long.

    Returns:
        Scalar, nats per target; differentiable in `hidden` and `embedding`.
    """
    if torch.is_grad_enabled() and (hidden.requires_grad or embedding.requires_grad):
        return _MeanNll.apply(hidden, embedding, targets)  # type: ignore[no-any-return, no-untyped-call]
    return position_nll(hidden, embedding, targets).mean()


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
    """[positions] float32 cross entropy in nats, without gradient; the target's logit is a dot product."""
    nll = torch.empty(hidden.shape[0], dtype=torch.float32, device=hidden.device)
    head = embedding.t()
    safe = _is_safe(hidden, embedding)
    for start in range(0, hidden.shape[0], CHUNK):
        h = hidden[start : start + CHUNK]
        log_sum = _exp_sum(torch.mm(h, head).float(), safe=safe)[1]
        nll[start : start + CHUNK] = log_sum
    return nll.sub_((hidden * embedding[targets]).sum(1, dtype=torch.float32))


def _is_safe(hidden: Tensor, embedding: Tensor) -> bool:
    """Whether Cauchy and Schwarz bound every logit by SAFE_LOGIT, so that exp() needs no shift."""
    bound = torch.linalg.vector_norm(hidden, dim=1).amax() * torch.linalg.vector_norm(embedding, dim=1).amax()
    return bool(bound <= SAFE_LOGIT)


def _exp_sum(logits: Tensor, *, safe: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Overwrites logits by their (shifted) exponentials; returns (sum [n, 1], log-sum-exp [n], exponentials)."""
    if safe:
        exponentials = logits.exp_()
        total = exponentials.sum(1, keepdim=True)
        return total, total.log().squeeze(1), exponentials
    top = logits.amax(1, keepdim=True)
    exponentials = logits.sub_(top).exp_()
    total = exponentials.sum(1, keepdim=True)
    return total, (total.log() + top).squeeze(1), exponentials


class _MeanNll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, embedding: Tensor, targets: Tensor) -> Tensor:
        count = hidden.shape[0]
        grad_hidden = torch.empty_like(hidden)
        grad_embedding = torch.zeros_like(embedding)
        nll = torch.empty(count, dtype=hidden.dtype, device=hidden.device)
        logits = torch.empty(min(CHUNK, count), embedding.shape[0], dtype=hidden.dtype, device=hidden.device)
        head = embedding.t()
        safe = _is_safe(hidden, embedding)
        for start in range(0, count, CHUNK):
            h = hidden[start : start + CHUNK]
            target = targets[start : start + CHUNK].unsqueeze(1)
            chunk = logits[: h.shape[0]]
            torch.mm(h, head, out=chunk)
            hit = chunk.gather(1, target).squeeze(1)
            total, log_sum, chunk = _exp_sum(chunk, safe=safe)
            nll[start : start + CHUNK] = log_sum - hit
            # d nll / d logits = exponentials / total - onehot. The one-hot goes in times `total`, the division
            # is left to the narrow side of both products, so the wide array is passed over no more.
            chunk.scatter_add_(1, target, total.neg())
            weight = total.reciprocal_().mul_(1.0 / count)
            torch.mm(chunk, embedding, out=grad_hidden[start : start + CHUNK])
            grad_hidden[start : start + CHUNK].mul_(weight)
            grad_embedding.addmm_(chunk.t(), h * weight)
        ctx.save_for_backward(grad_hidden, grad_embedding)
        return nll.mean()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_hidden, grad_embedding = ctx.saved_tensors
        return grad_hidden * grads[0], grad_embedding * grads[0], None
