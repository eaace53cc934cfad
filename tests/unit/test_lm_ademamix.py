"""AdEMAMix (2409.03137) against its formulas, and against a public rendition."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from potluck.errors import DataError
from potluck.ids import Digest
from potluck.lm.config import ModelConfig
from potluck.lm.optim import ademamix
from potluck.lm.optim.adamw import AdamW, is_decayed
from potluck.lm.optim.ademamix import AdEMAMix
from potluck.lm.optim.build import build_optimizer
from potluck.lm.optim.dither import WIDTH, Dither
from potluck.lm.optim.slices import cut
from potluck.lm.train import Trainer
from potluck.recipe import AdamWConfig, AdEMAMixConfig, Profile, Recipe, Schedule
from potluck.specs.run import parse_run_file
from tests.reference.ademamix import (
    CHANGES,
    CONFIG,
    Formulas,
    difference,
    give_gradients,
    parameters_of,
    weights_after,
)

RECIPE = Recipe(
    role="expert",
    index=0,
    model=ModelConfig(vocab=300, hidden=24, layers=2, heads=2, ffn=64, context=33),
    optimizer=AdEMAMixConfig(beta3=0.93, alpha=4.0),
    schedule=Schedule(kind="cosine", learning_rate=3e-3, warmup_steps=2, total_steps=40),
    batch_size=5,
    columns=33,
    init_seed=7,
    data_rule="{}",
    commit_every=4,
)


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(ademamix, "SLICE", 256)


@pytest.mark.parametrize(
    ("beta1", "warmup", "expected"),
    [
        (0.9, 0.8, [0.9889920240, 0.9853245399, 0.9809047872, 0.9734580432, 0.9652826564]),
        (0.9, 0.0, [0.9889920001, 0.9853345783, 0.9809358798]),
        (0.0, 0.0, [0.9889920001, 0.9943234533, 0.9895390615]),
    ],
)
def test_ademamix_repeats_the_scalar_vectors_of_the_method_card(
    beta1: float, warmup: float, expected: list[float]
) -> None:
    """betas (., .999, .9999), alpha 8, warm-up over 4 of 5 steps, rate .01, decay .1, theta0 = 1."""
    theta = nn.Parameter(torch.ones(1, 1, dtype=torch.float64))
    config = AdEMAMixConfig(beta1=beta1, beta2=0.999, beta3=0.9999, alpha=8.0, warmup_fraction=warmup)
    optimizer = AdEMAMix({"theta": theta}, config, 5)
    found = []
    for gradient in [1.0, -0.5, 0.25, 2.0, 1.0][: len(expected)]:
        theta.grad = torch.full_like(theta, gradient)
        optimizer.step(0.01)
        found.append(theta.item())
    assert found == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_ademamix_with_alpha_0_is_adamw(dtype: torch.dtype, bound: float) -> None:
    mixed = weights_after(100, lambda p: AdEMAMix(p, replace(CONFIG, alpha=0.0), 100), dtype)
    plain = weights_after(100, lambda p: AdamW(p, AdamWConfig(beta2=0.999)), dtype)
    assert difference(mixed, plain) <= bound


@pytest.mark.parametrize("changes", CHANGES)
def test_ademamix_follows_its_formulas(changes: dict[str, Any]) -> None:
    config = replace(CONFIG, **changes)
    assert (
        difference(
            weights_after(200, lambda p: AdEMAMix(p, config, 200)),
            weights_after(200, lambda p: Formulas(p, config, 200)),
        )
        <= 1e-11
    )


@pytest.mark.parametrize(("warmup", "bound"), [(0.0, 1e-12), (1.0, 5e-8)])
def test_ademamix_agrees_with_a_public_rendition(warmup: float, bound: float) -> None:
    """pytorch_optimizer 4.1, whose schedulers count from 1 as the paper's PyTorch code does.

    Other defaults than here: alpha 5, beta3 0.9999, decay added to the gradient; all given. It has no 1e-8 in
    the logarithm of the beta3 scheduler, hence the wider bound with a warm-up.
    """
    from pytorch_optimizer import AdEMAMix as Public

    config = replace(CONFIG, warmup_fraction=warmup)

    class Stepper:
        def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
            decays = {name: 0.1 if is_decayed(name, p) else 0.0 for name, p in parameters.items()}
            self._public = Public(
                [{"params": [p], "weight_decay": decays[name]} for name, p in parameters.items()],
                betas=(config.beta1, config.beta2, config.beta3),
                alpha=config.alpha,
                t_alpha_beta3=100 if warmup else None,
                eps=config.epsilon,
                weight_decouple=True,
            )

        def zero_grad(self) -> None: ...

        def step(self, rate: float) -> None:
            for group in self._public.param_groups:
                group["lr"] = rate
            self._public.step()

    public, ours = weights_after(100, Stepper), weights_after(100, lambda p: AdEMAMix(p, config, 100))
    assert difference(ours, public) <= bound


def test_ademamix_in_float32_stays_near_its_formulas() -> None:
    exact = weights_after(200, lambda p: Formulas(p, CONFIG, 200))
    narrow = weights_after(200, lambda p: AdEMAMix(p, CONFIG, 200), torch.float32)
    assert difference(narrow, exact) <= 1e-5


def test_ademamix_before_its_first_step_and_after_its_last_is_adamw_to_the_bit() -> None:
    config = replace(CONFIG, from_fraction=0.5, until_fraction=0.8)
    parameters, plain = parameters_of(torch.float32), parameters_of(torch.float32)
    optimizer, adamw = AdEMAMix(parameters, config, 20), AdamW(plain, AdamWConfig(beta2=0.999))

    def both(steps: range) -> None:
        for step in steps:
            give_gradients(parameters, step)
            give_gradients(plain, step)
            optimizer.step(0.01)
            adamw.step(0.01)

    def assert_equal() -> None:
        states = optimizer.state_tensors(), adamw.state_tensors()
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])
        assert all(torch.equal(parameters[name], plain[name]) for name in plain)

    both(range(10))
    assert_equal()
    both(range(10, 16))
    assert {name.split(".")[0] for name in optimizer.state_tensors()} == {"exp_avg", "exp_avg_sq"}, "retired"
    for name, tensor in adamw.state_tensors().items():
        assert torch.allclose(optimizer.state_tensors()[name], tensor, rtol=1e-4, atol=1e-7), "m1 was taken out"
    adamw.load_state_tensors(optimizer.state_tensors(), step=16)
    with torch.no_grad():
        for name, parameter in plain.items():
            parameter.copy_(parameters[name])
    both(range(16, 20))
    assert_equal()


def test_ademamix_with_beta1_0_keeps_two_buffers() -> None:
    optimizer = AdEMAMix(parameters_of(torch.float32), replace(CONFIG, beta1=0.0), 20)
    give_gradients(optimizer._parameters, 0)
    optimizer.step(0.01)
    assert {name.split(".")[0] for name in optimizer.state_tensors()} == {"exp_avg_slow", "exp_avg_sq"}


@pytest.mark.parametrize("changes", [{}, {"beta1": 0.0}, {"until_fraction": 0.6}, {"warmup_fraction": 0.0}])
def test_ademamix_leaves_a_parameter_without_gradient_alone(changes: dict[str, Any]) -> None:
    """Weights and averages stay; the count of steps is the optimizer's."""
    config = replace(CONFIG, **changes)

    def lacks(step: int) -> bool:
        return step < 3 or step % 5 in (1, 2)

    ours = weights_after(100, lambda p: AdEMAMix(p, config, 100), without_gradient=lacks)
    exact = weights_after(100, lambda p: Formulas(p, config, 100), without_gradient=lacks)
    assert difference(ours, exact) <= 1e-11


