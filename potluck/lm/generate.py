"""Text one token at a time, with the keys and values of earlier tokens kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from potluck.errors import UsageError
from potluck.lm.model import Block, Decoder, rms_norm, rotate


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    max_tokens: int
    temperature: float = 0.0
    """0 takes the likeliest token; else logits are divided by it."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float = 1.0
    """Then keep the fewest likeliest tokens whose probabilities reach p."""
    seed: int = 0

    def __post_init__(self) -> None:
        checks = {
            "max_tokens": (self.max_tokens >= 1, "1 or more"),
            "temperature": (self.temperature >= 0, "0 or more"),
            "top_k": (self.top_k >= 0, "0 (all) or more"),
            "top_p": (0 < self.top_p <= 1, "above 0, at most 1"),
        }
        for name, (ok, allowed) in checks.items():
            if not ok:
                raise UsageError("usage.bad-sampling", f"{name} = {getattr(self, name)}", f"allowed: {allowed}")


def generate(model: Decoder, ids: Sequence[int], params: SamplingParams, *, eod: int = 0) -> Iterator[int]:
    """Yields the continuation of a prompt, token by token, at most `params.max_tokens`.

    The model sees at most `config.context - 1` tokens, as many as in training. Whenever there would be
    more, prompt included, the window is cut to the last half of that and its keys and values are
    computed anew from position 0. Stops after `eod`, which is yielded too.

    Raises:
        UsageError: ``usage.empty-prompt``.
    """
    if not ids:
        raise UsageError("usage.empty-prompt", "the prompt has no tokens", "give at least one token")
    return _continue(model, list(ids), params, eod)


def _continue(model: Decoder, ids: list[int], params: SamplingParams, eod: int) -> Iterator[int]:
    limit = max(1, model.config.context - 1)
    generator = torch.Generator().manual_seed(params.seed)
    window = ids if len(ids) <= limit else ids[-max(1, limit // 2) :]
    cache = _Cache(model, limit)
    fresh = window
    for produced in range(params.max_tokens):
        token = choose_token(cache.logits(fresh), params, generator)
        yield token
        if token == eod or produced + 1 == params.max_tokens:
            return
        window = [*window, token]
        fresh = [token]
        if len(window) > limit:
            window = fresh = window[-max(1, limit // 2) :]
            cache.clear()


def choose_token(logits: Tensor, params: SamplingParams, generator: torch.Generator) -> int:
    """Picks a token from [vocab] logits; ties of the likeliest go to the lower token."""
    if params.temperature == 0:
        return int(logits.argmax())
    ordered, tokens = torch.sort(logits.float() / params.temperature, descending=True, stable=True)
    if params.top_k:
        ordered, tokens = ordered[: params.top_k], tokens[: params.top_k]
    probabilities = torch.softmax(ordered, 0)
    before = probabilities.cumsum(0) - probabilities
    probabilities = probabilities * (before < params.top_p)
    return int(tokens[torch.multinomial(probabilities, 1, generator=generator)])


class _Cache:
    """Keys and values of one window, per block [2, limit, heads, head_dim]."""

    def __init__(self, model: Decoder, limit: int) -> None:
        config = model.config
        self._model = model
        self._length = 0
        shape = (config.layers, 2, limit, config.heads, config.hidden // config.heads)
        self._kept = torch.empty(shape, dtype=model.norm.dtype, device=model.norm.device)

    def clear(self) -> None:
        self._length = 0

    @torch.no_grad()
    def logits(self, tokens: list[int]) -> Tensor:
        """Appends tokens to the window; returns the [vocab] float32 logits of what follows them."""
        model, end = self._model, self._length + len(tokens)
        x = model.embedding(torch.tensor(tokens, dtype=torch.long, device=self._kept.device))
        rotary = model.rotary[self._length : end]
        for layer, block in enumerate(model.blocks):
            assert isinstance(block, Block)
            x = self._block(block, x, rotary, self._kept[layer, :, :end])
        self._length = end
        last = rms_norm(x[-1], model.norm)
        return (model.embedding.weight @ last).float().cpu()

    def _block(self, block: Block, x: Tensor, rotary: Tensor, kept: Tensor) -> Tensor:
        """x [n, hidden] are the newest tokens; kept [2, end, heads, head_dim] has room for their keys and values."""
        n, h = x.shape
        q, k, v = F.linear(rms_norm(x, block.attention_norm), block.qkv).view(n, 3, block.heads, -1).unbind(1)
        kept[0, -n:], kept[1, -n:] = rotate(k, rotary), v
        q = rotate(q, rotary).transpose(0, 1).unsqueeze(0)
        keys, values = kept.transpose(1, 2).unsqueeze(1).unbind(0)
        # One new token sees everything kept; several are the start of a window and see it causally.
        mixed = F.scaled_dot_product_attention(q, keys, values, is_causal=n > 1)
        x = x + F.linear(mixed.squeeze(0).transpose(0, 1).reshape(n, h), block.out)
        gate, up = F.linear(rms_norm(x, block.ffn_norm), block.gate_up).chunk(2, dim=-1)
        return x + F.linear(F.silu(gate) * up, block.down)
