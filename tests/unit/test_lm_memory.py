import subprocess
import sys

import pytest

from potluck.lm.config import PRESETS, ModelConfig
from potluck.lm.memory import predict_inference_bytes, predict_training_bytes

SCRIPT = """
import sys
import numpy as np
from pathlib import Path
from potluck.lm.config import PRESETS, ModelConfig
from potluck.lm.model import init_decoder
from potluck.lm.score import prefix_mean_nll
from potluck.lm.train import Trainer
from potluck.recipe import AdamWConfig, Profile, Recipe, Schedule

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

def job(mode, preset, vocab, batch, sequence):
    p = PRESETS[preset]
    shape = dict(hidden=p.hidden, layers=p.layers, heads=p.heads, ffn=p.ffn)
    model = ModelConfig(vocab=vocab, context=sequence + 1, **shape)
    rows = np.random.default_rng(0).integers(0, vocab, (batch, sequence + 1)).astype(np.uint16)
    if mode == "score":
        prefix_mean_nll(init_decoder(model, seed=0), rows, prefix=sequence + 1, batch_size=batch)
        return
    schedule = Schedule(kind="constant", learning_rate=1e-3, warmup_steps=0, total_steps=9)
    recipe = Recipe(role="expert", index=0, model=model, optimizer=AdamWConfig(), schedule=schedule,
                    batch_size=batch, columns=sequence + 1, init_seed=0, data_rule="", commit_every=1)
    trainer = Trainer(recipe, Profile())
    for _ in range(2):
        trainer.train_step(rows)

job("train", "router-24", 300, 2, 32)
mode, preset, *sizes = sys.argv[1:]
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
job(mode, preset, *map(int, sizes))
print(status("VmHWM") - before)
"""


def measured(mode: str, preset: str, vocab: int, batch: int, sequence: int) -> int:
    sizes = [str(n) for n in (vocab, batch, sequence)]
    command = [sys.executable, "-c", SCRIPT, mode, preset, *sizes]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=100).stdout)


def config_of(preset: str, vocab: int, sequence: int) -> ModelConfig:
    p = PRESETS[preset]
    return ModelConfig(vocab=vocab, hidden=p.hidden, layers=p.layers, heads=p.heads, ffn=p.ffn, context=sequence + 1)


needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")


@needs_proc
@pytest.mark.parametrize(
    ("preset", "vocab", "batch", "sequence"),
    [
        ("0.16M", 1024, 32, 128),
        ("2.5M", 4096, 8, 256),
        pytest.param("14M", 8192, 4, 512, marks=pytest.mark.long),
    ],
)
def test_training_memory_is_predicted_within_a_quarter(preset: str, vocab: int, batch: int, sequence: int) -> None:
    predicted = predict_training_bytes(config_of(preset, vocab, sequence), batch_size=batch, sequence=sequence)
    assert predicted == pytest.approx(measured("train", preset, vocab, batch, sequence), rel=0.25)


@needs_proc
@pytest.mark.parametrize(("preset", "vocab", "batch", "sequence"), [("2.5M", 4096, 32, 256)])
def test_scoring_memory_is_predicted_within_a_quarter(preset: str, vocab: int, batch: int, sequence: int) -> None:
    predicted = predict_inference_bytes(config_of(preset, vocab, sequence), batch_size=batch, sequence=sequence)
    assert predicted == pytest.approx(measured("score", preset, vocab, batch, sequence), rel=0.25)


def test_more_rows_longer_rows_and_wider_models_never_need_less() -> None:
    small = config_of("0.16M", 1024, 256)
    for predict in (predict_training_bytes, predict_inference_bytes):
        sizes = [predict(small, batch_size=b, sequence=s) for b, s in ((1, 64), (2, 64), (2, 128), (4, 256))]
        assert sizes == sorted(sizes)
        assert predict(config_of("2.5M", 1024, 256), batch_size=4, sequence=256) > sizes[-1]
