import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from potluck.lm.config import ModelConfig
from potluck.lm.loss import token_nll
from potluck.lm.model import init_decoder
from potluck.lm.score import StackedDecoders, nll_sums, prefix_mean_nll
from potluck.recipe import AdamWConfig, Recipe, Schedule

CONFIG = ModelConfig(vocab=300, hidden=24, layers=2, heads=2, ffn=64, context=32)
ROWS = np.random.default_rng(0).integers(0, 300, (7, 33)).astype(np.uint16)


def saved(folder: Path, seeds: range) -> list[Path]:
    paths = []
    for seed in seeds:
        model = init_decoder(CONFIG, seed=seed)
        paths.append(folder / f"{seed}.safetensors")
        save_file({name: p.detach() for name, p in model.named_parameters()}, paths[-1])
    return paths


def test_sums_before_and_after_the_prefix_skip_padding() -> None:
    model = init_decoder(CONFIG, seed=1)
    real = np.array([32, 20, 7, 8, 6, 1, 0], dtype=np.int32)
    found = nll_sums(model, ROWS, real, prefix=8, batch_size=3)
    nll = token_nll(model, torch.from_numpy(ROWS.astype(np.int64))).numpy()
    for i, count in enumerate(real):
        assert found[i, 0] == pytest.approx(nll[i, : min(7, count)].sum(), rel=1e-5, abs=1e-9)
        assert found[i, 1] == pytest.approx(nll[i, 7 : max(7, count)].sum(), rel=1e-5, abs=1e-9)
    assert found.dtype == np.float64


def test_prefix_scores_are_means_over_targets_two_to_m() -> None:
    model = init_decoder(CONFIG, seed=1)
    found = prefix_mean_nll(model, ROWS, prefix=16, batch_size=2)
    full = np.full(7, 32, dtype=np.int32)
    wanted = nll_sums(model, ROWS, full, prefix=16, batch_size=7)[:, 0] / 15
    assert found.dtype == np.float32
    assert np.allclose(found, wanted, atol=1e-5)


def test_text_after_the_prefix_never_changes_a_prefix_score() -> None:
    model = init_decoder(CONFIG, seed=1)
    other = ROWS.copy()
    other[:, 16:] = 0
    one, two = (prefix_mean_nll(model, rows, prefix=16, batch_size=4) for rows in (ROWS, other))
    assert np.array_equal(one, two)


@pytest.mark.parametrize("length", [2, 9, 32])
def test_stacked_decoders_are_the_single_ones(tmp_path: Path, length: int) -> None:
    stacked = StackedDecoders(CONFIG, saved(tmp_path, range(3)))
    ids = ROWS[0, :length]
    found = stacked.prefix_nll([int(i) for i in ids])
    wanted = [
        prefix_mean_nll(init_decoder(CONFIG, seed=s), ids[None], prefix=length, batch_size=1)[0] for s in range(3)
    ]
    assert found.shape == (3,)
    assert found.dtype == np.float32
    assert np.allclose(found, wanted, atol=1e-5)


def test_one_token_is_no_evidence_and_none_is_an_error(tmp_path: Path) -> None:
    stacked = StackedDecoders(CONFIG, saved(tmp_path, range(2)))
    assert stacked.prefix_nll([5]).tolist() == [0.0, 0.0]
    with pytest.raises(ValueError, match="0 tokens"):
        stacked.prefix_nll([])
    with pytest.raises(ValueError, match="33 tokens"):
        stacked.prefix_nll([1] * 33)
    with pytest.raises(ValueError, match="at least one"):
        StackedDecoders(CONFIG, [])


@pytest.mark.parametrize("mode", ["train", "score"])
def test_the_stepper_prints_one_line_of_json_with_a_rate(mode: str) -> None:
    recipe = Recipe(
        role="router",
        index=0,
        model=CONFIG,
        optimizer=AdamWConfig(),
        schedule=Schedule(kind="constant", learning_rate=1e-3, warmup_steps=0, total_steps=1),
        batch_size=4,
        columns=32,
        init_seed=0,
        data_rule="{}",
        commit_every=1,
    )
    command = [sys.executable, "-m", "potluck.lm.stepper", "--recipe-json", recipe.to_json()]
    command += ["--seconds", "0.05", "--mode", mode, "--batch", "4"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    name = {"train": "tokens_per_second", "score": "score_tokens_per_second"}[mode]
    assert done.stdout.count("\n") == 1
    assert json.loads(done.stdout)[name] > 0
