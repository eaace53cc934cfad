"""The engine benchmark's arithmetic on given times, and that it runs at all; no time is judged."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from benchmarks.engine import main
from benchmarks.engine_contest import Turn, median_with_interval, overall, ratios
from benchmarks.engine_setting import recipe_of


def turn(steps: int, seconds: float, cpu_seconds: float = 1.0) -> Turn:
    return Turn(steps=steps, seconds=seconds, cpu_seconds=cpu_seconds)


ROUNDS = [
    {"node": turn(10, 1.0), "bare": turn(20, 4.0)},
    {"node": turn(5, 1.0, 0.5), "bare": turn(5, 1.0)},
    {"node": turn(1, 2.0), "bare": turn(2, 2.0)},
]


def test_a_ratio_is_of_steps_a_second_within_each_round() -> None:
    assert ratios(ROUNDS, "node", "bare") == [2.0, 1.0, 0.5]


def test_by_the_processors_clock_other_programs_take_no_time() -> None:
    assert ratios(ROUNDS, "node", "bare", clock="cpu_seconds") == [0.5, 2.0, 0.5]


def test_overall_all_steps_count_alike() -> None:
    assert math.isclose(overall(ROUNDS, "node", "bare"), (16 / 4) / (27 / 7))


def test_the_interval_holds_the_median_is_that_of_equal_values_and_narrows_with_more_of_them() -> None:
    few, many = [0.9, 1.0, 1.1], [0.9, 1.0, 1.1] * 40
    one, other = median_with_interval(few), median_with_interval(many)
    assert one["low"] <= one["median"] == 1.0 <= one["high"]
    assert other["high"] - other["low"] < one["high"] - one["low"]
    assert median_with_interval(few) == one
    assert set(median_with_interval([2.0] * 5).values()) == {2.0}


def test_commits_keep_to_64_bytes_a_token() -> None:
    recipe = recipe_of("2.5M", 256)
    checkpoint, tokens = 12 * recipe.model.num_parameters, 16 * 256
    assert checkpoint / (recipe.commit_every * tokens) <= 64 < checkpoint / ((recipe.commit_every - 1) * tokens)


def test_the_quick_contest_gives_each_ratio_its_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    assert main(["--quick", "--json", str(tmp_path / "figures.json")]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    for name in ("node_vs_bare", "node_vs_transformers", "optimizer_share"):
        assert figures[name]["low"] <= figures[name]["median"] <= figures[name]["high"]
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_a_device_that_is_not_there_is_refused_with_the_fix(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--quick", "--device", "cuda:99"]) == 2
    error = capsys.readouterr().err
    assert "resource.device" in error
    assert 'set device = "cpu"' in error
