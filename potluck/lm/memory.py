"""Peak memory of a job, beyond what a process needs that has torch loaded and no model. No torch here.

The formulas follow what `model.py`, `kernels.py` and `loss.py` keep; the slack and the fixed part are
measured. A test holds them within 25% of the growth of resident memory for three presets.
"""

from __future__ import annotations

from potluck.lm.config import ModelConfig

FLOAT_BYTES = 4
LOSS_CHUNK = 256
QUERY_BLOCK = 64
SHORT_ROW = 256
FIXED_BYTES = 3 << 20
"""Kernels' own buffers and code that the first step touches."""

TRAINING_SLACK = 1.15
SCORING_SLACK = 1.7
"""Holes in the heap: arrays of many sizes come and go, and freed memory is kept (`train.apply_profile`)."""


def predict_training_bytes(config: ModelConfig, *, batch_size: int, sequence: int) -> int:
    """Peak bytes of float32 training steps on inputs of [batch_size, sequence] tokens.

    Weights, gradients and two moments; what blocks keep for the backward pass; the working arrays of
    one block; the loss's chunk of logits with two gradients of the output layer.
    """
    tokens = batch_size * sequence
    states = 4 * config.num_parameters
    kept = tokens * (config.layers * _kept_per_token(config, sequence) + 4 * config.hidden)
    working = tokens * (4 * config.ffn + 3 * config.hidden)
    return FIXED_BYTES + int(FLOAT_BYTES * (states + TRAINING_SLACK * (kept + working) + _loss_floats(config, 2)))


def predict_inference_bytes(config: ModelConfig, *, batch_size: int, sequence: int) -> int:
    """Peak bytes of scoring [batch_size, sequence] rows in float32: weights, one block's working arrays, the loss."""
    tokens = batch_size * sequence
    attention = 6 * config.hidden + 2 * _probabilities_per_token(config, sequence)
    working = tokens * (2 * config.hidden + max(attention, 4 * config.ffn))
    return FIXED_BYTES + int(FLOAT_BYTES * (config.num_parameters + SCORING_SLACK * working + _loss_floats(config, 0)))


def _kept_per_token(config: ModelConfig, sequence: int) -> float:
    """Floats a block keeps for each token."""
    if sequence > SHORT_ROW:
        return 11 * config.hidden + 4 * config.ffn
    return 6 * config.hidden + 4 * config.ffn + _probabilities_per_token(config, sequence)


def _probabilities_per_token(config: ModelConfig, sequence: int) -> float:
    """Of short rows all attention probabilities are kept, in blocks of queries up to their last key."""
    return config.heads * (sequence + QUERY_BLOCK) / 2 if sequence <= SHORT_ROW else 0


def _loss_floats(config: ModelConfig, gradients: int) -> int:
    return 2 * LOSS_CHUNK * config.vocab + gradients * config.vocab * config.hidden
