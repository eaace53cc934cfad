import json
import subprocess
import sys

import pytest

from potluck.config import to_mapping
from potluck.errors import SpecError
from potluck.lm.config import PRESETS, ModelConfig
from potluck.lm.memory import (
    MIB,
    checkpoint_bytes,
    fit_to_memory,
    optimizer_bytes,
    predict_inference_bytes,
    predict_lease_bytes,
    predict_training_bytes,
)
from potluck.recipe import AdamWConfig, AdEMAMixConfig, OptimizerConfig, Profile

SCRIPT = """
import json
import sys
from dataclasses import replace
import numpy as np
from pathlib import Path
from potluck.config import from_mapping
from potluck.lm.config import PRESETS, ModelConfig
from potluck.lm.model import init_decoder
from potluck.lm.score import prefix_mean_nll
from potluck.lm.train import Trainer
from potluck.recipe import AdamWConfig, AdEMAMixConfig, Profile, Recipe, Schedule

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

def job(mode, profile, optimizer, preset, vocab, batch, sequence):
    p = PRESETS[preset]
    shape = dict(hidden=p.hidden, layers=p.layers, heads=p.heads, ffn=p.ffn)
    model = ModelConfig(vocab=vocab, context=sequence + 1, **shape)
    rows = np.random.default_rng(0).integers(0, vocab, (batch, sequence + 1)).astype(np.uint16)
    if mode == "score":
        prefix_mean_nll(init_decoder(model, seed=0), rows, prefix=sequence + 1, batch_size=batch)
        return
    schedule = Schedule(kind="constant", learning_rate=1e-3, warmup_steps=0, total_steps=9)
    recipe = Recipe(role="expert", index=0, model=model, optimizer=optimizer, schedule=schedule,
                    batch_size=batch, columns=sequence + 1, init_seed=0, data_rule="", commit_every=1)
    trainer = Trainer(recipe, profile)
    for _ in range(2):
        trainer.train_step(rows)

mode, profile, optimizer, preset, *sizes = sys.argv[1:]
profile, optimizer = from_mapping(Profile, json.loads(profile)), json.loads(optimizer)
optimizer = from_mapping(AdEMAMixConfig if optimizer["name"] == "ademamix" else AdamWConfig, optimizer)
job("train", replace(profile, micro_batch=min(1, profile.micro_batch)), optimizer, "router-24", 300, 2, 32)
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
job(mode, profile, optimizer, preset, *map(int, sizes))
print(status("VmHWM") - before)
"""


ADAMW = AdamWConfig()


def measured(
    mode: str,
    preset: str,
    vocab: int,
    batch: int,
    sequence: int,
    *,
    profile: Profile | None = None,
    optimizer: OptimizerConfig = ADAMW,
) -> int:
    how = [json.dumps(to_mapping(value)) for value in (profile or Profile(), optimizer)]
    sizes = [str(n) for n in (vocab, batch, sequence)]
    command = [sys.executable, "-c", SCRIPT, mode, *how, preset, *sizes]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=100).stdout)


def config_of(preset: str, vocab: int, sequence: int) -> ModelConfig:
    p = PRESETS[preset]
    return ModelConfig(vocab=vocab, hidden=p.hidden, layers=p.layers, heads=p.heads, ffn=p.ffn, context=sequence + 1)


needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")


@needs_proc
@pytest.mark.parametrize(
    ("preset", "vocab", "batch", "sequence", "profile", "optimizer"),
    [
        ("0.16M", 1024, 32, 128, Profile(), ADAMW),
        ("2.5M", 4096, 8, 256, Profile(), ADAMW),
        ("2.5M", 4096, 8, 256, Profile(micro_batch=2), ADAMW),
        ("0.9M", 1024, 32, 128, Profile(activation_checkpointing=True), ADAMW),
        ("2.5M", 4096, 8, 256, Profile(micro_batch=4, activation_checkpointing=True), AdEMAMixConfig(beta3=0.9)),
        pytest.param("0.9M", 1024, 32, 128, Profile(), ADAMW, marks=pytest.mark.long),
        pytest.param("14M", 8192, 4, 512, Profile(), ADAMW, marks=pytest.mark.long),
        pytest.param("14M", 8192, 4, 512, Profile(activation_checkpointing=True), ADAMW, marks=pytest.mark.long),
        pytest.param("14M", 8192, 4, 512, Profile(micro_batch=1), ADAMW, marks=pytest.mark.long),
        pytest.param(
            *("2.5M", 4096, 8, 256),
            Profile(micro_batch=2),
            AdEMAMixConfig(beta3=0.8, beta1=0.0, slow_dtype="bfloat16"),
            marks=pytest.mark.long,
        ),
    ],
)
def test_training_memory_is_predicted_within_a_fifth(
    preset: str, vocab: int, batch: int, sequence: int, profile: Profile, optimizer: OptimizerConfig
) -> None:
    predicted = predict_training_bytes(
        config_of(preset, vocab, sequence),
        batch_size=batch,
        sequence=sequence,
        micro_batch=profile.micro_batch,
        activation_checkpointing=profile.activation_checkpointing,
        optimizer=optimizer,
    )
    grown = measured("train", preset, vocab, batch, sequence, profile=profile, optimizer=optimizer)
    assert predicted == pytest.approx(grown, rel=0.2)


