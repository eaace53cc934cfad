"""Histograms of targets: what the weights are, and what the figures promise."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest

from potluck.errors import SpecError
from potluck.ids import Digest
from sampling.histogram import Target, expected_noise, histogram, repeats, spread, warnings
from sampling.labels import Labels, distance_threshold

PARTITION = Digest("a" * 64)


def corpus(*sizes: int, sequence_length: int = 10) -> Labels:
    return Labels(
        partition=PARTITION,
        tokens=Digest("b" * 64),
        domains=[f"d{i}" for i in range(len(sizes))],
        sizes={f"d{i}": size for i, size in enumerate(sizes)},
        excluded=0,
        sequence_length=sequence_length,
        label=Digest("c" * 64),
    )


def target(*counts: int, unplaced: int | None = None) -> Target:
    return Target(counts=np.array(counts, dtype=np.int64), unplaced=unplaced)


def fitted(targets: list[Target], labels: Labels, *, tokens: int = 1000, **more: Any) -> tuple[dict[str, float], Any]:
    shares = more.pop("shares", [1.0] * len(targets))
    mixture, figures = histogram(targets, shares, labels, planned_tokens=tokens, **more)
    return dict(mixture.weights), figures


def test_weights_are_the_shares_of_the_targets_windows() -> None:
    weights, figures = fitted([target(6, 0, 2)], corpus(5, 5, 5))
    assert weights == {"d0": 0.75, "d1": 0.0, "d2": 0.25}
    assert (figures["windows"], figures["domains"], figures["occupied_domains"]) == (8, 3, 2)
    assert figures["unplaced"] is None


def test_domains_without_rows_are_dropped_and_the_lost_share_is_told() -> None:
    weights, figures = fitted([target(3, 1, 4)], corpus(5, 5, 0))
    assert weights == {"d0": 0.75, "d1": 0.25, "d2": 0.0}
    assert figures["lost_mass"] == 0.5
    assert figures["domains_with_rows"] == 2


def test_smoothing_adds_windows_to_every_domain_that_has_rows() -> None:
    weights, _ = fitted([target(3, 1, 0, 0)], corpus(5, 5, 5, 0), smoothing=2.0)
    assert weights == pytest.approx({"d0": 0.5, "d1": 0.3, "d2": 0.2, "d3": 0.0})
    for smoothing in (-1.0, math.nan, math.inf):
        with pytest.raises(SpecError, match="smoothing"):
            fitted([target(1)], corpus(5), smoothing=smoothing)


def test_several_targets_count_by_their_shares_not_by_their_length() -> None:
    weights, figures = fitted([target(1000, 0), target(1, 3, unplaced=1)], corpus(5, 5), shares=[1.0, 3.0])
    assert weights == pytest.approx({"d0": 0.25 + 0.75 * 0.25, "d1": 0.75 * 0.75})
    assert figures["windows"] == 1004
    assert figures["unplaced"] is None  # of one target it is not known
    _, figures = fitted([target(9, 1, unplaced=10), target(1, 3, unplaced=1)], corpus(5, 5), shares=[1.0, 3.0])
    assert figures["unplaced"] == pytest.approx(0.25 * 1.0 + 0.75 * 0.25)


def test_equal_weights_have_as_many_effective_domains_as_there_are() -> None:
    even = spread(np.full(8, 1 / 8))
    assert even == pytest.approx({"effective_domains": 8, "entropy_domains": 8})
    uneven: Any = spread(np.array([0.97, 0.01, 0.01, 0.01, 0.0]))
    assert 1 < uneven["entropy_domains"] < uneven["effective_domains"] < 4


@pytest.mark.parametrize("windows", [200, 5000])
def test_the_expected_noise_is_the_mean_distance_of_drawn_histograms(windows: int) -> None:
    rng = np.random.default_rng(0)
    truth = rng.dirichlet(np.full(30, 2.0))
    drawn = rng.multinomial(windows, truth, size=2000) / windows
    measured = float(np.abs(drawn - truth).sum(axis=1).mean())
    said = expected_noise(truth[None, :], np.ones(1), np.array([windows]))
    effective: Any = spread(truth)["effective_domains"]
    assert said == pytest.approx(math.sqrt(2 * effective / (math.pi * windows)))
    assert said == pytest.approx(measured, rel=0.05)


def test_the_expected_noise_of_several_targets_is_theirs_together() -> None:
    rng = np.random.default_rng(1)
    truths, windows, shares = rng.dirichlet(np.full(30, 2.0), size=2), np.array([300, 4000]), np.array([0.4, 0.6])
    drawn = [rng.multinomial(m, truth, size=2000) / m for m, truth in zip(windows, truths, strict=True)]
    measured = float(np.abs(shares @ (np.stack(drawn, axis=1) - truths)).sum(axis=1).mean())
    assert expected_noise(truths, shares, windows) == pytest.approx(measured, rel=0.05)


def test_repeats_are_the_passes_over_the_text_of_a_draw() -> None:
    tokens = np.array([100, 400, 50])
    natural: Any = repeats(np.array([100, 400, 50]) / 550, tokens, 1100)
    assert natural["repeats"] == natural["max_repeats"] == pytest.approx(2)  # T / N
    assert natural["effective_pool"] == pytest.approx(550)
    narrow: Any = repeats(np.array([0.5, 0.5, 0.0]), tokens, 800)
    assert narrow["repeats"] == pytest.approx(0.5 * 4 + 0.5 * 1)
    assert narrow["max_repeats"] == pytest.approx(4)
    assert narrow["effective_pool"] == pytest.approx(800 / 2.5)


def test_repeats_count_tokens_of_rows_and_not_rows() -> None:
    _, figures = fitted([target(1, 1)], corpus(10, 10, sequence_length=10), tokens=800)
    assert figures["repeats"] == pytest.approx(4)


def test_the_threshold_leaves_one_row_in_two_hundred_of_the_corpus_outside() -> None:
    distances = np.random.default_rng(0).random(10_000)
    assert (distances > distance_threshold(distances)).sum() == 50


GOOD = {
    "windows": 1000,
    "effective_domains": 20.0,
    "expected_noise": 0.1,
    "repeats": 1.5,
    "max_repeats": 3.0,
    "planned_tokens": 5_000_000,
    "unplaced": 0.01,
    "lost_mass": 0.0,
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"repeats": 6.25}, "read 6.2 times on average.*5,000,000 tokens"),
        ({"max_repeats": 40.0}, "one domain is read 40 times"),
        ({"windows": 12}, "12 windows of the target for 20 effective domains"),
        ({"expected_noise": 0.61}, "off by 0.61"),
        ({"unplaced": 0.35}, "35% of the target"),
        ({"lost_mass": 0.12}, "12% of the target"),
    ],
)
def test_each_danger_has_a_warning_with_its_number(change: dict[str, float], words: str) -> None:
    assert warnings(GOOD) == []
    (warning,) = warnings(GOOD | change)

    assert re.search(words, warning)


def test_what_is_not_known_warns_of_nothing() -> None:
    assert warnings(GOOD | {"unplaced": None}) == []
