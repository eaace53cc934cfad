"""The decoder: RMSNorm (1910.07467), rotary positions (2104.09864), SwiGLU (2002.05202), tied embeddings.

Linear layers have no bias. Queries, keys and values are one product, SwiGLU's two inner layers too.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potluck.errors import DataError
from potluck.lm.config import ModelConfig
from potluck.lm.documents import document_positions, hidden_keys
from potluck.lm.kernels import (
    NORM_EPSILON,
    additive_mask,
    causal_attention,
    future_mask,
    rotary_rows,
    suits_kernels,
    swiglu,
    unit_norm,
)
from potluck.lm.recompute import recomputed
from potluck.lm.tensors import FLOATS, load_tensors, tensor_shapes

ROTARY_BASE = 10_000.0
EMBEDDING_SCALE, READING_SCALE, WRITING_SCALE = 0.6, 0.5, 0.1


class Block(nn.Module):
    """x + attention(norm(x)), then x + swiglu(norm(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        h, f = config.hidden, config.ffn
        self.heads = config.heads
        self.attention_norm = nn.Parameter(torch.ones(h))
        self.qkv = nn.Parameter(torch.empty(3 * h, h))
        self.out = nn.Parameter(torch.empty(h, h))
        self.ffn_norm = nn.Parameter(torch.ones(h))
        self.gate_up = nn.Parameter(torch.empty(2 * f, h))
        self.down = nn.Parameter(torch.empty(h, f))

    def plainly(self, x: Tensor, rotary: Tensor, visible: Tensor | None = None) -> Tensor:
        """One block by torch's own operations.

        Args:
            x: [batch, T, hidden].
            rotary: [T, head_dim / 2] complex, or [batch, T, head_dim / 2] where rows differ in their positions.
            visible: [batch, 1, T, T] bool, the keys that a query sees; without it, all that are not after it.

        Returns:
            [batch, T, hidden]
        """
        b, t, h = x.shape
        qkv = F.linear(rms_norm(x, self.attention_norm), self.qkv)
        q, k, v = qkv.view(b, t, 3, self.heads, h // self.heads).unbind(2)
        q, k = rotate(q, rotary), rotate(k, rotary)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, is_causal=visible is None)
        x = x + F.linear(mixed.transpose(1, 2).reshape(b, t, h), self.out)
        gate, up = F.linear(rms_norm(x, self.ffn_norm), self.gate_up).chunk(2, dim=-1)
        return x + F.linear(F.silu(gate) * up, self.down)

    def by_kernels(self, x: Tensor, rotary: Tensor, mask: Tensor) -> Tensor:
        """The same by `potluck.lm.kernels`, with rotary and mask as they want them.

        The norms' gains go into the small matrices behind them, residual sums into the products before them.
        """
        b, t, h = x.shape
        x = x.view(b * t, h)
        qkv = torch.mm(unit_norm(x), (self.qkv * self.attention_norm).t())
        mixed = causal_attention(qkv.view(b, t, 3 * h), rotary, mask, self.heads)
        x = torch.addmm(x, mixed.view(b * t, h), self.out.t())
        inner = swiglu(unit_norm(x), self.gate_up * self.ffn_norm)
        return torch.addmm(x, inner, self.down.t()).view(b, t, h)


class Decoder(nn.Module):
    """A language model without its output layer, which is the embedding again."""

    rotary: Tensor

    def __init__(self, config: ModelConfig) -> None:
        """Builds the modules; the weights are uninitialised until `init_decoder` or `load_decoder` fills them."""
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        """Keep of each block only its input, and compute the rest again in the backward pass (1604.06174)."""
        self.embedding = nn.Embedding(config.vocab, config.hidden, _weight=torch.empty(config.vocab, config.hidden))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.Parameter(torch.ones(config.hidden))
        self.register_buffer("rotary", rotary_table(config), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Args: ids [batch, T] long, T <= context. Returns [batch, T, hidden], after the final norm."""
        x = self.embedding(ids)
        rotary, hidden = self.rotary[: ids.shape[1]], None
        if self.config.attention == "document":
            rotary, hidden = self.rotary[document_positions(ids)], hidden_keys(ids)
        blocks = cast("list[Block]", self.blocks)
        if suits_kernels(x):
            rows = rotary_rows(rotary, self.config.heads)
            mask = future_mask(ids.shape[1], x) if hidden is None else additive_mask(hidden, x)
            for block in blocks:
                x = self._through(block.by_kernels, x, rows, mask)
        else:
            visible = None if hidden is None else ~hidden.unsqueeze(1)
            for block in blocks:
                x = self._through(block.plainly, x, rotary, visible)
        return rms_norm(x, self.norm)

    def _through(self, block: Callable[..., Tensor], x: Tensor, *positions: Tensor | None) -> Tensor:
        if self.activation_checkpointing and torch.is_grad_enabled():
            return recomputed(block, x, *positions)
        return block(x, *positions)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """x / sqrt(mean(x^2) + epsilon) * weight over the last dimension."""
    if x.dtype in (torch.float32, torch.float64):
        return unit_norm(x) * weight
    return F.rms_norm(x, (x.shape[-1],), weight, NORM_EPSILON)


def rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Turns neighbouring pairs of features by their position's angle.

    Args:
        x: [batch, T, heads, head_dim].
        rotary: [T, head_dim / 2] complex, of unit length; or [batch, T, head_dim / 2].
    """
    pairs = torch.view_as_complex(x.float().view(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * rotary.unsqueeze(-2)).flatten(-2).to(x.dtype)


def rotary_table(config: ModelConfig) -> Tensor:
    """[context, head_dim / 2] complex64: exp(i position base^(-2 j / head_dim)), angles taken in float64."""
    head_dim = config.hidden // config.heads
    frequencies = ROTARY_BASE ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angles = torch.outer(torch.arange(config.context, dtype=torch.float64), frequencies)
    return torch.polar(torch.ones_like(angles), angles).to(torch.complex64)


def init_decoder(config: ModelConfig, *, seed: int) -> Decoder:
    """A fresh decoder; equal config and seed give equal bits.

    Normal with deviation c / sqrt(fan-in): c is 0.6 for the embedding, 0.5 for what reads the residual
    stream, 0.1 / sqrt(2 L) for what writes to it; norms are ones. Chosen on 0.08M parameters and 700
    steps of mixed text (one seed): held-out loss was lower than with c = 1, 1 and 1 at each of the
    learning rates 3e-3 (by 0.17 nats), 6e-3, 1.2e-2 and 2.4e-2 (by 0.01).
    """
    generator = torch.Generator().manual_seed(seed)
    model = Decoder(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() < 2:
                continue
            scale = READING_SCALE
            if name.startswith("embedding."):
                scale = EMBEDDING_SCALE
            elif name.endswith((".out", ".down")):
                scale = WRITING_SCALE * (2 * config.layers) ** -0.5
            weight.normal_(0.0, scale * weight.shape[1] ** -0.5, generator=generator)
    return model


def load_decoder(config: ModelConfig, weights: Path, *, dtype: str = "float32") -> Decoder:
    """A decoder for inference from a checkpoint's weights, in `dtype`: float32 or bfloat16.

    Raises:
        DataError: ``data.wrong-weights`` or ``data.bad-tensors``, the file is not a checkpoint of this config.
    """
    model = Decoder(config)
    load_weights(model, weights)
    for parameter in model.parameters():  # not the rotary table, which stays exact
        parameter.data = parameter.data.to(getattr(torch, dtype))
    return model.eval()


def load_weights(model: Decoder, weights: Path) -> None:
    """Copies a safetensors file into a model.

    The bytes are copied to the model's own, aligned memory: products of unaligned memory may round
    otherwise than those of aligned memory.

    Raises:
        DataError: ``data.bad-tensors``, it is no safetensors file; ``data.wrong-weights``, names or shapes differ,
            or what it holds are no floats. Neither reads more than the header.
    """
    header = tensor_shapes(weights)
    wanted = {name: tuple(p.shape) for name, p in model.named_parameters()}
    found = {name: shape for name, (dtype, shape) in header.items() if dtype in FLOATS}
    if wanted != found or len(header) != len(found):
        odd = sorted(set(wanted.items()) ^ set(found.items()))[:4]
        fix = "use the config of the recipe that made this checkpoint"
        raise DataError("data.wrong-weights", f"{weights} does not hold {model.config}: {odd} differ", fix)
    tensors = load_tensors(weights)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[name])
