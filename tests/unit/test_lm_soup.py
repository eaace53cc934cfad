"""Soups (2502.01804): the algebra against a direct formula, their steps, their checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from potluck.errors import DataError, SpecError
from potluck.lm.config import ModelConfig
from potluck.lm.loss import mean_nll
from potluck.lm.model import Decoder, load_decoder
from potluck.lm.soup import Layout, Soup, load_soup
from potluck.lm.soup_config import SoupConfig
from potluck.lm.soup_learner import SoupLearner
from potluck.lm.soup_memory import bank_parameters, coefficient_parameters
from potluck.lm.train import Trainer
from potluck.recipe import AdamWConfig, AdEMAMixConfig, OptimizerConfig, Profile, Recipe, Schedule

MODEL = ModelConfig(vocab=300, hidden=24, layers=2, heads=2, ffn=64, context=33)
DENSE = SoupConfig(domains=6, experts=5, hidden=16)
LOW_RANK = replace(DENSE, rank=3)
RECIPE = Recipe(
    role="soup",
    index=0,
    model=MODEL,
    optimizer=AdamWConfig(),
    schedule=Schedule(kind="cosine", learning_rate=6e-3, warmup_steps=2, total_steps=60),
    batch_size=8,
    columns=33,
    init_seed=5,
    data_rule="{}",
    commit_every=10,
    soup=DENSE,
)


def rows_of(step: int) -> np.ndarray:
    return np.random.default_rng(step).integers(0, 300, (8, 33)).astype(np.uint16)


def mixtures_of(step: int) -> np.ndarray:
    drawn = np.random.default_rng(100 + step).random((4, 6)).astype(np.float32)
    return drawn / drawn.sum(1, keepdims=True)


def stirred(soup: Soup) -> Soup:
    """With a bank that is not zero."""
    generator = torch.Generator().manual_seed(1)
    for tensor in soup.bank.values():
        tensor.normal_(0.0, 0.02, generator=generator)
    return soup


def direct_gradients(learner: SoupLearner, rows: np.ndarray, mixtures: np.ndarray) -> dict[str, Tensor]:
    """Each model made from S, bank and phi inside of the graph, its loss by a functional call."""
    soup, decoder = learner.soup, Decoder(MODEL).double()
    leaves = {"shared": soup.shared, **soup.bank, **{f"phi.{n}": p for n, p in soup.phi.parameters.items()}}
    ids = torch.from_numpy(rows.astype(np.int64)).view(4, 2, 33)
    total = torch.zeros((), dtype=torch.float64)
    for h, own in zip(torch.from_numpy(mixtures).double(), ids, strict=True):
        alpha = soup.phi(h.unsqueeze(0))[0]
        theta = {name: view.clone() for name, view in soup.layout.views(soup.shared).items()}
        for j in range(DENSE.experts):
            for name, expert in expert_of(soup, j).items():
                theta[name] = theta[name] + alpha[j] * expert
        hidden = functional_call(decoder, theta, (own[:, :-1],)).reshape(-1, MODEL.hidden)
        total = total + mean_nll(hidden, theta["embedding.weight"], own[:, 1:].reshape(-1)) / len(ids)
    found = torch.autograd.grad(total, list(leaves.values()))
    return dict(zip(leaves, found, strict=True))


def expert_of(soup: Soup, j: int) -> dict[str, Tensor]:
    if not soup.is_low_rank:
        return soup.layout.views(soup.bank["experts"][j])
    own = slice(j * soup.config.rank, (j + 1) * soup.config.rank)
    names = [name.removesuffix(".outer") for name in soup.bank if name.endswith(".outer")]
    return {name: soup.bank[f"{name}.outer"][:, own] @ soup.bank[f"{name}.inner"][own] for name in names}


@pytest.mark.parametrize("config", [DENSE, LOW_RANK, replace(DENSE, coefficients="linear")])
def test_gradients_of_shared_model_bank_and_coefficients_are_those_of_the_materialised_models(
    config: SoupConfig,
) -> None:
    learner = SoupLearner(replace(RECIPE, soup=config), Profile())
    stirred(Soup.to(learner.soup, "cpu", torch.float64))
    learner.decoder.double()
    for tensor in (learner.soup.shared, *learner.soup.bank.values()):
        tensor.requires_grad_()
    rows, mixtures = rows_of(0), mixtures_of(0)
    wanted = direct_gradients(learner, rows, mixtures)
    alpha = learner.soup.phi(torch.from_numpy(mixtures).double())
    thetas = learner.soup.combine(alpha)
    _, gradients = learner.model_gradients(thetas.detach(), rows)
    torch.autograd.backward(thetas, gradients)
    soup = learner.soup
    found = {"shared": soup.shared, **soup.bank, **{f"phi.{n}": p for n, p in soup.phi.parameters.items()}}
    for name, tensor in found.items():
        assert tensor.grad is not None, name
        torch.testing.assert_close(tensor.grad, wanted[name], rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.parametrize("config", [DENSE, LOW_RANK])
def test_coefficients_of_zero_give_the_shared_model(config: SoupConfig) -> None:
    soup = stirred(Soup(MODEL, config, seed=1))
    assert torch.equal(soup.combine(torch.zeros(2, 5)), soup.shared.expand(2, -1))


@pytest.mark.parametrize("config", [DENSE, LOW_RANK])
def test_a_fresh_soup_is_the_plain_model_of_its_seed_whatever_the_mixture(config: SoupConfig) -> None:
    plain = Trainer(replace(RECIPE, soup=None, role="dense"), Profile()).model.state_dict()
    weights = Soup(MODEL, config, seed=RECIPE.init_seed).instantiate(torch.full((6,), 1 / 6))
    assert {name: tensor.tolist() for name, tensor in weights.items()} == {n: t.tolist() for n, t in plain.items()}


def test_a_materialised_model_has_the_loss_of_the_one_in_the_soup(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    trainer = Trainer(RECIPE, Profile())
    for step in range(8):
        trainer.train_step(rows_of(step), None, mixtures_of(step))
    files = trainer.save(tmp_path)
    soup = load_soup(MODEL, DENSE, files.weights)
    mixtures = np.repeat(mixtures_of(3)[:1], 4, axis=0)
    save_file(soup.instantiate(torch.from_numpy(mixtures[0])), tmp_path / "theta.safetensors")
    model = load_decoder(MODEL, tmp_path / "theta.safetensors")
    ids = torch.from_numpy(rows_of(9).astype(np.int64))
    with torch.no_grad():
        hidden = model(ids[:, :-1]).reshape(-1, MODEL.hidden)
        alone = mean_nll(hidden, model.embedding.weight, ids[:, 1:].reshape(-1)).item()
    inside = trainer.train_step(rows_of(9), None, mixtures).loss
    assert inside == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("optimizer", [AdamWConfig(), AdEMAMixConfig(beta3=0.95)])
def test_a_soup_resumes_bit_by_bit(optimizer: OptimizerConfig, tmp_path: Path) -> None:
    recipe = replace(RECIPE, optimizer=optimizer)
    (tmp_path / "half").mkdir()
    (tmp_path / "whole").mkdir()
    (tmp_path / "resumed").mkdir()
    whole = Trainer(recipe, Profile())
    for step in range(6):
        if step == 3:
            half = whole.save(tmp_path / "half")
        whole.train_step(rows_of(step), None, mixtures_of(step))
    resumed = Trainer.load(recipe, Profile(), step=3, weights=half.weights, optimizer=half.optimizer)
    for step in range(3, 6):
        resumed.train_step(rows_of(step), None, mixtures_of(step))
    assert resumed.save(tmp_path / "resumed").weights_digest == whole.save(tmp_path / "whole").weights_digest


def test_micro_batches_within_a_mixture_change_a_gradient_by_rounding_alone() -> None:
    norms = []
    for profile in (Profile(), Profile(micro_batch=1)):
        norms.append(Trainer(RECIPE, profile).train_step(rows_of(0), None, mixtures_of(0)).grad_norm)
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def test_without_its_bank_a_soup_trains_as_the_plain_model_would() -> None:
    frozen = replace(DENSE, expert_rate=0.0, coefficient_rate=0.0, coefficients="constant")
    soup = Trainer(replace(RECIPE, soup=frozen), Profile())
    assert isinstance(soup._learner, SoupLearner)
    soup._learner.soup.phi.parameters["out.bias"].data.zero_()
    plain = Trainer(replace(RECIPE, soup=None, role="dense"), Profile())
    for step in range(10):
        one = soup.train_step(rows_of(step), None, mixtures_of(step)).loss
        assert one == pytest.approx(plain.train_step(rows_of(step)).loss, abs=1e-5)


@pytest.mark.parametrize("config", [replace(DENSE, experts=64), replace(DENSE, experts=64, coefficients="constant")])
def test_the_first_step_moves_a_model_of_many_experts_by_the_learning_rate(config: SoupConfig) -> None:
    """Adam's first update of a tensor is its rate: S and 64 experts together must not add up to more."""
    recipe = replace(RECIPE, soup=config, optimizer=AdamWConfig(weight_decay=0.0))
    trainer = Trainer(replace(recipe, schedule=replace(RECIPE.schedule, kind="constant", warmup_steps=0)), Profile())
    assert isinstance(trainer._learner, SoupLearner)
    soup, mixtures = trainer._learner.soup, np.repeat(mixtures_of(0)[:1], 4, axis=0)
    before = soup.instantiate(torch.from_numpy(mixtures[0]))
    trainer.train_step(rows_of(0), None, mixtures)
    after = soup.instantiate(torch.from_numpy(mixtures[0]))
    moved = max(float((after[name] - before[name]).abs().max()) for name in before)
    assert moved == pytest.approx(6e-3, rel=0.05)


