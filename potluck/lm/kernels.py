"""The parts of a block whose gradients are written out by hand.

On one core and at a few dozen features, a step's time goes into passes over memory rather than into
arithmetic. Each part here says what is kept, in which layout, and makes the fewest passes: rotary
positions are one product over contiguous memory, SwiGLU's two halves are contiguous arrays, attention
keeps its probabilities instead of computing them twice. They equal the plain formulas; tests hold them to it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

NORM_EPSILON = 1e-6
QUERY_BLOCK = 64
SHORT_ROW = 256
"""Up to here attention's probabilities are kept; beyond, memory would grow with the square of the row."""


def suits_kernels(x: Tensor) -> bool:
    """Whether [batch, T, hidden] activations are what these parts are made for: short rows, full precision, CPU."""
    plain = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
    return plain and x.shape[1] <= SHORT_ROW and not torch.is_autocast_enabled("cpu")


def unit_norm(x: Tensor) -> Tensor:
    """x / sqrt(mean(x^2) + epsilon) over the last dimension: RMSNorm (1910.07467) before its gain."""
    return _UnitNorm.apply(x)  # type: ignore[no-any-return, no-untyped-call]


def causal_attention(qkv: Tensor, rotary: Tensor, mask: Tensor, heads: int) -> Tensor:
    """Rotary causal attention that keeps its [T, T] probabilities: for short rows.

    Args:
        qkv: [batch, T, 3 hidden], float32 or float64.
        rotary: [T, 3 hidden / 2] or [batch, T, 3 hidden / 2] complex, from `rotary_rows`.
        mask: [T, T] from `future_mask`, or [batch, T, T] from `additive_mask`.
        heads: how many.

    Returns:
        [batch, T, hidden]
    """
    return _CausalAttention.apply(qkv, rotary, mask, heads)  # type: ignore[no-any-return, no-untyped-call]


def swiglu(x: Tensor, gate_up: Tensor) -> Tensor:
    """silu(x @ gate^T) * (x @ up^T) (2002.05202).

    Args:
        x: [positions, hidden].
        gate_up: [2 ffn, hidden], the gate's rows first.

    Returns:
        [positions, ffn]
    """
    return _SwiGlu.apply(x, gate_up)  # type: ignore[no-any-return, no-untyped-call]


def rotary_rows(rotary: Tensor, heads: int) -> Tensor:
    """[..., T, head_dim / 2] to [..., T, 3 heads head_dim / 2]: what queries, keys and values are multiplied by.

    The queries' part also carries attention's 1 / sqrt(head_dim); the values' part is ones.
    """
    scale = (2 * rotary.shape[-1]) ** -0.5
    keys = torch.cat([rotary] * heads, dim=-1)
    return torch.cat([keys * scale, keys, torch.ones_like(keys)], dim=-1)


def future_mask(t: int, like: Tensor) -> Tensor:
    """[T, T]: minus infinity where the key lies after the query, else zero."""
    return like.new_full((t, t), -torch.inf).triu_(1)


def additive_mask(hidden: Tensor, like: Tensor) -> Tensor:
    """[batch, T, T] bool to what attention's scores are added to: minus infinity where hidden, else zero."""
    return like.new_zeros(hidden.shape).masked_fill_(hidden, -torch.inf)


class _UnitNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        scale = torch.linalg.vecdot(x, x).unsqueeze(-1).div_(x.shape[-1]).add_(NORM_EPSILON).rsqrt_()
        normed: Tensor = x * scale
        ctx.save_for_backward(normed, scale)
        return normed

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        normed, scale = ctx.saved_tensors
        along = torch.linalg.vecdot(grads[0], normed).unsqueeze(-1).div_(-normed.shape[-1])
        return torch.addcmul(grads[0], normed, along).mul_(scale)


