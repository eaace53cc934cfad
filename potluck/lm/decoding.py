"""The next token of many texts in one forward: keys and values are kept, texts join and leave at any step.

Texts of unequal length stand in one batch, each at its own positions; where one is shorter than another its
missing keys are masked. What a text's tokens are depends on its neighbours only by how products of other
sizes round.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from potluck.errors import UsageError
from potluck.lm.config import ModelConfig
from potluck.lm.documents import last_document
from potluck.lm.kernels import NORM_EPSILON
from potluck.lm.model import Block, Decoder, rotate

CACHE_BYTES = 256 << 20
"""Keys and values of all texts of one decoder, unless a single text needs more."""
MAX_SLOTS = 64
"""Beyond it a forward of more rows gives hardly more tokens a second."""


class Window:
    """The end of a text that a model sees, and how many of its tokens a decoder has kept."""

    def __init__(self, config: ModelConfig, ids: Iterable[int]) -> None:
        """
        Raises:
            UsageError: ``usage.empty-prompt``.
        """
        self._by_document = config.attention == "document"
        self._limit = window_limit(config)
        self.tokens: list[int] = list(ids)
        self.num_kept = 0
        if not self.tokens:
            raise UsageError("usage.empty-prompt", "the prompt has no tokens", "give at least one token")
        self._cut()

    @property
    def num_missing(self) -> int:
        """Tokens to be run before the last one can be: none, or all of a window that is new or was moved."""
        before_last = len(self.tokens) - 1
        return 0 if self.num_kept >= before_last else before_last

    def append(self, token: int) -> None:
        self.tokens.append(token)
        self._cut()

    def _cut(self) -> None:
        """The model sees at most `context - 1` tokens, as in training, and where it attends within documents only
        the last of them. A window that would be longer is cut to the last half of that and run from position 0."""
        seen = list(last_document(self.tokens)) if self._by_document else self.tokens
        if len(seen) > self._limit:
            seen = seen[-max(1, self._limit // 2) :]
        if len(seen) < len(self.tokens):
            self.tokens, self.num_kept = seen, 0


class BatchDecoder:
    """One model and the keys and values of the texts it goes on with."""

    def __init__(self, model: Decoder, slots: int = 0) -> None:
        """
        Args:
            slots: texts whose keys and values are kept at a time; by default as many as `CACHE_BYTES` hold, at most
                `MAX_SLOTS`. Memory is taken as they come. More windows than slots may be in use: the one not
                asked for the longest is then forgotten, and run anew when it is asked for.
        """
        self.config = config = model.config
        self._model = model
        self._blocks = cast("list[Block]", list(model.blocks))
        self._room = (config.heads, window_limit(config), config.hidden // config.heads)
        bytes_per_slot = 2 * config.layers * config.hidden * self._room[1] * model.norm.element_size()
        self.slots = slots or min(MAX_SLOTS, max(1, CACHE_BYTES // bytes_per_slot))
        # [layers, 2, slots, heads, limit, head_dim]. Zeros, for what is masked must be finite too.
        self._kept = model.norm.new_zeros(config.layers, 2, 0, *self._room)
        self._free: list[int] = []
        self._slot_of: dict[Window, int] = {}
        """By use, the latest last."""

    def leave(self, window: Window) -> None:
        """A text has ended; its slot is the next one's."""
        if (slot := self._slot_of.pop(window, None)) is not None:
            heapq.heappush(self._free, slot)
            window.num_kept = 0

    @torch.no_grad()
    def prefill(self, window: Window) -> None:
        """Runs what must be run before the window's last token; nothing if that was kept."""
        slot = self._take_slot(window)
        if not window.num_missing:
            return
        tokens = window.tokens[:-1]
        n = len(tokens)
        rotary = self._model.rotary[:n]
        x = self._embed(tokens)
        for layer, block in enumerate(self._blocks):
            q, k, v = _queries_keys_values(block, x, rotary)
            self._kept[layer, 0, slot, :, :n], self._kept[layer, 1, slot, :, :n] = k.transpose(0, 1), v.transpose(0, 1)
            if layer + 1 < len(self._blocks):
                q, k, v = (part.transpose(0, 1).unsqueeze(0) for part in (q, k, v))
                mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
                x = _rest_of_block(block, x, mixed.squeeze(0).transpose(0, 1))
        window.num_kept = n

    @torch.no_grad()
    def logits(self, windows: Sequence[Window]) -> Tensor:
        """What follows each of the windows: [windows, vocab] float32 logits, on the CPU.

        One forward of their last tokens, after the prefill of those that need one.

        Raises:
            ValueError: there are none, or more than slots.
        """
        if not 1 <= len(windows) <= self.slots:
            raise ValueError(f"{len(windows)} windows at once: give 1 to {self.slots}")
        for window in windows:
            self.prefill(window)
        order = sorted(range(len(windows)), key=lambda i: self._slot_of[windows[i]])
        ordered = [windows[i] for i in order]
        hidden = self._step(ordered)
        for window in ordered:
            window.num_kept = len(window.tokens)
        logits = F.linear(_norm(hidden, self._model.norm), self._model.embedding.weight).float().cpu()
        if order == list(range(len(order))):
            return logits
        return torch.empty_like(logits).index_copy_(0, torch.tensor(order), logits)

    def _step(self, windows: Sequence[Window]) -> Tensor:
        """Runs the last token of windows in the order of their slots: [windows, hidden] before the final norm."""
        device = self._kept.device
        places = [len(window.tokens) - 1 for window in windows]
        slots = [self._slot_of[window] for window in windows]
        end = max(places) + 1
        positions, rows = torch.tensor(places, device=device), torch.tensor(slots, device=device)
        adjoining = slots[-1] - slots[0] + 1 == len(slots)
        mask = None
        if min(places) + 1 < end:
            late = torch.arange(end, device=device) > positions.unsqueeze(1)
            mask = torch.zeros_like(late, dtype=self._kept.dtype).masked_fill_(late, -torch.inf)[:, None, None]
        x = self._embed([window.tokens[-1] for window in windows])
        rotary = self._model.rotary[positions]
        for layer, block in enumerate(self._blocks):
            q, k, v = _queries_keys_values(block, x, rotary)
            kept = self._kept[layer]
            kept[0, rows, :, positions], kept[1, rows, :, positions] = k, v
            kept = kept[:, slots[0] : slots[-1] + 1, :, :end] if adjoining else kept[:, rows, :, :end]
            mixed = F.scaled_dot_product_attention(q.unsqueeze(2), kept[0], kept[1], attn_mask=mask)
            x = _rest_of_block(block, x, mixed.squeeze(2))
        return x

    def _embed(self, tokens: list[int]) -> Tensor:
        return F.embedding(torch.tensor(tokens, device=self._kept.device), self._model.embedding.weight)

    def _take_slot(self, window: Window) -> int:
        """The slot of a window, which counts as used last now."""
        slot = self._slot_of.pop(window, None)
        if slot is None:
            if not self._free and self._kept.shape[2] < self.slots:
                self._grow()
            if not self._free:
                self.leave(next(iter(self._slot_of)))
            slot = heapq.heappop(self._free)
            self._kept[:, :, slot] = 0  # Nothing of its last text may reach this one, were it not finite.
        self._slot_of[window] = slot
        return slot

    def _grow(self) -> None:
        old = self._kept
        before = old.shape[2]
        after = min(self.slots, max(1, 2 * before))
        self._kept = old.new_zeros(*old.shape[:2], after, *self._room)
        self._kept[:, :, :before] = old
        self._free = list(range(before, after))


