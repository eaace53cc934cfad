"""Peak memory of a job, beyond what a process needs that has torch loaded and no model. No torch here.

The formulas follow what `model.py`, `kernels.py` and `loss.py` keep; the slack and the fixed part are
measured. A test holds them within 20% of the growth of resident memory, with and without the options.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from potluck.errors import SpecError
from potluck.lm.config import ModelConfig
from potluck.recipe import AdamWConfig, OptimizerConfig, Profile

FLOAT_BYTES = 4
LOSS_CHUNK = 256
QUERY_BLOCK = 64
SHORT_ROW = 256
FIXED_BYTES = 3 << 20
"""Kernels' own buffers and code that the first step touches."""
MIB = 1 << 20

TRAINING_SLACK = 1.15
MICRO_BATCH_SLACK = 1.35
RECOMPUTING_SLACK = 1.42
SCORING_SLACK = 1.7
"""Holes in the heap: arrays of many sizes come and go, and freed memory is kept (`train.apply_profile`).

The more often they come and go within a step, the larger the share of holes.
"""


PLAIN = Profile()


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How a step's gradients are taken so that it fits into memory; the fields of a `Profile`."""

    micro_batch: int
    """0 takes all rows at once."""
    activation_checkpointing: bool
    bytes: int
    """Predicted by `predict_lease_bytes`."""


def fit_to_memory(
    config: ModelConfig,
    *,
    batch_size: int,
    sequence: int,
    budget_bytes: int,
    optimizer: OptimizerConfig,
    profile: Profile = PLAIN,
) -> Fit:
    """The largest micro-batch within a budget; blocks are computed twice only if no micro-batch fits without.

    Args:
        profile: says how many processes share the rows and the budget.

    Raises:
        SpecError: ``spec.memory-too-small``, naming the least that works.
    """
    share = batch_size // profile.processes
    sizes = [size for size in range(share, 0, -1) if share % size == 0]
    needed = 0
    for activation_checkpointing in (False, True):
        for size in sizes:
            micro_batch = 0 if size == share else size
            tried = replace(profile, micro_batch=micro_batch, activation_checkpointing=activation_checkpointing)
            needed = predict_lease_bytes(
                config, batch_size=batch_size, sequence=sequence, profile=tried, optimizer=optimizer
            )
            if needed <= budget_bytes:
                return Fit(micro_batch=micro_batch, activation_checkpointing=activation_checkpointing, bytes=needed)
    least = -(-needed // MIB)
    what = f"memory_mib = {budget_bytes // MIB}, but training {config.num_parameters:,} parameters one row of "
    what += f"{sequence} tokens at a time, with activation checkpointing, takes {least} MiB"
    fix = f"set memory_mib = {least} or more, or choose a smaller model or a shorter sequence_length"
    raise SpecError("spec.memory-too-small", what, fix)


def predict_lease_bytes(
    config: ModelConfig, *, batch_size: int, sequence: int, profile: Profile, optimizer: OptimizerConfig
) -> int:
    """Peak bytes of a lineage on a node: the steps of its processes, and the copy that a checkpoint is written from."""
    one = predict_training_bytes(
        config,
        batch_size=batch_size // profile.processes,
        sequence=sequence,
        micro_batch=profile.micro_batch,
        activation_checkpointing=profile.activation_checkpointing,
        optimizer=optimizer,
    )
    return profile.processes * one + checkpoint_bytes(config, optimizer)


def predict_training_bytes(
    config: ModelConfig,
    *,
    batch_size: int,
    sequence: int,
    micro_batch: int = 0,
    activation_checkpointing: bool = False,
    optimizer: OptimizerConfig | None = None,
) -> int:
    """Peak bytes of float32 training steps on inputs of [batch_size, sequence] tokens.

    Weights, gradients and the optimizer's state (AdamW's without one); what blocks keep for the backward pass;
    the working arrays of one block; the loss's chunk of logits with two gradients of the output layer.
    """
    rows = micro_batch or batch_size
    tokens = rows * sequence
    states = 2 * FLOAT_BYTES * config.num_parameters + optimizer_bytes(config, optimizer or AdamWConfig())
    block = _kept_per_token(config, sequence)
    blocks = config.layers * config.hidden + block if activation_checkpointing else config.layers * block
    kept = tokens * (blocks + 4 * config.hidden)
    working = tokens * (4 * config.ffn + 3 * config.hidden)
    slack = TRAINING_SLACK if rows == batch_size else MICRO_BATCH_SLACK
    slack = RECOMPUTING_SLACK if activation_checkpointing else slack
    # From the second micro-batch on, two more of the output layer wait to be added to what there is.
    loss = _loss_floats(config, 2 if rows == batch_size else 4)
    return FIXED_BYTES + int(states + FLOAT_BYTES * (slack * (kept + working) + loss))


def predict_inference_bytes(config: ModelConfig, *, batch_size: int, sequence: int) -> int:
    """Peak bytes of scoring [batch_size, sequence] rows in float32: weights, one block's working arrays, the loss."""
    tokens = batch_size * sequence
    attention = 6 * config.hidden + 2 * _probabilities_per_token(config, sequence)
    working = tokens * (2 * config.hidden + max(attention, 4 * config.ffn))
    return FIXED_BYTES + int(FLOAT_BYTES * (config.num_parameters + SCORING_SLACK * working + _loss_floats(config, 0)))


def checkpoint_bytes(config: ModelConfig, optimizer: OptimizerConfig) -> int:
    """What a commit moves: float32 weights and the optimizer's state."""
    return FLOAT_BYTES * config.num_parameters + optimizer_bytes(config, optimizer)


def optimizer_bytes(config: ModelConfig, optimizer: OptimizerConfig) -> int:
    """State of the optimizer: AdamW's two moments; AdEMAMix's slow average as well, and no fast one if beta1 = 0."""
    if isinstance(optimizer, AdamWConfig):
        return 2 * FLOAT_BYTES * config.num_parameters
    slow = FLOAT_BYTES if optimizer.slow_dtype == "float32" else FLOAT_BYTES // 2
    fast = FLOAT_BYTES if optimizer.beta1 > 0 else 0
    return (FLOAT_BYTES + slow + fast) * config.num_parameters


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