class _CausalAttention(torch.autograd.Function):
    """Queries go in blocks; a block multiplies with the keys up to its own end, so little of the future is computed."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, rotary: Tensor, mask: Tensor, heads: int) -> Tensor:
        b, t, width = qkv.shape
        parts = _turned(qkv, rotary).view(b, t, 3, heads, width // (3 * heads)).permute(2, 0, 3, 1, 4)
        q, k, v = parts.reshape(3, b * heads, t, -1)
        mixed = torch.empty_like(q)
        attention = []
        for start, end in _blocks(t):
            scores = _masked_scores(mask[..., start:end, :end], q[:, start:end], k[:, :end])
            attention.append(torch.softmax(scores, dim=-1))
            mixed[:, start:end] = torch.bmm(attention[-1], v[:, :end])
        ctx.save_for_backward(q, k, v, rotary, *attention)
        return mixed.view(b, heads, t, -1).transpose(1, 2).reshape(b, t, width // 3)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        q, k, v, rotary, *attention = ctx.saved_tensors
        b, t, h = grads[0].shape
        heads = q.shape[0] // b
        grad = grads[0].view(b, t, heads, -1).transpose(1, 2).reshape(q.shape)
        parts = torch.zeros(3, *q.shape, dtype=q.dtype, device=q.device)
        grad_q, grad_k, grad_v = parts
        for (start, end), chances in zip(_blocks(t), attention, strict=True):
            g = grad[:, start:end]
            scores = torch._softmax_backward_data(torch.bmm(g, v[:, :end].mT), chances, -1, q.dtype)
            grad_q[:, start:end] = torch.bmm(scores, k[:, :end])
            grad_k[:, :end] += torch.bmm(scores.mT, q[:, start:end])
            grad_v[:, :end] += torch.bmm(chances.mT, g)
        rows = parts.view(3, b, heads, t, -1).permute(1, 3, 0, 2, 4).reshape(b, t, 3 * h)
        return _turned(rows, rotary.conj().resolve_conj()), None, None, None


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate_up: Tensor) -> Tensor:
        gate_weight, up_weight = gate_up.chunk(2)
        gate, up = torch.mm(x, gate_weight.t()), torch.mm(x, up_weight.t())
        open_gate = torch.nn.functional.silu(gate)
        ctx.save_for_backward(x, gate_up, gate, up, open_gate)
        return open_gate * up

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, gate_up, gate, up, open_gate = ctx.saved_tensors
        (grad,) = grads
        gate_weight, up_weight = gate_up.chunk(2)
        grad_gate = torch.ops.aten.silu_backward(grad * up, gate)
        grad_up = grad * open_gate
        grad_weights = torch.empty_like(gate_up)
        grad_weights[: len(gate_weight)] = torch.mm(x.t(), grad_gate).t()
        grad_weights[len(gate_weight) :] = torch.mm(x.t(), grad_up).t()
        return torch.mm(grad_gate, gate_weight).addmm_(grad_up, up_weight), grad_weights


def _masked_scores(mask: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """mask + q k^T, [batch heads, queries, keys]; a mask of each row [batch, queries, keys] is shared by its heads."""
    if mask.dim() == 2:
        return torch.baddbmm(mask, q, k.mT)
    scores = torch.bmm(q, k.mT)
    scores.view(len(mask), -1, *scores.shape[1:]).add_(mask.unsqueeze(1))
    return scores


def _blocks(t: int) -> list[tuple[int, int]]:
    return [(start, min(start + QUERY_BLOCK, t)) for start in range(0, t, QUERY_BLOCK)]


def _turned(rows: Tensor, rotary: Tensor) -> Tensor:
    """[batch, T, n] times [T, n / 2] or [batch, T, n / 2] complex, neighbours being complex numbers; contiguous."""
    b, t, n = rows.shape
    pairs = torch.view_as_complex(rows.view(b, t * n // 2, 2))
    return torch.view_as_real(pairs * rotary.view(-1, t * n // 2)).view(b, t, n)