def window_limit(config: ModelConfig) -> int:
    """Most tokens of a window: as many as a row had in training, whose last token is a target only."""
    return max(1, config.context - 1)


def _queries_keys_values(block: Block, x: Tensor, rotary: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[n, hidden] to three of [n, heads, head_dim], the first two turned by rotary [n, head_dim / 2]."""
    joint = F.linear(_norm(x, block.attention_norm), block.qkv).view(len(x), 3 * block.heads, -1)
    q, k = rotate(joint[:, : 2 * block.heads], rotary).chunk(2, dim=1)
    return q, k, joint[:, 2 * block.heads :]


def _rest_of_block(block: Block, x: Tensor, mixed: Tensor) -> Tensor:
    """Args: x [n, hidden], the block's input; mixed [n, heads, head_dim], what attention gave. Returns [n, hidden]."""
    x = torch.addmm(x, mixed.reshape(x.shape), block.out.t())
    gate, up = F.linear(_norm(x, block.ffn_norm), block.gate_up).chunk(2, dim=-1)
    return torch.addmm(x, F.silu(gate) * up, block.down.t())


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    """As `potluck.lm.model.rms_norm`, by the operation that is quicker without a gradient."""
    return F.rms_norm(x, (x.shape[-1],), weight, NORM_EPSILON)