def test_ademamix_slices_hold_every_element_once() -> None:
    parameters = parameters_of(torch.float32)
    chunks = cut(parameters, size=64)
    counted = {name: sum(s.elements for c in chunks for s in c.slices if s.name == name) for name in parameters}
    assert counted == {name: p.numel() for name, p in parameters.items()}
    assert max(chunk.elements for chunk in chunks) <= 64
    assert any(len({part.name for part in chunk.slices}) > 1 for chunk in chunks)


def test_ademamix_dither_rounds_each_position_by_every_threshold_once() -> None:
    """So a value between two that bfloat16 has is rounded up in just its share of the steps, of either sign."""
    dither = Dither(torch.device("cpu"))
    seen = torch.zeros(WIDTH, dtype=torch.int64)
    for step in range(1 << 16):
        dither.turn_to(step)
        seen += dither._now
    assert torch.all(seen == (1 << 16) * ((1 << 16) - 1) // 2)
    value = 1.0 + 2.0**-7 * 0.3  # three tenths between neighbours of bfloat16
    total = torch.zeros(WIDTH, dtype=torch.float64)
    for step in range(1000):
        dither.turn_to(step)
        values = torch.full((WIDTH,), value)
        values[1::2] *= -1
        values[::7] = 0.0
        dither.round_(values)
        assert torch.equal(values, values.to(torch.bfloat16).float())
        total += values.abs()
    assert torch.all(total[::7] == 0)
    kept = torch.ones(WIDTH, dtype=torch.bool)
    kept[::7] = False
    assert (total[kept] / 1000 - value).abs().max() < 2.0**-7 * 5e-3


def test_ademamix_bfloat16_average_follows_a_constant_gradient_where_plain_rounding_stalls() -> None:
    """Off by less than 1% in the root of the mean square, 3% at most; rounding to nearest is never nearer than 20%."""
    gradients = torch.logspace(-6, 1, WIDTH) * torch.where(torch.arange(WIDTH) % 2 == 0, 1.0, -1.0)
    parameter = nn.Parameter(torch.zeros(WIDTH))
    config = AdEMAMixConfig(beta3=0.9995, warmup_fraction=0.0, slow_dtype="bfloat16")
    optimizer = AdEMAMix({"x": parameter}, config, 10_000)
    exact, rounded = torch.zeros(WIDTH, dtype=torch.float64), torch.zeros(WIDTH, dtype=torch.bfloat16)
    errors = []
    for step in range(10_000):
        parameter.grad = gradients
        optimizer.step(0.0)
        exact.lerp_(gradients.double(), 1 - 0.9995)
        rounded = rounded.float().lerp_(gradients, 1 - 0.9995).to(torch.bfloat16)
        if step >= 500 and step % 10 == 0:
            slow = optimizer.state_tensors()["exp_avg_slow.x"].double()
            errors.append(slow / exact - 1)
    error = torch.stack(errors)
    assert error.abs().max() < 0.03
    assert error.square().mean().sqrt() < 0.01
    assert float((rounded.double() / exact - 1).abs().min()) > 0.2


def test_ademamix_bfloat16_weights_stay_near_those_of_float32() -> None:
    exact = weights_after(200, lambda p: AdEMAMix(p, CONFIG, 200), torch.float32)
    narrow = weights_after(200, lambda p: AdEMAMix(p, replace(CONFIG, slow_dtype="bfloat16"), 200), torch.float32)
    start = {name: p.detach().numpy() for name, p in parameters_of(torch.float32).items()}
    for name in exact:
        moved, apart = np.linalg.norm(exact[name] - start[name]), np.linalg.norm(narrow[name] - exact[name])
        assert apart < 0.02 * moved


def rows_of(step: int) -> np.ndarray:
    return np.random.default_rng(step).integers(0, 300, (5, 33)).astype(np.uint16)


@pytest.mark.parametrize("cut_at", [1, 13, 20])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"slow_dtype": "bfloat16"},
        {"beta1": 0.0},
        {"from_fraction": 0.325, "until_fraction": 0.5, "beta3": 0.9},
        {"beta1": 0.0, "slow_dtype": "bfloat16", "from_fraction": 0.25},
    ],
)
def test_ademamix_resumes_as_if_never_interrupted(changes: dict[str, Any], cut_at: int, tmp_path: Path) -> None:
    recipe = replace(RECIPE, optimizer=replace(RECIPE.optimizer, **{"beta3": 0.0, **changes}))

    def files(trainer: Trainer, steps: range, folder: str) -> Any:
        for step in steps:
            trainer.train_step(rows_of(step))
        (tmp_path / folder).mkdir()
        return trainer.save(tmp_path / folder)

    whole = files(Trainer(recipe, Profile()), range(26), "whole")
    half = files(Trainer(recipe, Profile()), range(cut_at), "half")
    resumed = Trainer.load(recipe, Profile(), step=cut_at, weights=half.weights, optimizer=half.optimizer)
    rest = files(resumed, range(cut_at, 26), "rest")
    assert (rest.weights_digest, rest.optimizer_digest) == (whole.weights_digest, whole.optimizer_digest)


def test_ademamix_refuses_the_state_of_another_step_or_optimizer() -> None:
    config = replace(CONFIG, from_fraction=0.5)
    parameters = parameters_of(torch.float32)
    optimizer = AdEMAMix(parameters, config, 20)
    tensors = {name: t.clone() for name, t in optimizer.state_tensors().items()}
    with pytest.raises(DataError) as caught:
        AdEMAMix(parameters, config, 20).load_state_tensors(tensors, step=11)
    assert caught.value.error_id == "data.wrong-optimizer"
    AdEMAMix(parameters, config, 20).load_state_tensors(tensors, step=10)


def test_ademamix_is_built_from_a_recipe_and_from_a_word_in_a_spec() -> None:
    assert isinstance(build_optimizer(dict(nn.Linear(2, 2).named_parameters()), AdEMAMixConfig(), 100), AdEMAMix)
    assert isinstance(build_optimizer(dict(nn.Linear(2, 2).named_parameters()), AdamWConfig(), 100), AdamW)
    spec = parse_run_file({"data": "x", "optimizer": "ademamix"}).canonical(Digest("0" * 64))
    assert spec.optimizer == AdEMAMixConfig()
    assert Recipe.from_json(RECIPE.to_json()) == RECIPE
