"""How well models predict rows: for evaluation, for routing, and for one prompt against all routers at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from potluck.lm.config import ModelConfig
from potluck.lm.documents import document_positions, hidden_keys
from potluck.lm.kernels import unit_norm
from potluck.lm.loss import token_nll
from potluck.lm.model import Decoder, load_decoder, rotate


def nll_sums(
    model: Decoder, rows: NDArray[np.uint16], num_targets: NDArray[np.int32], *, prefix: int, batch_size: int
) -> NDArray[np.float64]:
    """Sums of token cross entropies, before and after the prefix.

    Args:
        model: the decoder.
        rows: [n, C], tokens 1..C.
        num_targets: [n]; only the first so many of a row's C - 1 targets are real, the rest is padding.
        prefix: M; targets 2..M are the prefix's.
        batch_size: rows a forward pass.

    Returns:
        [n, 2], nats: column 0 over targets 2..M, column 1 over targets M+1 and later.
    """
    sums = np.zeros((len(rows), 2))
    for start in range(0, len(rows), batch_size):
        nll = token_nll(model, _ids(model, rows[start : start + batch_size])).cpu().numpy().astype(np.float64)
        real = np.arange(nll.shape[1]) < num_targets[start : start + batch_size, None]
        nll[~real] = 0.0
        sums[start : start + batch_size, 0] = nll[:, : prefix - 1].sum(1)
        sums[start : start + batch_size, 1] = nll[:, prefix - 1 :].sum(1)
    return sums


def prefix_mean_nll(model: Decoder, rows: NDArray[np.uint16], *, prefix: int, batch_size: int) -> NDArray[np.float32]:
    """Mean cross entropy of targets 2..M of every row; reads its first M columns only.

    Args:
        model: the decoder.
        rows: [n, M or more].
        prefix: M, at least 2.
        batch_size: rows a forward pass; small batches stay in cache.

    Returns:
        [n], nats per target.
    """
    means = np.empty(len(rows), dtype=np.float32)
    for start in range(0, len(rows), batch_size):
        ids = _ids(model, rows[start : start + batch_size, :prefix])
        means[start : start + batch_size] = token_nll(model, ids).mean(1).cpu().numpy()
    return means


class StackedDecoders:
    """E decoders of one shape, run as one batched forward: what a router asks for every request."""

    def __init__(self, config: ModelConfig, weights: Sequence[Path]) -> None:
        """Loads E checkpoints.

        Raises:
            DataError: a file is not a checkpoint of this config.
            ValueError: there is no file.
        """
        if not weights:
            raise ValueError("no decoders to stack: give at least one weights file")
        self.config = config
        decoders = [load_decoder(config, path) for path in weights]
        named = [dict(decoder.named_parameters()) for decoder in decoders]
        self._weights = {name: torch.stack([n[name].detach() for n in named]) for name in named[0]}
        self._rotary = decoders[0].rotary

    def prefix_nll(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Mean cross entropy of a prompt's targets under each decoder.

        Args:
            ids: the prompt's tokens, at most `config.context` of them.

        Returns:
            [E], nats per target. One token has no target and is no evidence: zeros.

        Raises:
            ValueError: there is no token, or there are more than the context.
        """
        if not 1 <= len(ids) <= self.config.context:
            raise ValueError(f"{len(ids)} tokens to score: give 1 to {self.config.context}")
        num_decoders = self._weights["norm"].shape[0]
        if len(ids) == 1:
            return np.zeros(num_decoders, dtype=np.float32)
        tokens = torch.tensor(ids, dtype=torch.long)
        with torch.no_grad():
            hidden_ETH = self._forward(tokens[:-1])
            embedding = self._weights["embedding.weight"]
            log_sums = [torch.logsumexp(h @ e.t(), dim=1) for h, e in zip(hidden_ETH, embedding, strict=True)]
            hits = (hidden_ETH * embedding[:, tokens[1:]]).sum(-1)
            nll_E = (torch.stack(log_sums) - hits).mean(1)
        return nll_E.numpy()

    def _forward(self, tokens: Tensor) -> Tensor:
        """[T] tokens to [E, T, hidden], as `Decoder.forward` but with stacked weights."""
        x = self._weights["embedding.weight"][:, tokens]
        e, t, h = x.shape
        heads, head_dim = self.config.heads, h // self.config.heads
        rotary, visible = self._rotary[:t], None
        if self.config.attention == "document":
            rotary, visible = self._rotary[document_positions(tokens)], ~hidden_keys(tokens)
        for layer in range(self.config.layers):
            part = {name: self._weights[f"blocks.{layer}.{name}"] for name in _BLOCK_WEIGHTS}
            normed = _stacked_norm(x, part["attention_norm"])
            q, k, v = torch.bmm(normed, part["qkv"].mT).view(e, t, 3, heads, head_dim).unbind(2)
            q, k = rotate(q, rotary), rotate(k, rotary)
            mixed = _attend(q, k, v, visible)
            x = x + torch.bmm(mixed.reshape(e, t, h), part["out"].mT)
            normed = _stacked_norm(x, part["ffn_norm"])
            gate, up = torch.bmm(normed, part["gate_up"].mT).chunk(2, dim=-1)
            x = x + torch.bmm(torch.nn.functional.silu(gate) * up, part["down"].mT)
        return _stacked_norm(x, self._weights["norm"])


_BLOCK_WEIGHTS = ("attention_norm", "qkv", "out", "ffn_norm", "gate_up", "down")


def _attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    """Attention to the visible [T, T] keys, without that to all that are not later; all [E, T, heads, head_dim]."""
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=visible, is_causal=visible is None)
    return mixed.transpose(1, 2)


def _stacked_norm(x: Tensor, weight: Tensor) -> Tensor:
    """Args: x [E, T, hidden]; weight [E, hidden]."""
    return unit_norm(x) * weight.unsqueeze(1)


def _ids(model: Decoder, rows: NDArray[Any]) -> Tensor:
    return torch.from_numpy(rows.astype(np.int64)).to(model.embedding.weight.device)
