"""Peak memory of a job, beyond what a worker needs with no model at all. No torch here.

The constants were fitted to measured growth of resident memory; a test holds the predictions within
25% of it for three presets.
"""

from __future__ import annotations

from potluck.lm.config import ModelConfig

FLOAT_BYTES = 4
LOSS_CHUNK = 256


def predict_training_bytes(config: ModelConfig, *, batch_size: int, sequence: int) -> int:
    """Peak bytes of float32 training steps on [batch_size, sequence] inputs.

    Weights, gradients and two moments, the activations kept for the backward pass, one chunk of
    logits, and the fixed cost of the first step (thread pools, kernels' own code and buffers).
    """
    tokens = batch_size * sequence
    states = 4 * FLOAT_BYTES * config.num_parameters
    block = 10 * config.hidden + 4 * config.ffn
    activations = FLOAT_BYTES * tokens * (config.layers * block + 6 * config.hidden)
    logits = FLOAT_BYTES * LOSS_CHUNK * config.vocab
    return FIXED_BYTES + states + activations + logits


def predict_inference_bytes(config: ModelConfig, *, batch_size: int, sequence: int) -> int:
    """Peak bytes of float32 scoring of [batch_size, sequence] rows."""
    tokens = batch_size * sequence
    states = FLOAT_BYTES * config.num_parameters
    activations = FLOAT_BYTES * tokens * (6 * config.hidden + 4 * config.ffn)
    logits = FLOAT_BYTES * LOSS_CHUNK * config.vocab
    return FIXED_BYTES + states + activations + logits


FIXED_BYTES = 24 << 20
