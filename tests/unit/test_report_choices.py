"""The tables and the page of questions that models answered."""

from __future__ import annotations

from typing import Any

import pytest

from potluck.formatting import TABLE_WIDTH
from potluck.report.choices import choices_page, render_choices, sentences


def share(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}


def level(mean: float) -> dict[str, Any]:
    return {"acc": share(mean), "acc_norm": share(mean - 0.01), "acc_bytes": share(mean - 0.02)}


def report(**changes: Any) -> dict[str, Any]:
    models = {"mixture": level(0.5), "dense": level(0.3)}
    table = {"questions": 40, "choices": 160, "chance": 0.25, "models": models}
    return {
        "name": "<a> run",
        "run": "f" * 64,
        "method": "choices",
        "names": ["mixture", "dense"],
        **table,
        "pairs": {"mixture - dense": {"acc": {"mean": 0.2, "low": 0.1, "high": 0.3}}},
        "by_group": {"<law>": table, "a-group-with-a-long-name-of-its-own": table},
        "bootstrap": {"samples": 200, "confidence": 0.95, "seed": 0},
        "cut": 0,
        "routing": None,
        **changes,
    }


def test_the_tables_have_every_model_with_its_interval_and_fit_80_columns() -> None:
    text = render_choices(report())
    assert "0.500 [0.400, 0.600]" in text
    assert "40 questions, 160 choices, chance 0.250" in text
    assert max(map(len, text.splitlines())) <= TABLE_WIDTH


def test_nothing_is_rounded_to_a_win() -> None:
    told = sentences(report())
    assert "mixture is better than chance (acc)." in told
    assert "dense is not told apart from chance by so few questions (acc)." in told
    assert told[2] == "mixture is better than dense: acc +0.200, interval [+0.100, +0.300]."
    worse = report(models={"mixture": level(0.1), "dense": None}, pairs={"mixture - dense": None})
    assert sentences(worse) == [
        "mixture is worse than chance (acc).",
        "dense blew up: no figures.",
        "mixture against dense: no interval.",
    ]


@pytest.mark.parametrize(("low", "high", "said"), [(-0.2, -0.1, "is worse than"), (-0.1, 0.1, "is undecided against")])
def test_a_difference_is_told_by_its_interval(low: float, high: float, said: str) -> None:
    pairs = {"mixture - dense": {"acc": {"mean": 0.0, "low": low, "high": high}}}
    assert said in sentences(report(pairs=pairs))[2]


def test_what_was_cut_and_who_answered_is_told() -> None:
    told = sentences(report(cut=7, routing={"shares": [30, 10], "experts": []}))
    assert told[-2] == "7 of 160 choices did not fit: their contexts lost their beginning."
    assert told[-1] == "Questions by expert: 30, 10."


def test_the_page_escapes_names_and_shows_every_group() -> None:
    page = choices_page(report())
    assert "<law>" not in page
    assert "<a>" not in page
    assert page.count("0.490 [0.390, 0.590]") == 3
    assert "<script" not in page
