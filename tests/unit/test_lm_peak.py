"""The peak that MFU is told against, and the FLOP/s of a training rate."""

from __future__ import annotations

import time

import numpy as np
import pytest

from potluck.lm.config import ModelConfig
from potluck.lm.flops import train_flops
from potluck.lm.peak import peak_flops_per_second, training_speed
from potluck.lm.train import Trainer, apply_profile
from potluck.recipe import AdamWConfig, Profile, Recipe, Schedule

RECIPE = Recipe(
    role="expert",
    index=0,
    model=ModelConfig(vocab=256, hidden=32, layers=1, heads=2, ffn=64, context=33),
    optimizer=AdamWConfig(),
    schedule=Schedule(kind="constant", learning_rate=1e-3, warmup_steps=0, total_steps=8),
    batch_size=4,
    columns=33,
    init_seed=0,
    data_rule="{}",
    commit_every=8,
)


def test_a_peak_is_measured_once_a_process_and_counts_every_process_of_the_profile() -> None:
    apply_profile(Profile())
    peak = peak_flops_per_second(Profile())
    assert peak > 0
    assert peak_flops_per_second(Profile()) == peak
    assert peak_flops_per_second(Profile(processes=2)) == 2 * peak


def test_measuring_the_peak_moves_no_random_state() -> None:
    import torch

    before = torch.get_rng_state()
    peak_flops_per_second(Profile(dtype="bfloat16"))
    assert torch.equal(torch.get_rng_state(), before)


def test_flops_a_second_are_the_recipes_flops_a_row_times_rows_a_second() -> None:
    rows_per_second = 10.0
    speed = training_speed(RECIPE, rows_per_second * 32, peak=1e9)
    assert speed["flops_per_second"] == pytest.approx(rows_per_second * train_flops(RECIPE.model, 32))
    assert speed["mfu"] == pytest.approx(speed["flops_per_second"] / 1e9)


def test_without_a_peak_the_utilisation_is_not_known() -> None:
    assert training_speed(RECIPE, 100.0, peak=0.0)["mfu"] == 0.0


def test_a_training_uses_a_part_of_the_peak() -> None:
    trainer = Trainer(RECIPE, Profile())
    rows = np.ones((RECIPE.batch_size, RECIPE.columns), dtype=np.uint16)
    trainer.train_step(rows)
    began = time.perf_counter()
    targets = sum(trainer.train_step(rows).tokens for _ in range(20))
    speed = training_speed(RECIPE, targets / (time.perf_counter() - began), peak_flops_per_second(Profile()))
    assert 0 < speed["mfu"] < 1.5
