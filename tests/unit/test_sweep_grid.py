"""The grid of a sweep: which specs its cells are, and what it refuses before anything runs."""

from __future__ import annotations

from typing import Any

import pytest

from potluck.errors import PotluckError
from potluck.sizing import cost_of
from potluck.specs.run import RunFile, parse_run_file
from potluck.specs.single import SingleSpec
from potluck.specs.smalltalk import SmallTalkSpec
from potluck.sweeps import MAX_NAME, Cell, axes_of, cells_of, shown


def run_file(**body: Any) -> RunFile:
    return parse_run_file(
        {"data": "text", "name": "s", "method": "single", "training": {"steps": 40, "batch_size": 8}, **body}
    )


def cells(file: RunFile, *, sets: tuple[str, ...] = (), **options: str) -> tuple[Cell, ...]:
    return cells_of(file, axes_of(file, sets=sets, **options))


def specs(file: RunFile, *, sets: tuple[str, ...] = (), **options: str) -> list[SingleSpec]:
    drafts = [cell.draft for cell in cells(file, sets=sets, **options)]
    return [draft for draft in drafts if isinstance(draft, SingleSpec)]


def test_every_combination_is_the_files_spec_with_those_keys_replaced() -> None:
    found = specs(run_file(seed=3), learning_rate="3e-3,6e-3", optimizer="adamw,ademamix")
    assert [(spec.training.learning_rate, spec.optimizer.name) for spec in found] == [
        (3e-3, "adamw"),
        (3e-3, "ademamix"),
        (6e-3, "adamw"),
        (6e-3, "ademamix"),
    ]
    assert {(spec.seed, spec.training.steps) for spec in found} == {(3, 40)}


def test_a_cell_with_the_files_own_values_is_the_files_own_run() -> None:
    file = run_file()
    (cell,) = cells(file, batch="8")
    assert cell.draft.id == cells(file, learning_rate="0.006")[0].draft.id == file.canonical(cell.draft.corpus).id


def test_another_batch_size_reads_equally_many_rows() -> None:
    found = specs(run_file(), batch="4,8,16")
    assert [(spec.training.batch_size, spec.training.steps) for spec in found] == [(4, 80), (8, 40), (16, 20)]


def test_steps_that_are_varied_count_in_the_files_batch_size() -> None:
    found = specs(run_file(), batch="8,16", sets=("training.steps=40,80",))
    assert [spec.training.steps for spec in found] == [40, 80, 20, 40]


def test_a_batch_size_that_does_not_divide_the_rows_is_refused_with_what_would() -> None:
    with pytest.raises(PotluckError, match=r"--batch 12: .* 320 rows") as refused:
        cells(run_file(), batch="8,12")
    assert "a multiple of 3" in refused.value.fix


def test_another_optimizer_keeps_what_both_know_and_takes_its_own_averages() -> None:
    file = run_file(optimizer={"name": "adamw", "beta1": 0.8, "weight_decay": 0.3})
    adamw, ademamix = (spec.optimizer for spec in specs(file, optimizer="adamw,ademamix"))
    assert (adamw.beta1, adamw.weight_decay) == (0.8, 0.3)
    assert (ademamix.name, ademamix.beta1, ademamix.weight_decay) == ("ademamix", 0.9, 0.3)


def test_any_dotted_key_can_be_varied_whatever_its_type() -> None:
    sets = ("seed=0,1", "training.warmup_fraction=0", "model.preset=0.05M,0.08M", "profile.compile=true,false")
    found = specs(run_file(), sets=sets)
    assert len(found) == 8
    assert {spec.model.hidden for spec in found} == {32, 40}
    assert {spec.profile.compile for spec in found} == {True, False}
    assert {spec.training.warmup_fraction for spec in found} == {0.0}


def test_the_optimizer_is_replaced_before_the_keys_inside_it() -> None:
    found = specs(run_file(), sets=("optimizer.alpha=4,8", "optimizer=ademamix"))
    assert [getattr(spec.optimizer, "alpha", None) for spec in found] == [4.0, 8.0]


def smalltalk(**body: Any) -> RunFile:
    return parse_run_file({"data": "text", "name": "s", **body})


