"""Traffic into weights: smoothing, privacy, and what is told about them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from potluck.errors import SpecError
from potluck.ids import Digest
from sampling.mixture import normalised
from sampling.traffic import laplace, traffic_mixture

NATURAL = normalised(Digest("a" * 64), {"news": 6, "code": 3, "law": 1}, ["news", "code", "law"])


def test_without_a_prior_weights_are_the_shares_of_requests() -> None:
    mixture, figures = traffic_mixture({"code": 30, "law": 10}, NATURAL, prior_requests=0)
    assert mixture.weights == {"news": 0.0, "code": 0.75, "law": 0.25}
    assert (figures["requests"], figures["prior_share"], figures["privacy_noise"]) == (40, 0.0, 0.0)


def test_few_requests_move_the_natural_mixture_little_and_many_replace_it() -> None:
    few, _ = traffic_mixture({"law": 1}, NATURAL, prior_requests=99)
    assert few.weights == pytest.approx({"news": 0.594, "code": 0.297, "law": 0.109})
    many, figures = traffic_mixture({"law": 99_901}, NATURAL, prior_requests=99)
    assert many.weights["law"] > 0.999
    assert figures["prior_share"] == pytest.approx(99 / 100_000)
    none, _ = traffic_mixture({}, NATURAL, prior_requests=5)
    assert none.weights == pytest.approx(NATURAL.weights)


def test_noise_is_laplacian_of_the_privacy_asked_for() -> None:
    noise = laplace([str(i) for i in range(40_000)], 2.0, 5)
    assert np.isfinite(noise).all()
    assert float(np.abs(noise).mean()) == pytest.approx(2.0, rel=0.03)
    assert abs(float(noise.mean())) < 0.06
    for far in (1, 2, 4):  # P(|x| > t) = exp(-t / scale)
        assert float((np.abs(noise) > 2.0 * far).mean()) == pytest.approx(math.exp(-far), rel=0.1)


def test_noise_is_the_same_for_a_seed_whatever_the_order_and_differs_otherwise() -> None:
    counts = {"news": 50, "code": 20, "law": 0}
    blurred = [
        traffic_mixture(each, NATURAL, prior_requests=1, epsilon=0.5, seed=seed)[0]
        for each, seed in ((counts, 1), (dict(reversed(counts.items())), 1), (counts, 2))
    ]
    assert blurred[0] == blurred[1] != blurred[2]


def test_blurred_counts_never_go_below_zero_and_the_exact_number_is_not_told() -> None:
    for seed in range(30):
        mixture, figures = traffic_mixture({"news": 1}, NATURAL, prior_requests=1, epsilon=0.1, seed=seed)
        assert min(mixture.weights.values()) >= 0
        assert figures["requests"] is None


def test_the_noises_are_those_that_are_measured() -> None:
    rng = np.random.default_rng(0)
    names, requests, epsilon = list(NATURAL.weights), 5000, 0.05
    truth = np.array(NATURAL.aligned(names))
    drawn: Any = rng.multinomial(requests, truth, size=400)
    figures: Any = {}
    exact, blurred = [], []
    for seed, row in enumerate(drawn):
        counts = dict(zip(names, row.tolist(), strict=True))
        plain, _ = traffic_mixture(counts, NATURAL, prior_requests=0)
        noisy, figures = traffic_mixture(counts, NATURAL, prior_requests=0, epsilon=epsilon, seed=seed)
        exact.append(np.abs(np.array(plain.aligned(names)) - truth).sum())
        blurred.append(np.abs(np.array(noisy.aligned(names)) - np.array(plain.aligned(names))).sum())
    assert figures["sampling_noise"] == pytest.approx(np.mean(exact), rel=0.4)  # 3 domains: h (1 - h) is not h
    assert figures["privacy_noise"] == pytest.approx(np.mean(blurred), rel=0.4)


@pytest.mark.parametrize(
    ("counts", "more", "error_id"),
    [
        ({"sport": 3}, {}, "spec.bad-mixture"),
        ({"law": -1}, {}, "spec.bad-mixture"),
        ({}, {"prior_requests": 0}, "spec.bad-mixture"),
        ({"law": 1}, {"prior_requests": -1}, "spec.bad-value"),
        ({"law": 1}, {"epsilon": 0.0}, "spec.bad-value"),
        ({"law": 1}, {"epsilon": math.nan}, "spec.bad-value"),
    ],
)
def test_nonsense_is_refused(counts: dict[str, int], more: dict[str, Any], error_id: str) -> None:
    with pytest.raises(SpecError) as caught:
        traffic_mixture(counts, NATURAL, **{"prior_requests": 1, **more})
    assert caught.value.error_id == error_id
