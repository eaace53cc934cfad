"""What a soup costs beside the models that it makes: parameters, memory, bytes moved in a step. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

from potluck.lm.config import ModelConfig
from potluck.lm.memory import FLOAT_BYTES, optimizer_bytes, predict_lease_bytes
from potluck.lm.soup_config import SoupConfig
from potluck.lm.soup_spread import Spread
from potluck.recipe import OptimizerConfig, Profile

OPTIMIZER_PASSES = 7
"""AdamW reads weight, gradient and two moments, and writes three of them back."""

MAKING_MODELS = 6
"""Measured with 7.5M parameters and 16 experts: 4.3 models' weights with a dense bank, 5.6 with one of rank 8."""


@dataclass(frozen=True, kw_only=True)
class SoupCost:
    bank_parameters: int
    coefficient_parameters: int
    memory_bytes: int
    """Peak of a lease on one node, beyond the program itself."""
    traffic_bytes: int
    """Read and written in a step for the bank's sake: combining, its gradients, its optimizer."""
    checkpoint_bytes: int
    """Weights and optimizer state of a commit."""
    flops: float
    """Of a step, for the bank's sake: its models, its gradients, those of the coefficients."""


def soup_cost(
    model: ModelConfig,
    soup: SoupConfig,
    *,
    per_step: int,
    batch_size: int,
    sequence: int,
    profile: Profile,
    optimizer: OptimizerConfig,
    parts: int = 1,
) -> SoupCost:
    """Args:
    per_step: mixtures a step, each a model of its own and a gradient as large.
    batch_size: rows a step, of all its mixtures together.
    parts: nodes that train it together, each with the optimizer's state of its own experts.
    """
    bank, phi = bank_parameters(model, soup), coefficient_parameters(soup)
    one = predict_lease_bytes(
        model, batch_size=batch_size // per_step, sequence=sequence, profile=profile, optimizer=optimizer
    )
    state = optimizer_bytes(model, optimizer) / (FLOAT_BYTES * model.num_parameters)
    # Weights, gradients and state, and the copy of weights and state that a checkpoint is written from.
    held = (bank + phi) * FLOAT_BYTES * (2 + 1 + 2 * state / parts)
    models = 2 * per_step * FLOAT_BYTES * model.num_parameters
    moved = bank * (2 + 1 + OPTIMIZER_PASSES) + 4 * per_step * model.num_parameters
    return SoupCost(
        bank_parameters=bank,
        coefficient_parameters=phi,
        memory_bytes=int(one + held + models),
        traffic_bytes=FLOAT_BYTES * moved,
        checkpoint_bytes=int((model.num_parameters + bank + phi) * FLOAT_BYTES * (1 + state)),
        flops=3.0 * 2 * per_step * soup.experts * model.num_parameters,
    )


def round_bytes(
    model: ModelConfig, soup: SoupConfig, spread: Spread, *, per_step: int, optimizer: OptimizerConfig
) -> int:
    """What a round of a spread soup puts on the hub: results, and the state that the next one starts from."""
    state = optimizer_bytes(model, optimizer) / (FLOAT_BYTES * model.num_parameters)
    common = model.num_parameters + coefficient_parameters(soup)
    held = bank_parameters(model, soup) * (1 + state)
    if spread.local_steps == 1:
        held += per_step * model.num_parameters + common * (1 + state)
    else:
        held += spread.parts * common * (1 + state) + common * (2 if spread.outer_momentum else 1)
    return int(FLOAT_BYTES * held)


def soup_serving_bytes(model: ModelConfig, soup: SoupConfig) -> int:
    """Of who serves a soup: shared model, bank and coefficients, and making one model of them."""
    held = model.num_parameters + bank_parameters(model, soup) + coefficient_parameters(soup)
    return FLOAT_BYTES * held + making_bytes(model)


def making_bytes(model: ModelConfig) -> int:
    """Peak of loading a soup and making a model of it, beyond the soup: the model, the vector it is made in, its parts
    or the bytes for its digest, and what the heap keeps of them."""
    return MAKING_MODELS * FLOAT_BYTES * model.num_parameters


def bank_parameters(model: ModelConfig, soup: SoupConfig) -> int:
    if not soup.rank:
        return soup.experts * model.num_parameters
    h, f = model.hidden, model.ffn
    block = (3 * h + h) + (h + h) + (2 * f + h) + (h + f)
    return soup.experts * soup.rank * (model.vocab + h + model.layers * block)


def coefficient_parameters(soup: SoupConfig) -> int:
    inner = {"mlp": soup.hidden, "linear": soup.domains, "constant": 0}[soup.coefficients]
    first = soup.hidden * (soup.domains + 1) if soup.coefficients == "mlp" else 0
    return first + inner * soup.experts + soup.experts
