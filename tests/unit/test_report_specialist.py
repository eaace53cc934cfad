"""What a person is told about a specialist: a verdict that is never rounded to a win, and what it rests on."""

from __future__ import annotations

import math
from typing import Any

import pytest

from potluck.formatting import TABLE_WIDTH
from potluck.report.contest import contest_report
from potluck.report.specialist import (
    EXPLAINED,
    MIN_PACKS,
    fewer_steps,
    histogram_rows,
    render_specialist,
    sentences,
    specialist_page,
)

HISTOGRAM: dict[str, Any] = {
    "windows": 120,
    "domains": 64,
    "domains_with_rows": 64,
    "occupied_domains": 9,
    "effective_domains": 5.25,
    "entropy_domains": 4.0,
    "expected_noise": 0.17,
    "lost_mass": 0.0,
    "unplaced": 0.031,
    "planned_tokens": 100_000,
    "repeats": 8.0,
    "max_repeats": 12.0,
    "effective_pool": 12_500.0,
    "warnings": ["text is read <8.0> times"],
}


def pair(mean: float, low: float | None, high: float | None) -> dict[str, float | None]:
    half = None if low is None or high is None else (high - low) / 2
    return {"mean": mean, "low": low, "high": high, "smallest_effect": half}


def level(nll: float) -> dict[str, float]:
    return {"nll": nll, "perplexity": math.exp(nll), "bits_per_byte": nll / 2}


def report(on_target: Any, on_corpus: Any = None, *, packs: int = 40, sources: int = 1) -> dict[str, Any]:
    models = {"generalist": level(3.2), "specialist": level(3.0)}
    general = {"specialist - generalist": on_corpus or pair(0.4, 0.3, 0.5)}
    science: dict[str, Any] = {
        "models": models,
        "pairs": {"specialist - generalist": on_target},
        "by_source": {f"<source {i}>": {"rows": 20, "models": models, "pairs": {}} for i in range(sources)},
        "rows": 40,
        "packs": packs,
        "targets": 5000,
        "split": "test",
        "bootstrap": {"samples": 500, "confidence": 0.95, "seed": 1},
        "facts": {
            "method": "crisp",
            "steps": 100,
            "histogram": HISTOGRAM,
            "near_duplicates": {"rows": 1000, "excluded": 12},
            "on_the_corpus": {"models": models, "pairs": general},
        },
    }
    curves = {"specialist": [[10, 4.0], [20, 3.5]], "generalist": [[10, 4.1], [20, 3.6]]}
    return dict(contest_report(science, run="f" * 64, name="<recipes>", spec={}, curves=curves))


def test_a_better_specialist_is_told_with_interval_perplexity_and_smallest_effect() -> None:
    told = sentences(report(pair(-0.2, -0.25, -0.15)))[0]
    assert told.startswith("The specialist is better")
    assert "-0.2000 nats a token, 18.1% less perplexity, 95% interval [-0.2500, -0.1500]" in told
    assert "0.0500" in told


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (pair(0.2, 0.1, 0.3), "not better on held-out target text but worse: +0.2000"),
        (pair(-0.01, -0.03, 0.01), "not shown to be better on held-out target text: -0.0100"),
        (pair(-0.01, -0.02, 0.0), "not shown to be better"),
        (pair(-0.9, None, None), "too few for an interval"),
        (None, "not finite"),
    ],
)
def test_a_specialist_that_is_not_better_is_said_to_be_so(found: Any, said: str) -> None:
    told = sentences(report(found))[0]
    assert said in told
    assert "is better" not in told


def test_few_packs_decide_nothing_whatever_their_interval() -> None:
    told = sentences(report(pair(-0.9, -1.0, -0.8), packs=MIN_PACKS - 1))[0]
    assert told.startswith("Not shown to be better: -0.9000")
    assert "5 independent piece(s)" in told


def test_what_the_specialist_lost_on_the_corpus_is_told() -> None:
    assert sentences(report(pair(-0.2, -0.25, -0.15)))[-1] == (
        "On the corpus' own test text: the specialist is worse, +0.4000 nats a token, interval [+0.3000, +0.5000]."
    )


@pytest.mark.parametrize("sources", [1, 3])
def test_the_tables_fit_80_columns_the_specialist_first_and_sources_only_where_there_are_several(sources: int) -> None:
    text = render_specialist(report(pair(-0.2, -0.25, -0.15), sources=sources))
    lines = [line.split() for line in text.splitlines()]
    assert ["specialist", "target", "3.0000", "20.09", "1.5000"] in lines
    lines = text.splitlines()
    assert max(map(len, lines)) <= TABLE_WIDTH
    assert [line.split()[0] for line in lines[2:4]] == ["specialist", "generalist"]
    assert ("target's source" in text) == (sources > 1)


def test_every_figure_before_training_is_explained_on_the_page_and_all_text_is_escaped() -> None:
    rows = dict(histogram_rows(HISTOGRAM, {"rows": 1000, "excluded": 12}))
    assert rows["windows"] == "120 in 9 of 64 clusters"
    assert rows["near-duplicates"] == "12 of 1,000 rows left out"
    assert rows["repeats"] == "8.00 on average, 12.0 in one cluster"
    assert set(rows) == set(EXPLAINED)
    text = specialist_page(report(pair(-0.2, -0.25, -0.15), sources=2))
    assert "&lt;recipes&gt;" in text
    assert "&lt;8.0&gt;" in text
    assert "&lt;source 1&gt;" in text
    assert "<recipes>" not in text
    assert "<source" not in text


def test_fewer_steps_are_named_only_where_text_is_read_too_often() -> None:
    assert fewer_steps(HISTOGRAM, 100) == 50
    assert fewer_steps({**HISTOGRAM, "repeats": 4.0}, 100) is None
    assert fewer_steps({**HISTOGRAM, "repeats": 900.0}, 100) == 1