@pytest.mark.parametrize("experts", [1, 16, 64])
def test_a_soup_of_many_experts_trains_stably_at_the_learning_rate_of_a_plain_model(experts: int) -> None:
    """The same 40 steps of a text that can be learned: no soup's loss may end above the plain model's by 5%."""
    text = np.tile(np.arange(33, dtype=np.uint16) * 7 % 300, (8, 1))

    def loss_after(recipe: Recipe, *mixtures: bool) -> list[float]:
        trainer = Trainer(recipe, Profile())
        given = [(None, mixtures_of(step)) if mixtures else () for step in range(40)]
        return [trainer.train_step(text + np.uint16(step % 3), *given[step]).loss for step in range(40)]

    plain = loss_after(replace(RECIPE, soup=None, role="dense"))
    soup = loss_after(replace(RECIPE, soup=replace(DENSE, experts=experts)), True)
    assert max(soup) < max(plain) * 1.05
    assert np.mean(soup[-6:]) < np.mean(plain[-6:]) * 1.05


@pytest.mark.parametrize("config", [DENSE, LOW_RANK, replace(DENSE, coefficients="constant")])
def test_the_parameters_of_bank_and_coefficients_are_counted_without_torch(config: SoupConfig) -> None:
    soup = Soup(MODEL, config, seed=0)
    bank = sum(tensor.numel() for tensor in soup.bank.values())
    padding = 0 if soup.is_low_rank else config.experts * (soup.layout.size - MODEL.num_parameters)
    assert bank_parameters(MODEL, config) == bank - padding
    assert coefficient_parameters(config) == sum(p.numel() for p in soup.phi.parameters.values())


def test_a_checkpoint_of_another_soup_is_refused(tmp_path: Path) -> None:
    files = Trainer(RECIPE, Profile()).save(tmp_path)
    with pytest.raises(DataError, match="does not hold") as caught:
        load_soup(MODEL, replace(DENSE, experts=4), files.weights)
    assert caught.value.error_id == "data.wrong-weights"


def test_a_soup_is_not_shared_among_processes() -> None:
    with pytest.raises(SpecError, match="spread over nodes"):
        Trainer(RECIPE, Profile(processes=2))


def test_the_vector_of_a_model_holds_every_parameter_once() -> None:
    layout = Layout.of(MODEL)
    flat = torch.arange(layout.size, dtype=torch.float64)
    held = torch.cat([view.reshape(-1) for view in layout.views(flat).values()])
    assert len(held.unique()) == len(held) == MODEL.num_parameters
    assert all(start % 16 == 0 for start, _ in layout.places.values())
