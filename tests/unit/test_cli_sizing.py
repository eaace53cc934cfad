from __future__ import annotations

import math
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from coordinator.plans.smalltalk_sizes import Cell, Sizes
from potluck.sizing import (
    EPOCH_MARGIN,
    Machine,
    Rates,
    choose,
    cost_of,
    ladder,
    makespan,
    predict_seconds,
    spec_of,
)
from potluck.specfile import same_call, spec_text
from potluck.specs.instantiate import InstantiateSpec, SoupSource
from potluck.specs.run import UNKNOWN_DIGEST, parse_run_file
from potluck.specs.single import TrainingSpec
from potluck.specs.soup import BankSpec, SoupControls, SoupSpec

FAST = Rates(expert_flops_per_second=4e10, router_tokens_per_second=8e4, score_tokens_per_second=2.5e5)
LAPTOP = Machine(cores=2, nodes=4, rates=FAST)
MUCH_TEXT = 10**12


@pytest.mark.parametrize("index", [0, 5, 10, 16])
def test_costs_are_those_the_plan_will_ask_for(index: int) -> None:
    spec = spec_of(ladder()[index])
    cost, sizes = cost_of(spec), Sizes(spec=spec)
    dense = Cell(batch_size=spec.dense.batch_size, learning_rate=spec.dense.learning_rate)
    expert = Cell(batch_size=spec.experts.batch_size, learning_rate=spec.experts.learning_rate)
    assert cost.mixture_flops == pytest.approx(sizes.mixture_flops["total"])
    assert cost.dense_steps == sizes.dense_steps(dense)
    assert cost.expert_steps == sizes.expert_steps(expert)
    assert cost.router_steps == sizes.router_steps


def test_every_rung_is_a_spec_that_costs_more_than_the_one_below() -> None:
    seconds = [predict_seconds(spec_of(rung), LAPTOP, train_tokens=10**7) for rung in ladder()]
    assert seconds == sorted(seconds)
    assert len(set(seconds)) == len(seconds)


def test_presets_grow_only_where_experts_get_twenty_tokens_a_parameter() -> None:
    for rung in ladder():
        ratio = rung.tokens_per_expert / spec_of(rung).expert_model().num_parameters
        assert ratio >= 20 or rung.preset == "0.04M"


@pytest.mark.parametrize("minutes", [1.0, 3.0, 8.0, 60.0, 600.0])
def test_a_chosen_rung_fits_the_time_at_the_safe_rate(minutes: float) -> None:
    sized = choose(minutes, LAPTOP, train_tokens=MUCH_TEXT)
    assert sized.seconds <= 60 * minutes or sized.limited_by == "floor"


def test_more_minutes_never_choose_less() -> None:
    rungs = [choose(m, LAPTOP, train_tokens=10**9).rung.index for m in (0.3, 1, 3, 8, 20, 60)]
    assert rungs == sorted(rungs)
    assert rungs[-1] > rungs[0]


def test_little_text_limits_the_run_to_one_epoch() -> None:
    sized = choose(600, LAPTOP, train_tokens=10**7)
    assert sized.limited_by == "text"
    assert sized.epochs <= EPOCH_MARGIN


@pytest.mark.parametrize(("minutes", "tokens"), [(0.01, MUCH_TEXT), (60.0, 1000)])
def test_the_lowest_rung_runs_even_if_nothing_fits(minutes: float, tokens: int) -> None:
    sized = choose(minutes, LAPTOP, train_tokens=tokens)
    assert sized.rung.index == 0
    assert sized.limited_by == "floor"


@pytest.mark.parametrize(
    ("jobs", "workers", "cores", "seconds"),
    [
        ([4.0], 4, 2, 4.0),
        ([1.0] * 4, 4, 2, 2.0),
        ([1.0] * 4, 1, 2, 4.0),
        ([3.0, 1.0, 1.0, 1.0], 2, 2, 3.0),
        ([], 4, 2, 0.0),
    ],
)
def test_makespan_of_processes_that_share_cores(jobs: list[float], workers: int, cores: int, seconds: float) -> None:
    assert makespan(jobs, workers=workers, cores=cores) == pytest.approx(seconds)


def test_no_schedule_beats_the_work_or_the_longest_job() -> None:
    jobs = [5.0, 4.0, 3.0, 2.5, 1.0, 0.5]
    took = makespan(jobs, workers=4, cores=2)
    assert took >= max(sum(jobs) / 2, max(jobs)) - 1e-9
    assert math.isfinite(took)


def test_a_written_spec_reads_back_as_the_same_spec(tmp_path: Path) -> None:
    spec = spec_of(ladder()[7])
    text = spec_text(spec, data="text", name="x", call={"minutes": 8.0}, remarks=["sized"])
    file = parse_run_file(tomllib.loads(text))
    assert file.canonical(spec.corpus) == spec
    assert (file.data, file.name) == ("text", "x")


def test_a_spec_file_knows_the_call_that_wrote_it(tmp_path: Path) -> None:
    path = tmp_path / "spec.toml"
    path.write_text(spec_text(spec_of(ladder()[0]), data="text", name="x", call={"minutes": 8.0}, remarks=[]))
    assert same_call(path, {"minutes": 8.0})
    assert not same_call(path, {"minutes": 3.0})
    assert not same_call(tmp_path / "other.toml", {"minutes": 8.0})


def test_quotes_and_backslashes_survive_the_spec_file() -> None:
    spec = spec_of(ladder()[0])
    text = spec_text(spec, data='a "b" \\ é', name="x", call={}, remarks=[])
    assert tomllib.loads(text)["data"] == 'a "b" \\ é'


def test_the_manual_shows_a_spec_that_is_accepted() -> None:
    manual = (Path(__file__).parents[2] / "docs" / "spec.md").read_text()
    block = manual.split("```toml\n")[1].split("```")[0]
    assert parse_run_file(tomllib.loads(block)).data == "my_text"


def test_the_manual_shows_every_key_of_a_soup_with_its_default() -> None:
    manual = (Path(__file__).parents[2] / "docs" / "spec.md").read_text()
    (block,) = [each for each in manual.split("```toml\n") if each.startswith('method = "soup"')]
    shown = tomllib.loads(block.split("```")[0])
    assert (
        parse_run_file({**shown, "data": "x"}).canonical(UNKNOWN_DIGEST)
        == SoupSpec(method="soup", corpus=UNKNOWN_DIGEST).resolved()
    )
    for section, kind in (("bank", BankSpec), ("controls", SoupControls), ("training", TrainingSpec)):
        assert set(shown[section]) == {field.name for field in fields(kind)}


def test_the_manual_names_every_key_of_a_soups_specialist() -> None:
    manual = (Path(__file__).parents[2] / "docs" / "spec.md").read_text()
    rows = manual.split('method = "instantiate"')[1]
    assert all(f"`soup.{field.name}`" in rows for field in fields(SoupSource))
    own = {field.name for field in fields(InstantiateSpec)} - {field.name for field in fields(SoupSpec)}
    assert own == {"soup", "weights"}
    assert "`weights`" in rows
