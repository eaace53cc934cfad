"""FLOPs of a decoder, by the accounting of SmallTalk (2410.03529, appendix), with SwiGLU's third matrix.

F(S) = S H + L (8 S H^2 + 4 S^2 H + 6 S H D_ff) + 2 S H V + 3 S V

A multiply-add is two. Attention is charged for the full S x S square although half of it is masked.
Counted beside the matrix products: the embedding look-up (S H) and the softmax over the vocabulary
(3 S V). Not counted: norms, rotary positions, the attention's softmax, SwiGLU's gate, the optimizer.
"""

from __future__ import annotations

from potluck.lm.config import ModelConfig


def forward_flops(config: ModelConfig, sequence: int) -> float:
    """FLOPs of one forward pass over one sequence of `sequence` tokens, the output layer included."""
    s, h = float(sequence), float(config.hidden)
    block = 8 * s * h * h + 4 * s * s * h + 6 * s * h * config.ffn
    return s * h + config.layers * block + 2 * s * h * config.vocab + 3 * s * config.vocab


def train_flops(config: ModelConfig, sequence: int) -> float:
    """FLOPs of forward and backward over one sequence: three forwards."""
    return 3 * forward_flops(config, sequence)
