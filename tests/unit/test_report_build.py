from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest

from potluck.errors import DataError
from potluck.report import svg
from potluck.report.build import RunFacts, build_report, search_rows, verdict, where_dense_wins
from potluck.report.schema import check_report
from potluck.sizing import ladder, spec_of

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "report_v1.json").read_text())
SPEC = spec_of(ladder()[4])


def science() -> dict[str, Any]:
    kept = ("targets", "mixture", "dense", "random_split", "oracle", "mixture_minus_dense", "by_source", "routing")
    flops = {"router_training": 1.0, "router_scoring": 2.0, "expert_scoring": 3.0, "experts": 10.0, "total": 16.0}
    return {
        **{key: GOLDEN[key] for key in kept},
        "facts": {
            "epochs": GOLDEN["epochs"],
            "search": GOLDEN["search"],
            "routers": {"tokens": 100},
            "experts": {"tokens": 1000},
            "dense": {"tokens": 400},
            "random_split": None,
            "flops": {"mixture": flops, "dense": 15.5, "random_split": 0.0},
        },
    }


def facts() -> RunFacts:
    return RunFacts(
        run=SPEC.id,
        name="x",
        spec=SPEC,
        curves={"lineages": {"expert 0": [[1, 2.0]]}, "purity": [0.5]},
        bytes_by_plane={"control": 15, "corpus": 30, "scores": 45, "weights": 1500},
        tokens_per_second={"n": 5.0},
        ledger_ok=True,
        ledger_problems=(),
    )


def test_bytes_are_told_per_trained_token() -> None:
    report = build_report(science(), facts())
    assert report["bytes_per_trained_token"] == {"control": 0.01, "corpus": 0.02, "scores": 0.03, "weights": 1.0}


def test_the_papers_score_bytes_are_four_for_each_expert_and_row() -> None:
    paper = build_report(science(), facts())["paper_bytes"]
    assert paper["scores_per_trained_token"] == 4 * SPEC.experts.num / SPEC.text.sequence_length
    rows = (SPEC.routers.rounds - 1) * SPEC.routers.chunk_sequences + SPEC.experts.chunks * SPEC.experts.chunk_sequences
    assert paper["scores"] == 4 * SPEC.experts.num * rows


def test_the_mixtures_flops_are_the_sum_of_its_parts() -> None:
    flops = build_report(science(), facts())["flops"]
    assert flops["mixture"] == flops["routers"] + flops["scoring"] + flops["experts"]


def test_an_absent_control_is_left_out_of_tokens_and_flops() -> None:
    report = build_report(science(), facts())
    assert "random_split" not in report["tokens"]
    assert "random_split" not in report["flops"]


def test_the_cell_of_least_validation_loss_is_marked_on_each_side() -> None:
    rows = search_rows(build_report(science(), facts()))
    assert [row[-1] for row in rows] == ["taken", "taken", ""]
    assert rows[2][4] == "-"


@pytest.mark.parametrize(
    ("interval", "better"),
    [((-0.3, -0.2, -0.1), "mixture"), ((0.1, 0.2, 0.3), "dense"), ((-0.1, 0.0, 0.1), "undecided")],
)
def test_the_verdict_is_the_sign_of_the_interval(interval: tuple[float, float, float], better: str) -> None:
    low, mean, high = interval
    assert verdict({"mixture_minus_dense": {"low": low, "mean": mean, "high": high}})["better"] == better


def test_a_single_pack_decides_nothing() -> None:
    told = verdict({"mixture_minus_dense": {"low": None, "mean": -1.0, "high": None}})
    assert told["better"] == "undecided"


def test_a_perplexity_ratio_is_stated_for_whoever_is_better() -> None:
    text = verdict({"mixture_minus_dense": {"low": 0.1, "mean": math.log(2), "high": 0.9}})["text"]
    assert "50.0% lower perplexity" in text


def test_sources_on_which_dense_wins_come_worst_first() -> None:
    report = copy.deepcopy(GOLDEN)
    for source in report["by_source"]:
        report["by_source"][source]["mixture"]["nll_suffix"] = 1.0
        report["by_source"][source]["dense"]["nll_suffix"] = 2.0
    report["by_source"]["legal"]["dense"]["nll_suffix"] = 0.9
    report["by_source"]["quotes"]["dense"]["nll_suffix"] = 0.5
    assert where_dense_wins(report) == ["quotes", "legal"]


@pytest.mark.parametrize("path", ["ledger.ok", "bytes.scores", "mixture.nll_suffix", "by_source.legal.rows", "profile"])
def test_a_missing_key_is_named(path: str) -> None:
    report = copy.deepcopy(GOLDEN)
    *parents, last = path.split(".")
    inner = report
    for parent in parents:
        inner = inner[parent]
    del inner[last]
    with pytest.raises(DataError, match=path.replace(".", r"\.")):
        check_report(report)


@pytest.mark.parametrize("value", [math.nan, math.inf, True, "3.4"])
def test_a_number_must_be_a_finite_number(value: object) -> None:
    report = copy.deepcopy(GOLDEN)
    report["mixture"]["nll_suffix"] = value
    with pytest.raises(DataError, match=r"mixture\.nll_suffix"):
        check_report(report)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (3.1, 6.2), (-5.0, 5.0), (0.0, 3700.0), (1e-6, 2e-6)])
def test_ticks_are_few_and_inside(low: float, high: float) -> None:
    ticks = svg.nice_ticks(low, high)
    assert 2 <= len(ticks) <= 9
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks)


def test_an_empty_chart_says_so() -> None:
    assert "no values" in svg.line_chart({}, x_label="x", y_label="y")


def test_a_flat_line_has_a_place() -> None:
    assert "nan" not in svg.line_chart({"a": [(1.0, 2.0), (2.0, 2.0)]}, x_label="x", y_label="y")


def test_a_long_line_is_thinned_and_keeps_its_end() -> None:
    drawing = svg.line_chart({"a": [(float(i), float(i)) for i in range(10_000)]}, x_label="x", y_label="y")
    assert drawing.count(",") < 2 * svg.MAX_POINTS
    assert "704.0," in drawing
