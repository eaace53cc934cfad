"""How far back AdEMAMix looks: half-lives and schedulers by the paper, beta3 from a lineage's steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from coordinator.plans.smalltalk_recipes import Recipes
from coordinator.plans.smalltalk_sizes import Cell, Sizes
from potluck.commands.output import Output
from potluck.commands.runs import submit
from potluck.errors import SpecError
from potluck.ids import Digest
from potluck.lm.optim.horizon import (
    alpha_at,
    beta3_at,
    beta_of,
    describe_horizon,
    half_life,
    optimizer_facts,
    resolve_optimizer,
)
from potluck.recipe import AdamWConfig, AdEMAMixConfig, Recipe
from potluck.specs.sections import ModelShape, TextSpec
from potluck.specs.smalltalk import DenseSpec, ExpertSpec, RouterSpec, SmallTalkSpec


@pytest.mark.parametrize(
    ("beta", "expected"), [(0.9, 5.58), (0.99, 67.97), (0.999, 691.8), (0.9999, 6930.1), (0.99999, 69313)]
)
def test_ademamix_half_lives_are_the_papers(beta: float, expected: float) -> None:
    assert half_life(beta) == pytest.approx(expected, rel=1e-3)
    assert beta_of(half_life(beta)) == pytest.approx(beta, rel=1e-12)


@pytest.mark.parametrize(
    ("beta3", "fraction", "expected", "expected_half_life"),
    [
        (0.9999, 0.01, 0.990900, 74.8),
        (0.9999, 0.10, 0.999009, 698.0),
        (0.9999, 0.25, 0.999601, 1736.7),
        (0.9999, 0.50, 0.999800, 3467.9),
        (0.9999, 0.75, 0.999867, 5199.0),
        (0.999, 0.01, 0.949738, 12.4),
        (0.999, 0.10, 0.990825, 74.2),
        (0.999, 0.25, 0.996116, 177.1),
        (0.999, 0.50, 0.998020, 348.7),
        (0.999, 0.75, 0.998671, 520.2),
    ],
)
def test_ademamix_beta3_warms_up_with_a_linear_half_life(
    beta3: float, fraction: float, expected: float, expected_half_life: float
) -> None:
    value = beta3_at(round(10_000 * fraction), beta1=0.9, beta3=beta3, warmup_steps=10_000)
    assert value == pytest.approx(expected, abs=6e-7)
    assert half_life(value) == pytest.approx(expected_half_life, abs=0.06)


def test_ademamix_schedulers_end_at_the_final_values() -> None:
    assert [alpha_at(t, alpha=8.0, warmup_steps=4) for t in (1, 2, 4, 5)] == [2.0, 4.0, 8.0, 8.0]
    assert [alpha_at(t, alpha=8.0, warmup_steps=0) for t in (1, 2)] == [8.0, 8.0]
    assert {beta3_at(t, beta1=0.9, beta3=0.999, warmup_steps=4) for t in (4, 5)} == {0.999}
    assert 0 < beta3_at(1, beta1=0.0, beta3=0.999, warmup_steps=1000) < 0.5


def test_ademamix_beta3_follows_from_the_steps_it_is_at_work() -> None:
    derived = resolve_optimizer(AdEMAMixConfig(), 2000)
    assert isinstance(derived, AdEMAMixConfig)
    assert half_life(derived.beta3) == pytest.approx(100, rel=1e-3)
    part = resolve_optimizer(AdEMAMixConfig(from_fraction=0.25, until_fraction=0.75), 2000)
    assert isinstance(part, AdEMAMixConfig)
    assert half_life(part.beta3) == pytest.approx(50, rel=1e-3)
    short = resolve_optimizer(AdEMAMixConfig(), 20)
    assert isinstance(short, AdEMAMixConfig)
    assert short.beta3 == short.beta1 == 0.9, "never faster than the fast one"
    assert resolve_optimizer(derived, 2000) == derived
    assert resolve_optimizer(AdamWConfig(), 10) == AdamWConfig()


def test_ademamix_refuses_a_beta3_that_the_run_is_too_short_for() -> None:
    with pytest.raises(SpecError) as caught:
        resolve_optimizer(AdEMAMixConfig(beta3=0.9999), 2000, of="router 3")
    assert caught.value.error_id == "spec.beta3-too-slow"
    for part in ("0.9999", "2,000 steps", "6,930 steps", "router 3", "at most 0.998617", "0 to derive it (0.993"):
        assert part in str(caught.value)
    resolve_optimizer(AdEMAMixConfig(beta3=0.998617), 2000)
    resolve_optimizer(AdEMAMixConfig(beta3=0.9), 8)


def test_ademamix_says_its_horizon() -> None:
    line = describe_horizon(AdEMAMixConfig(), 2000)
    assert line == "AdEMAMix beta3 = 0.993161, half-life 100 steps of 2,000"
    assert describe_horizon(AdEMAMixConfig(from_fraction=0.5), 2000).endswith("at work in steps 1,000 to 2,000")
    assert describe_horizon(AdamWConfig(), 2000) == ""
    assert optimizer_facts(AdEMAMixConfig(beta3=0.999))["half_life"] == pytest.approx(691.8, abs=0.1)
    assert "half_life" not in optimizer_facts(AdamWConfig())


def plan_recipes(optimizer: AdEMAMixConfig) -> dict[str, Recipe]:
    spec = SmallTalkSpec(
        corpus=Digest("c" * 64),
        text=TextSpec(vocab_size=300, sequence_length=16, prefix_length=8),
        routers=RouterSpec(model=ModelShape(preset="router-24").resolved(""), rounds=10, chunk_sequences=640),
        experts=ExpertSpec(model=ModelShape(preset="0.05M").resolved(""), num=2, chunks=10, chunk_sequences=3200),
        dense=DenseSpec(batch_size=16),
        optimizer=optimizer,
    )
    sizes = Sizes(spec=spec)
    recipes, cell = Recipes(sizes, Digest("d" * 64)), Cell(batch_size=16, learning_rate=1e-3)
    trainings = {
        "router": recipes.router(0),
        "expert": recipes.expert(0, cell),
        "random split": recipes.random_split(0, cell),
        "dense": recipes.dense(cell),
    }
    return {name: training.recipe for name, training in trainings.items()}


def test_ademamix_in_a_plan_has_a_literal_beta3_for_each_lineages_own_steps() -> None:
    recipes = plan_recipes(AdEMAMixConfig())
    for recipe in recipes.values():
        assert isinstance(recipe.optimizer, AdEMAMixConfig)
        assert half_life(recipe.optimizer.beta3) == pytest.approx(recipe.schedule.total_steps / 20, rel=1e-3)
    betas = {name: json.loads(recipe.to_json())["optimizer"]["beta3"] for name, recipe in recipes.items()}
    assert betas["router"] < betas["expert"] == betas["random split"] < betas["dense"]


def test_ademamix_in_a_plan_is_refused_where_one_lineage_is_too_short() -> None:
    with pytest.raises(SpecError, match="router 0") as caught:
        plan_recipes(AdEMAMixConfig(beta3=0.99))
    assert caught.value.error_id == "spec.beta3-too-slow"


@pytest.mark.parametrize("method", ["smalltalk", "single"])
def test_a_run_with_too_slow_a_beta3_is_refused_before_its_text_is_looked_for(method: str, tmp_path: Path) -> None:
    spec = tmp_path / "spec.toml"
    spec.write_text(f'data = "nowhere"\nmethod = "{method}"\n[optimizer]\nname = "ademamix"\nbeta3 = 0.9999999\n')
    nothing: Any = None
    with pytest.raises(SpecError) as caught:
        submit(nothing, nothing, spec, name="", output=Output(as_json=False))
    assert caught.value.error_id == "spec.beta3-too-slow"
