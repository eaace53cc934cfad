"""Shapes of the decoder, and the ladder of presets. No torch here: plans read it too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from potluck.config import added
from potluck.errors import SpecError


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A Llama-shaped decoder: RMSNorm, RoPE, SwiGLU, tied embeddings."""

    vocab: int
    hidden: int
    layers: int
    heads: int
    ffn: int
    """Width of the SwiGLU's inner layer, D_ff."""
    context: int
    """Longest sequence the rotary table is built for."""
    attention: Literal["row", "document"] = added("row")
    """`document`: a token sees only its own document, positions begin anew after each `<eod>` (token 0)."""

    def __post_init__(self) -> None:
        for name in ("vocab", "hidden", "layers", "heads", "ffn", "context"):
            if getattr(self, name) < 1:
                raise SpecError("spec.bad-value", f"model {name} = {getattr(self, name)}", "give at least 1")
        if self.hidden % (2 * self.heads):
            raise SpecError(
                "spec.bad-value",
                f"model hidden = {self.hidden} with heads = {self.heads}",
                "hidden must be a multiple of 2 x heads, for rotary pairs",
            )

    @property
    def num_parameters(self) -> int:
        """Embeddings counted once, for they are tied."""
        block = 4 * self.hidden**2 + 3 * self.hidden * self.ffn + 2 * self.hidden
        return self.vocab * self.hidden + self.layers * block + self.hidden


@dataclass(frozen=True, kw_only=True)
class Preset:
    hidden: int
    layers: int
    heads: int
    ffn: int


def _preset(hidden: int, layers: int, heads: int) -> Preset:
    """D_ff is 8/3 of the width, rounded up to a multiple of 8, as in Llama."""
    return Preset(hidden=hidden, layers=layers, heads=heads, ffn=-(-hidden * 8 // 24) * 8)


PRESETS: dict[str, Preset] = {
    "router-16": _preset(16, 2, 2),
    "router-24": _preset(24, 2, 2),
    "router-48": _preset(48, 4, 4),
    "router-96": _preset(96, 12, 12),
    "0.04M": _preset(24, 2, 2),
    "0.05M": _preset(32, 2, 2),
    "0.08M": _preset(40, 2, 2),
    "0.11M": _preset(48, 2, 2),
    "0.16M": _preset(64, 2, 2),
    "0.35M": _preset(96, 2, 3),
    "0.9M": _preset(128, 4, 4),
    "2.5M": _preset(192, 5, 4),
    "6M": _preset(256, 7, 4),
    "14M": _preset(384, 7, 6),
    "30M": _preset(512, 9, 8),
    "60M": _preset(640, 12, 10),
    "100M": _preset(768, 14, 12),
    "160M": _preset(896, 14, 14),
    "335M": _preset(1024, 24, 16),
    "760M": _preset(1536, 24, 12),
    "1.3B": _preset(2048, 24, 16),
}
"""Experts are named by what they count, tied embeddings included: up to 100M with a vocabulary of 1,024 to 4,096,
above with 32,000. 335M and 1.3B are the widths and depths of SmallTalk's experts (2410.03529)."""