def test_both_sides_of_a_smalltalk_run_go_in_step_and_are_tabled_on_valid_text() -> None:
    found = [cell.draft for cell in cells(smalltalk(), learning_rate="1e-3", batch="8,16")]
    for spec, batch in zip(found, (8, 16), strict=True):
        assert isinstance(spec, SmallTalkSpec)
        assert (spec.experts.batch_size, spec.dense.batch_size) == (batch, batch)
        assert (spec.experts.learning_rate, spec.dense.learning_rate) == (1e-3, 1e-3)
        assert (spec.search.mode, spec.search.expert_batch, spec.search.dense_batch) == ("grid", (batch,), (batch,))
    assert {cost_of(spec).expert_tokens for spec in found if isinstance(spec, SmallTalkSpec)} == {4 * 16_384 * 128}


def test_a_spec_that_searches_by_itself_is_refused_for_a_sweep_is_a_search() -> None:
    lists = {f"{side}_{what}": [8] for side in ("dense", "expert") for what in ("batch", "learning_rate")}
    with pytest.raises(PotluckError, match=r'search\.mode = "grid"'):
        cells(smalltalk(search={"mode": "grid", **lists}), batch="8")


def test_a_method_without_a_training_to_vary_is_refused() -> None:
    with pytest.raises(PotluckError, match='method = "cluster"'):
        cells(parse_run_file({"data": "text", "method": "cluster"}), batch="8")


def test_equal_values_make_one_cell() -> None:
    assert len(cells(run_file(), learning_rate="3e-3,0.003", sets=("seed=0,0",))) == 1


def test_a_run_is_named_after_its_sweep_and_cell() -> None:
    names = [cell.file.name for cell in cells(run_file(), learning_rate="3e-3", batch="8,16")]
    assert names == ["s/lr=0.003,batch=8", "s/lr=0.003,batch=16"]
    long = cells(run_file(name="n" * 64), batch="8,16")
    assert len({cell.file.name for cell in long}) == 2
    assert all(len(cell.file.name) <= MAX_NAME for cell in long)


@pytest.mark.parametrize(
    ("options", "error_id", "named"),
    [
        ({}, "usage.empty-grid", "nothing to vary"),
        ({"batch": "8,,16"}, "usage.empty-grid", "--batch"),
        ({"batch": "8.5"}, "usage.bad-value", "--batch 8.5"),
        ({"batch": "0"}, "usage.bad-value", "--batch 0"),
        ({"learning_rate": "fast"}, "usage.bad-value", "--learning-rate fast"),
        ({"learning_rate": "nan"}, "usage.bad-value", "--learning-rate nan"),
        ({"optimizer": "sgd"}, "spec.bad-value", "--optimizer sgd"),
        ({"sets": ("training.warmup=1",)}, "spec.unknown-key", "--set training.warmup 1"),
        ({"sets": ("training.warmup_fraction=abc",)}, "spec.wrong-type", "--set training.warmup_fraction abc"),
        ({"sets": ("experts.num=2",)}, "spec.unknown-key", "experts"),
        ({"sets": ("training.steps.x=2",)}, "spec.unknown-key", "training.steps.x"),
        ({"sets": ("seed",)}, "usage.bad-value", "--set seed"),
        ({"sets": ("method=smalltalk",)}, "usage.bad-value", "--set method"),
        ({"sets": ("text.vocab_size=300,400",)}, "usage.bad-value", "--set text.vocab_size"),
        ({"batch": "8", "sets": ("training.batch_size=16",)}, "usage.bad-value", "training.batch_size is varied twice"),
        ({"sets": ("profile.micro_batch=3",)}, "spec.bad-value", "profile.micro_batch = 3"),
        ({"sets": (f"seed={','.join(map(str, range(257)))}",)}, "usage.grid-too-large", "257 cells"),
    ],
)
def test_what_cannot_be_swept_is_refused_naming_the_option(options: dict[str, Any], error_id: str, named: str) -> None:
    with pytest.raises(PotluckError) as refused:
        cells(run_file(), **options)
    assert refused.value.error_id == error_id
    assert named in refused.value.message
    assert refused.value.fix


def test_values_are_shown_as_a_person_types_them() -> None:
    values = (0.003, 1e5, 3.123456789, 8, True, "adamw")
    assert [shown(value) for value in values] == ["0.003", "100000", "3.123456789", "8", "true", "adamw"]
