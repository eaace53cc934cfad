"""Soups in the serving child: what is made of a bank, what is kept of it, and what there is no room for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from expert_node.soups import Soups
from potluck.config import to_mapping
from potluck.errors import PotluckError
from potluck.ids import digest_file
from potluck.lm.config import ModelConfig
from potluck.lm.model import load_decoder
from potluck.lm.soup import Soup
from potluck.lm.soup_config import SoupConfig
from potluck.lm.soup_memory import making_bytes, soup_serving_bytes

MODEL = ModelConfig(vocab=64, hidden=16, layers=1, heads=2, ffn=24, context=9)
BANK = SoupConfig(domains=4, experts=3, hidden=8)
SHAPE: dict[str, Any] = {"model": to_mapping(MODEL), "soup": to_mapping(BANK)}
SIZE = 4 * MODEL.num_parameters
AMPLE = 1 << 40


def soup_file(folder: Path, *, seed: int = 0) -> tuple[Soup, Path]:
    torch.set_num_threads(1)
    soup = Soup(MODEL, BANK, seed=seed)
    soup.bank["experts"].normal_(0.0, 0.05, generator=torch.Generator().manual_seed(seed))
    path = folder / f"soup-{seed}.safetensors"
    save_file(soup.tensors(), path)
    return soup, path


def loaded(folder: Path, *, available_bytes: Callable[[], int] = lambda: AMPLE, **limits: int) -> Soups:
    soups = Soups(available_bytes=available_bytes, **limits)
    for number, name in enumerate(("first", "second")):
        soups.load(name, SHAPE, soup_file(folder, seed=number)[1])
    return soups


def made_keys(soups: Soups, *mixtures: tuple[tuple[int, float], ...], in_use: tuple[str, ...] = ()) -> list[str]:
    return [soups.make("first", mixture, in_use=in_use).key for mixture in mixtures]


ONE, TWO, THREE = ((0, 1.0),), ((0, 0.25), (3, 0.75)), ((2, 1.0),)


def test_a_model_is_that_of_the_mixture_and_its_digest_that_of_its_file(tmp_path: Path) -> None:
    soups, (soup, _) = loaded(tmp_path), soup_file(tmp_path)
    made = soups.make("first", TWO, in_use=())
    weights = soup.instantiate(torch.tensor([0.25, 0.0, 0.0, 0.75]))
    save_file(weights, tmp_path / "theta.safetensors")
    assert made.digest == digest_file(tmp_path / "theta.safetensors")
    plain, ids = load_decoder(MODEL, tmp_path / "theta.safetensors"), torch.tensor([[5, 9, 11]])
    assert torch.equal(made.decoder(ids), plain(ids))
    assert len(made.coefficients) == BANK.experts


def test_the_least_recently_used_goes_first_by_count(tmp_path: Path) -> None:
    soups = loaded(tmp_path, max_made=2)
    made_keys(soups, ONE, TWO)
    assert soups.find("first", ONE) is not None
    made_keys(soups, THREE)
    assert soups.find("first", TWO) is None
    assert soups.find("first", ONE) is not None
    assert soups.find("second", ONE) is None


def test_the_least_recently_used_goes_first_by_bytes_and_one_may_always_stay(tmp_path: Path) -> None:
    soups = loaded(tmp_path, max_made_bytes=2 * SIZE)
    made_keys(soups, ONE, TWO, THREE)
    assert [soups.find("first", mixture) is None for mixture in (ONE, TWO, THREE)] == [True, False, False]
    small = loaded(tmp_path, max_made_bytes=1)
    made_keys(small, ONE, TWO)
    assert [small.find("first", mixture) is None for mixture in (ONE, TWO)] == [True, False]


def test_what_is_in_use_stays_and_a_model_more_than_there_is_room_for_is_refused(tmp_path: Path) -> None:
    soups = loaded(tmp_path, max_made=2)
    used = made_keys(soups, ONE, TWO)
    with pytest.raises(PotluckError, match="all in use") as caught:
        soups.make("first", THREE, in_use=used)
    assert caught.value.error_id == "resource.busy"
    soups.make("first", THREE, in_use=used[:1])
    assert [soups.find("first", mixture) is None for mixture in (ONE, TWO, THREE)] == [False, True, False]


def test_a_bank_that_goes_takes_its_models_with_it(tmp_path: Path) -> None:
    soups = loaded(tmp_path)
    made_keys(soups, ONE)
    soups.make("second", ONE, in_use=())
    soups.unload("first")
    assert "first" not in soups
    assert soups.find("first", ONE) is None
    assert soups.find("second", ONE) is not None
    with pytest.raises(PotluckError) as caught:
        soups.make("first", ONE, in_use=())
    assert caught.value.error_id == "refused.not-served"


def test_a_bank_that_memory_has_no_room_for_is_not_loaded_and_a_model_makes_room_or_is_refused(tmp_path: Path) -> None:
    _, path = soup_file(tmp_path)
    with pytest.raises(PotluckError, match=r"a soup of 3 experts takes .* are available") as caught:
        Soups(available_bytes=lambda: soup_serving_bytes(MODEL, BANK) - 1).load("first", SHAPE, path)
    assert caught.value.error_id == "resource.memory"
    available = [AMPLE]
    soups = loaded(tmp_path, available_bytes=lambda: available[0])
    made_keys(soups, ONE)
    available[0] = making_bytes(MODEL) - 1
    with pytest.raises(PotluckError, match="one more model of the soup") as caught:
        soups.make("first", TWO, in_use=())
    assert caught.value.error_id == "resource.memory"
    assert soups.find("first", ONE) is None


@pytest.mark.parametrize(
    "listed",
    [[], [[0, 0.5]], [[0, 0.5], [0, 0.5]], [[4, 1.0]], [[-1, 1.0]], [[0, 1.5], [1, -0.5]], [[0, float("nan")]]],
)
def test_what_is_no_mixture_of_the_soup_is_refused(tmp_path: Path, listed: list[list[float]]) -> None:
    soups = loaded(tmp_path)
    with pytest.raises(PotluckError) as caught:
        soups.mixture("first", listed)
    assert caught.value.error_id == "refused.bad-mixture"
    assert soups.mixture("first", [[3, 0.75], [1, 0.0], [0, 0.25]]) == TWO
