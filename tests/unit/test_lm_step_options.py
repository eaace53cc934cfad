"""Row weights, micro-batches, activation checkpointing: what they change in a step, and what they leave."""

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch

from potluck.errors import SpecError
from potluck.lm.config import ModelConfig
from potluck.lm.train import Trainer
from potluck.recipe import AdamWConfig, Profile, Recipe, Schedule

RECIPE = Recipe(
    role="expert",
    index=0,
    model=ModelConfig(vocab=300, hidden=24, layers=3, heads=2, ffn=64, context=320),
    optimizer=AdamWConfig(grad_clip=1e9),
    schedule=Schedule(kind="constant", learning_rate=3e-3, warmup_steps=0, total_steps=40),
    batch_size=6,
    columns=33,
    init_seed=7,
    data_rule="{}",
    commit_every=4,
)
ROWS = np.random.default_rng(0).integers(0, 300, (6, 33)).astype(np.uint16)
WEIGHTS = np.array([0.0, 0.5, 1.0, 2.0, 3.5, 0.25], dtype=np.float32)

Gradients = dict[str, torch.Tensor]
Dtype = Literal["float32", "bfloat16"]
Attention = Literal["row", "document"]


def step(
    profile: Profile, weights: np.ndarray | None = None, *, recipe: Recipe = RECIPE, rows: np.ndarray = ROWS
) -> tuple[float, Gradients]:
    """Loss and gradients of the first step; the clip is out of reach."""
    trainer = Trainer(recipe, profile)
    loss = trainer.train_step(rows, weights).loss
    return loss, {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}


def same_bits(one: Gradients, two: Gradients) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def close(one: Gradients, two: Gradients) -> bool:
    assert one.keys() == two.keys()
    return all(torch.allclose(one[name], two[name], rtol=1e-4, atol=1e-6) for name in one)


@pytest.mark.parametrize("micro_batch", [0, 2])
def test_weighted_rows_give_the_gradients_of_the_weighted_sum_of_their_losses(micro_batch: int) -> None:
    model = Trainer(RECIPE, Profile()).model
    ids = torch.from_numpy(ROWS.astype(np.int64))
    logits = model(ids[:, :-1]) @ model.embedding.weight.t()
    each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").mean(1)
    wanted = (torch.from_numpy(WEIGHTS) * each).sum() / len(ROWS)
    wanted.backward()
    loss, found = step(Profile(micro_batch=micro_batch), WEIGHTS)
    assert loss == pytest.approx(wanted.item(), rel=1e-5)
    assert close(found, {name: p.grad for name, p in model.named_parameters() if p.grad is not None})


def test_weights_of_one_change_no_bit() -> None:
    plain, weighted = step(Profile()), step(Profile(), np.ones(6, dtype=np.float32))
    assert plain[0] == weighted[0]
    assert same_bits(plain[1], weighted[1])


def test_a_row_of_weight_zero_teaches_nothing() -> None:
    other = ROWS.copy()
    other[0] = other[1]
    assert same_bits(step(Profile(), WEIGHTS)[1], step(Profile(), WEIGHTS, rows=other)[1])


def test_weights_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"weights have shape \(5,\)"):
        Trainer(RECIPE, Profile()).train_step(ROWS, np.ones(5, dtype=np.float32))


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_micro_batches_add_up_to_the_whole_batchs_gradients(micro_batch: int) -> None:
    whole, parts = step(Profile()), step(Profile(micro_batch=micro_batch))
    assert parts[0] == pytest.approx(whole[0], rel=1e-6)
    assert close(parts[1], whole[1])


def test_one_micro_batch_of_all_rows_changes_no_bit() -> None:
    assert same_bits(step(Profile())[1], step(Profile(micro_batch=6))[1])


def test_a_micro_batch_that_does_not_divide_the_batch_is_refused_by_name() -> None:
    with pytest.raises(SpecError, match=r"profile\.micro_batch = 4 with a batch of 6 rows") as caught:
        Trainer(RECIPE, Profile(micro_batch=4))
    assert caught.value.error_id == "spec.bad-value"
    assert "divisor of 6" in caught.value.fix


@pytest.mark.parametrize("columns", [33, 300])
@pytest.mark.parametrize("micro_batch", [0, 2])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("attention", ["row", "document"])
def test_activation_checkpointing_changes_no_bit(
    columns: int, micro_batch: int, dtype: Dtype, attention: Attention
) -> None:
    """Short rows go through the hand-written kernels, long ones and bfloat16 through torch's own operations."""
    recipe = replace(RECIPE, columns=columns, model=replace(RECIPE.model, attention=attention))
    rows = np.random.default_rng(1).integers(0, 300, (6, columns)).astype(np.uint16)
    plain = step(Profile(micro_batch=micro_batch, dtype=dtype), WEIGHTS, recipe=recipe, rows=rows)
    spared = Profile(micro_batch=micro_batch, dtype=dtype, activation_checkpointing=True)
    again = step(spared, WEIGHTS, recipe=recipe, rows=rows)
    assert plain[0] == again[0]
    assert same_bits(plain[1], again[1])
