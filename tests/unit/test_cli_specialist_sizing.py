"""How large a specialist fits a time, and the spec file it is repeated from."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from potluck.commands.text import gather
from potluck.errors import CorpusError, SpecError
from potluck.ids import Digest
from potluck.lm.flops import train_flops
from potluck.sizing import Machine, Rates
from potluck.sizing_specialist import MAX_EPOCHS, Wish, choose, cost_of, predict_seconds, spec_for
from potluck.specfile import spec_text
from potluck.specs.crisp import CrispSpec, TargetWeight
from potluck.specs.partition import PartitionSpec
from potluck.specs.run import UNKNOWN_DIGEST, parse_run_file

RATES = Rates(expert_flops_per_second=2e10, router_tokens_per_second=8e4, score_tokens_per_second=2.5e5)
LAPTOP = Machine(cores=2, nodes=1, rates=RATES)
MUCH_TEXT = 2 * 10**7
PARTITION = PartitionSpec(by="clusters", k=64)
WISH = Wish(partition=PARTITION)


@pytest.mark.parametrize("minutes", [2.0, 6.0, 60.0, 600.0])
def test_a_chosen_pair_fits_the_time_and_the_text(minutes: float) -> None:
    sized = choose(minutes, LAPTOP, WISH, train_tokens=MUCH_TEXT)
    fits = sized.seconds <= 60 * minutes and cost_of(sized.spec, train_tokens=MUCH_TEXT).epochs <= MAX_EPOCHS
    assert fits or sized.limited_by == "floor"


def test_more_minutes_never_choose_less_until_the_text_decides() -> None:
    sized = [choose(minutes, LAPTOP, WISH, train_tokens=MUCH_TEXT) for minutes in (2, 4, 8, 30, 600)]
    steps = [one.spec.training.steps for one in sized]
    assert steps == sorted(steps)
    assert sized[-1].limited_by == "text"


def test_the_preset_grows_only_where_each_model_gets_twenty_tokens_a_parameter() -> None:
    for steps in (10, 500, 5000):
        spec = spec_for(WISH, steps=steps)
        tokens = cost_of(spec, train_tokens=MUCH_TEXT).tokens
        parameters = spec.full_model().num_parameters
        assert tokens >= 20 * parameters or spec.model == spec_for(WISH, steps=1).model


def test_a_preset_that_is_named_is_taken_and_an_unknown_one_refused() -> None:
    assert spec_for(Wish(partition=PARTITION, preset="0.9M"), steps=1).model.hidden == 128
    with pytest.raises(SpecError, match="preset"):
        spec_for(Wish(partition=PARTITION, preset="7B"), steps=1)


def test_the_two_models_are_counted_both_and_a_switch_shares_the_beginning() -> None:
    whole, shared = spec_for(WISH, steps=100), spec_for(Wish(partition=PARTITION, switch_fraction=0.5), steps=100)
    flops = 100 * 16 * train_flops(whole.full_model(), 128)
    assert cost_of(whole, train_tokens=MUCH_TEXT).flops == pytest.approx(2 * flops)
    assert cost_of(shared, train_tokens=MUCH_TEXT).flops == pytest.approx(1.5 * flops)


def test_a_second_node_and_lsi_instead_of_an_encoder_take_less_time() -> None:
    spec = spec_for(WISH, steps=5000)
    two = Machine(cores=2, nodes=2, rates=RATES)
    one_s, two_s, encoded_s = (
        predict_seconds(spec, machine, train_tokens=MUCH_TEXT, has_encoder=has_encoder)
        for machine, has_encoder in ((LAPTOP, False), (two, False), (LAPTOP, True))
    )
    assert two_s < one_s < encoded_s


@pytest.mark.parametrize("target", [["a"], ["a", "b c"]])
def test_a_spec_file_names_target_and_encoder_by_path_and_gives_the_same_spec_again(target: list[str]) -> None:
    partition = PartitionSpec(by="clusters", k=8, encoder=UNKNOWN_DIGEST)
    wish = Wish(partition=partition, weights=(TargetWeight(name='p"x', weight=2.5),), finetune_steps=3)
    spec = spec_for(wish, steps=7)
    text = spec_text(spec, data="../text", name="n", call={}, remarks=[], target=target, encoder="../enc")
    file = parse_run_file(tomllib.loads(text))
    assert (file.data, file.target, file.encoder) == ("../text", tuple(target), "../enc")
    found = file.canonical(spec.corpus)
    assert isinstance(found, CrispSpec)
    assert found == spec
    assert file.canonical(spec.corpus, target=Digest("a" * 64)).id != spec.id


@pytest.mark.parametrize("target", [None, "", [], ["a", ""], [1], 3])
def test_a_target_that_is_no_path_is_refused(target: Any) -> None:
    raw = {"data": "x", "method": "crisp", **({} if target is None else {"target": target})}
    with pytest.raises(SpecError, match="target"):
        parse_run_file(raw)


def test_files_and_folders_are_gathered_as_if_kept_in_one(tmp_path: Path) -> None:
    (tmp_path / "poems" / "old").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    for name in ("poems/old/a.txt", "poems/b.txt", "c.txt", "other/c.txt"):
        (tmp_path / name).write_text(name)
    folder = tmp_path / "gathered"
    folder.mkdir()
    (folder / "stale.txt").write_text("stale")
    gather([tmp_path / "poems", tmp_path / "c.txt", tmp_path / "other" / "c.txt"], folder)
    found = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert found == {
        "poems/old/a.txt": "poems/old/a.txt",
        "poems/b.txt": "poems/b.txt",
        "c.txt": "c.txt",
        "3-c.txt": "other/c.txt",
    }
    with pytest.raises(CorpusError, match="absent"):
        gather([tmp_path / "absent"], folder)