@needs_proc
def test_activation_checkpointing_lowers_the_peak() -> None:
    sizes = ("0.9M", 1024, 16, 128)
    spared = measured("train", *sizes, profile=Profile(activation_checkpointing=True))
    assert spared < 0.75 * measured("train", *sizes)


@needs_proc
@pytest.mark.parametrize(("preset", "vocab", "batch", "sequence"), [("2.5M", 4096, 32, 256)])
def test_scoring_memory_is_predicted_within_a_fifth(preset: str, vocab: int, batch: int, sequence: int) -> None:
    predicted = predict_inference_bytes(config_of(preset, vocab, sequence), batch_size=batch, sequence=sequence)
    assert predicted == pytest.approx(measured("score", preset, vocab, batch, sequence), rel=0.2)


def test_more_rows_longer_rows_and_wider_models_never_need_less() -> None:
    small = config_of("0.16M", 1024, 256)
    for predict in (predict_training_bytes, predict_inference_bytes):
        sizes = [predict(small, batch_size=b, sequence=s) for b, s in ((1, 64), (2, 64), (2, 128), (4, 256))]
        assert sizes == sorted(sizes)
        assert predict(config_of("2.5M", 1024, 256), batch_size=4, sequence=256) > sizes[-1]


@pytest.mark.parametrize(("preset", "parameters"), [("160M", 160e6), ("335M", 335e6), ("760M", 760e6), ("1.3B", 1.3e9)])
def test_a_large_preset_counts_what_its_name_says_and_its_memory_is_its_states_and_some_more(
    preset: str, parameters: float
) -> None:
    config = config_of(preset, vocab=32_000, sequence=1024)
    assert config.num_parameters == pytest.approx(parameters, rel=0.05)
    assert config.hidden // config.heads in (64, 128)
    assert checkpoint_bytes(config, ADAMW) == 12 * config.num_parameters
    states = 28 * config.num_parameters  # weights, gradients, two moments, and the copy of a checkpoint
    sizes = {"batch_size": 16, "sequence": 1024, "optimizer": ADAMW}
    plain = predict_lease_bytes(config, profile=Profile(), **sizes)
    spared = predict_lease_bytes(config, profile=Profile(micro_batch=1, activation_checkpointing=True), **sizes)
    assert states < spared < 1.5 * states < plain < 8 * states


def fit(budget_mib: float, *, batch_size: int = 12) -> tuple[int, bool]:
    found = fit_to_memory(
        config_of("2.5M", 4096, 256),
        batch_size=batch_size,
        sequence=256,
        budget_bytes=int(budget_mib * MIB),
        optimizer=ADAMW,
    )
    assert found.bytes <= budget_mib * MIB
    return found.micro_batch, found.activation_checkpointing


def test_a_budget_is_met_by_the_largest_micro_batch_that_divides_the_batch() -> None:
    assert fit(1024) == (0, False)
    sizes = [fit(budget) for budget in range(1024, 120, -8)]
    assert [size for size, spared in dict.fromkeys(sizes) if not spared] == [0, 6, 4, 3, 2, 1]


def test_blocks_are_computed_twice_only_if_no_micro_batch_fits_without() -> None:
    config = config_of("2.5M", 4096, 256)
    one_row = Profile(micro_batch=1)
    least_plain = predict_lease_bytes(config, batch_size=12, sequence=256, profile=one_row, optimizer=ADAMW)
    assert fit(least_plain / MIB + 0.1) == (1, False)
    size, spared = fit(least_plain / MIB - 0.1)
    assert spared
    assert size >= 1


def test_a_budget_too_small_for_one_row_is_refused_with_the_least_that_works() -> None:
    with pytest.raises(SpecError, match="memory_mib = 50, but training") as caught:
        fit(50)
    assert caught.value.error_id == "spec.memory-too-small"
    least = int(caught.value.fix.split("memory_mib = ")[1].split()[0])
    assert fit(least) == (1, True)
    with pytest.raises(SpecError):
        fit(least - 1)


@pytest.mark.parametrize(
    ("optimizer", "bytes_per_parameter"),
    [
        (AdamWConfig(), 8),
        (AdEMAMixConfig(), 12),
        (AdEMAMixConfig(slow_dtype="bfloat16"), 10),
        (AdEMAMixConfig(beta1=0.0), 8),
        (AdEMAMixConfig(beta1=0.0, slow_dtype="bfloat16"), 6),
    ],
)
def test_an_optimizers_state_is_counted_by_its_averages(optimizer: OptimizerConfig, bytes_per_parameter: int) -> None:
    config = config_of("0.16M", 1024, 256)
    assert optimizer_bytes(config, optimizer) == bytes_per_parameter * config.num_parameters
    sizes = {"batch_size": 4, "sequence": 256}
    step = predict_training_bytes(config, **sizes, optimizer=optimizer)
    lease = predict_lease_bytes(config, **sizes, profile=Profile(), optimizer=optimizer)
    assert lease - step == (4 + bytes_per_parameter) * config.num_parameters
