"""The gate's verdict: a proposal is adopted only where its harm can be ruled out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from sampling.gate import gate, mixture_row_weights
from sampling.labels import EXCLUDED

PACKS = 80


def forks(effect: float, seed: int = 0) -> dict[str, np.ndarray]:
    """Rows of packs; the proposal's NLL differs by `effect` nats a target and by chance."""
    rng = np.random.default_rng(seed)
    packs = np.repeat(np.arange(PACKS), 3)
    targets = rng.integers(20, 60, size=len(packs))
    natural = rng.normal(3.0, 0.5, size=len(packs)) * targets
    chance = rng.normal(0.0, 0.04, size=PACKS)[packs] * targets
    return {"proposal": natural + effect * targets + chance, "natural": natural, "targets": targets, "packs": packs}


def judged(rows: dict[str, np.ndarray], row_weights: np.ndarray | None = None) -> Any:
    return gate(**rows, row_weights=row_weights, samples=500, confidence=0.95, seed=1)


def test_a_clear_gain_is_adopted() -> None:
    figures = judged(forks(-0.05))
    assert figures["verdict"] == "adopted"
    assert figures["low"] < figures["difference"] < figures["high"] <= 0
    assert figures["difference"] == pytest.approx(-0.05, abs=0.02)
    assert figures["packs"] == PACKS


@pytest.mark.parametrize("effect", [0.0, 0.05, -0.002])
def test_no_gain_harm_and_a_gain_too_small_to_see_keep_natural_sampling(effect: float) -> None:
    assert judged(forks(effect))["verdict"] == "kept natural"


def test_useless_proposals_pass_as_rarely_as_the_confidence_says() -> None:
    passed = sum(judged(forks(0.0, seed))["verdict"] == "adopted" for seed in range(200))
    assert passed <= 13  # 2.5% of 200 are 5; the binomial exceeds 13 with chance 0.001


def test_the_smallest_effect_is_half_the_interval_and_shrinks_with_packs() -> None:
    rows = forks(0.0)
    some = {name: array[: 3 * PACKS // 4] for name, array in rows.items()}
    all_packs, few = judged(rows), judged(some)
    assert all_packs["smallest_effect"] == pytest.approx((all_packs["high"] - all_packs["low"]) / 2)
    assert few["packs"] == PACKS // 4
    assert 1.4 < few["smallest_effect"] / all_packs["smallest_effect"] < 2.8


def test_a_fork_that_blew_up_or_a_lone_pack_keeps_natural_sampling() -> None:
    rows = forks(-0.5)
    rows["proposal"][7] = math.nan
    figures = judged(rows)
    assert (figures["verdict"], figures["difference"], figures["high"]) == ("kept natural", None, None)
    lone = {name: array[:3] for name, array in forks(-0.5).items()}
    figures = judged(lone)
    assert (figures["verdict"], figures["low"], figures["packs"]) == ("kept natural", None, 1)
    assert figures["difference"] < 0


def test_equal_inputs_give_equal_verdicts() -> None:
    assert judged(forks(-0.01)) == judged(forks(-0.01))


def test_weights_move_the_verdict_to_the_text_the_mixture_is_for() -> None:
    rows = forks(0.0)
    domain = rows["packs"] % 2
    rows["proposal"] = rows["natural"] + np.where(domain == 1, -0.1, 0.2) * rows["targets"]
    assert judged(rows)["verdict"] == "kept natural"
    weights = mixture_row_weights({"even": 0.05, "odd": 0.95}, ["even", "odd"], domain, rows["targets"])
    figures = judged(rows, weights)
    assert figures["verdict"] == "adopted"
    assert figures["difference"] == pytest.approx(0.05 * 0.2 - 0.95 * 0.1)
    alone = judged(rows, mixture_row_weights({"even": 0.0, "odd": 1.0}, ["even", "odd"], domain, rows["targets"]))
    assert alone["difference"] == pytest.approx(-0.1)
    assert alone["packs"] == PACKS // 2


def test_row_weights_make_the_text_as_the_mixture_has_it() -> None:
    held_out = np.array([0, 0, 2, EXCLUDED, 2], dtype=np.uint32)
    targets = np.array([10.0, 10.0, 10.0, 50.0, 50.0])
    weights = mixture_row_weights({"a": 0.5, "b": 0.2, "c": 0.3}, ["a", "b", "c"], held_out, targets)
    share = np.bincount([0, 0, 2, 0, 2], weights=weights * targets)
    assert weights[3] == 0
    assert share / share.sum() == pytest.approx([0.5 / 0.8, 0, 0.3 / 0.8])
