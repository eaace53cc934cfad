"""The table and the page of a sweep."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any

import pytest

from potluck.formatting import TABLE_WIDTH
from potluck.report import svg
from potluck.report.sweep import Outcome, figures_of, render_sweep, sweep_page, sweep_report
from potluck.specs.run import parse_run_file
from potluck.sweeps import axes_of, cells_of

Figures = tuple[float | None, float | None]


def outcome(cell: Any, figures: Figures | str) -> Outcome:
    """A finished cell with NLL on valid and test text, or one that failed of something."""
    run = cell.draft.id
    if isinstance(figures, str):
        return Outcome(cell=cell, run=run, state="failed", reason=figures, results={})
    levels = {
        split: {"models": {"model": None if nll is None else {"nll": nll, "perplexity": 1.0}}}
        for split, nll in zip(("valid", "test"), figures, strict=True)
    }
    return Outcome(cell=cell, run=run, state="finished", reason="", results={"headline": levels})


def swept(*figures: Figures | str, name: str = "s", **options: Any) -> dict[str, Any]:
    body = {"data": "text", "name": name, "method": "single", "training": {"steps": 40, "batch_size": 8}}
    file = parse_run_file(body)
    axes = axes_of(file, **options)
    outcomes = [outcome(cell, one) for cell, one in zip(cells_of(file, axes), figures, strict=True)]
    return sweep_report(name, axes, outcomes)


RATES = {"learning_rate": "0.001,0.003,0.01"}


def test_settings_are_chosen_on_valid_text_whatever_test_text_says() -> None:
    report = swept((3.0, 1.0), (2.0, 2.5), (2.5, 1.5), **RATES)
    assert [one["valid_nll"] for one in report["settings"]] == [2.0, 2.5, 3.0]
    assert report["best"] == "lr=0.003"
    assert report["edges"] == []


def test_of_equal_settings_the_first_of_the_grid_is_best() -> None:
    assert swept((2.0, 2.0), (2.0, 1.0), learning_rate="0.003,0.001")["best"] == "lr=0.003"


@pytest.mark.parametrize(("best", "end"), [(0, "least"), (2, "largest")])
def test_a_best_on_an_edge_of_the_grid_is_told(best: int, end: str) -> None:
    report = swept(*[(1.0 if i == best else 2.0, 2.0) for i in range(3)], **RATES)
    assert [edge["end"] for edge in report["edges"]] == [end]
    assert f"is the {end} tried" in render_sweep(report).replace("\n", " ")


def test_a_best_beside_a_cell_that_failed_is_on_no_edge() -> None:
    assert swept((3.0, 3.0), (2.0, 2.0), "loss nan", **RATES)["edges"] == []


def test_what_is_no_number_has_no_edge() -> None:
    assert swept((3.0, 3.0), (2.0, 2.0), optimizer="adamw,ademamix")["edges"] == []


def test_failed_and_diverged_cells_stay_in_the_table_with_their_reason() -> None:
    report = swept("the model: loss nan at step 7", (None, None), (2.0, 2.0), **RATES)
    assert [one["state"] for one in report["settings"]] == ["finished", "failed", "diverged"]
    for text in (render_sweep(report).replace("\n", " "), sweep_page(report)):
        assert "lr=0.001 failed: the model: loss nan at step 7" in text
        assert "lr=0.01 diverged" not in text
        assert "lr=0.003 diverged: its NLL on valid text is not finite" in text


def test_a_sweep_of_which_nothing_came_has_no_best() -> None:
    report = swept("a", "b", "c", **RATES)
    assert report["best"] is None
    assert "No cell has a figure" in render_sweep(report)
    assert "no values" in sweep_page(report)


def test_equal_tokens_are_told_and_so_are_unequal_ones() -> None:
    equal = swept((2.0, 2.0), (3.0, 3.0), batch="8,16")
    assert {(one["tokens"], one["flops"]) for one in equal["settings"]} == {
        (40 * 8 * 128, equal["settings"][0]["flops"])
    }
    assert "Every cell trains on 41k tokens" in render_sweep(equal)
    assert "different numbers of tokens" in render_sweep(swept((2.0, 2.0), (3.0, 3.0), sets=("training.steps=40,80",)))


def test_one_seed_claims_nothing() -> None:
    assert "One seed: no claim" in render_sweep(swept((2.0, 2.0), (3.0, 3.0), batch="8,16"))


def test_several_seeds_make_one_row_with_mean_and_spread() -> None:
    report = swept((2.0, 2.1), (4.0, 4.1), (3.1, 3.0), (3.1, 3.0), batch="8,16", sets=("seed=0,1",))
    assert [(one["label"], one["valid_nll"]) for one in report["settings"]] == [("batch=8", 3.0), ("batch=16", 3.1)]
    assert report["settings"][0]["valid_sd"] == pytest.approx(2**0.5)
    assert [len(one["runs"]) for one in report["settings"]] == [2, 2]
    assert "Means over 2 seeds" in render_sweep(report)


def test_a_setting_is_not_ranked_by_the_seeds_that_survived() -> None:
    report = swept((1.0, 1.0), "loss nan", (3.0, 3.0), (3.0, 3.0), batch="8,16", sets=("seed=0,1",))
    assert report["best"] == "batch=16"
    assert report["settings"][1]["valid_nll"] is None


@pytest.mark.parametrize("sets", [(), ("training.warmup_fraction=0.05", "optimizer.weight_decay=0.1,0.2")])
def test_the_table_has_at_most_80_columns(sets: tuple[str, ...]) -> None:
    count = 12 if not sets else 24
    options = {**RATES, "batch": "8,16", "optimizer": "adamw,ademamix", "sets": sets}
    text = render_sweep(swept(*[(2.0 + i, 2.0) for i in range(count)], **options))
    assert max(map(len, text.splitlines())) <= TABLE_WIDTH
    assert {"lr", "optimizer", "tokens", "valid", "test"} <= set(text.splitlines()[1].split())


def test_sweep_json_holds_every_cell_and_only_finite_numbers() -> None:
    report = swept((None, None), "loss nan", (2.0, None), **RATES)
    assert json.loads(json.dumps(report, allow_nan=False))["cells"] == report["cells"]
    assert len(report["cells"]) == 3


def test_figures_of_a_run_without_results_are_absent() -> None:
    assert figures_of({}) == (None, None)


def test_a_mixture_is_chosen_by_its_own_nll_and_its_twins_best_is_told() -> None:
    file = parse_run_file({"data": "text", "name": "s"})
    axes = axes_of(file, **RATES)
    outcomes = [
        Outcome(
            cell=cell,
            run=cell.draft.id,
            state="finished",
            reason="",
            results={
                "headline": {"mixture": {"nll_suffix": mixture + 0.1}},
                "search": {"experts": [{"valid_nll_suffix": mixture}], "dense": [{"valid_nll_suffix": twin}]},
            },
        )
        for cell, mixture, twin in zip(cells_of(file, axes), (3.0, 2.0, 4.0), (2.5, 2.7, 2.9), strict=True)
    ]
    report = sweep_report("s", axes, outcomes)
    assert (report["best"], report["settings"][0]["test_nll"]) == ("lr=0.003", 2.1)
    text = render_sweep(report).replace("\n", " ")
    assert "it is best on valid text at lr=0.001, NLL 2.5000" in text
    assert "Every cell trains on" in text


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_page_escapes_what_people_wrote_and_loads_nothing() -> None:
    text = sweep_page(swept((2.0, 2.0), "<script>alert(1)</script>", batch="8,16", name="<b>&"))
    tags = _Tags()
    tags.feed(text)
    assert not {"script", "b", "link", "img"} & {tag for tag, _ in tags.found}
    assert not any({"src", "href"} & set(attributes) for _, attributes in tags.found)
    assert "&lt;b&gt;&amp;" in text


def test_the_plot_has_a_line_for_each_of_the_other_settings_over_a_logarithmic_axis() -> None:
    options = {**RATES, "batch": "8,16"}
    text = sweep_page(swept(*[(2.0 + i, 2.0) for i in range(6)], **options))
    assert text.count("<polyline") == 2
    xs = [point.split(",")[0] for point in text.split('points="')[1].split('"')[0].split(" ")]
    first, second, third = map(float, xs)
    assert (second - first) / (third - first) == pytest.approx(0.477, abs=0.01)


def test_settings_without_numbers_are_drawn_as_bars() -> None:
    assert sweep_page(swept((2.0, 2.0), (3.0, 3.0), optimizer="adamw,ademamix")).count('class="bar') == 2


@pytest.mark.parametrize(("low", "high"), [(1e-3, 0.2), (3e-3, 6e-3), (8.0, 64.0), (2.8e-3, 3.1e-3), (1e-6, 1.0)])
def test_ticks_of_a_logarithmic_axis_are_few_and_inside(low: float, high: float) -> None:
    ticks = svg.log_ticks(low, high)
    assert 2 <= len(ticks) <= 9
    assert all(low * 0.999 <= tick <= high * 1.001 for tick in ticks)


def test_a_logarithmic_axis_of_less_than_a_decade_has_ticks_at_round_numbers() -> None:
    assert svg.log_ticks(2.9e-3, 1.04e-2) == [0.003, 0.004, 0.005, 0.006, 0.008, 0.01]


def test_a_logarithmic_axis_of_one_value_has_a_place() -> None:
    drawing = svg.line_chart({"a": [(0.01, 2.0)]}, x_label="x", y_label="y", x_log=True, dots=True)
    assert "nan" not in drawing
    assert drawing.count("<circle") == 1
