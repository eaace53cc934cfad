import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from potluck.errors import DataError
from potluck.lm.config import ModelConfig
from potluck.lm.optim.adamw import AdamW, is_decayed
from potluck.lm.train import Trainer, apply_profile
from potluck.recipe import AdamWConfig, Profile, Recipe, Schedule

RECIPE = Recipe(
    role="expert",
    index=0,
    model=ModelConfig(vocab=300, hidden=24, layers=2, heads=2, ffn=64, context=33),
    optimizer=AdamWConfig(),
    schedule=Schedule(kind="cosine", learning_rate=3e-3, warmup_steps=2, total_steps=40),
    batch_size=5,
    columns=33,
    init_seed=7,
    data_rule="{}",
    commit_every=4,
)

SCRIPT = """
import sys
from pathlib import Path
import numpy as np
from potluck.lm.train import Trainer
from potluck.recipe import Profile, Recipe
recipe = Recipe.from_json(sys.argv[1])
trainer = Trainer(recipe, Profile())
for step in range(6):
    trainer.train_step(np.random.default_rng(step).integers(0, 300, (5, 33)).astype(np.uint16))
files = trainer.save(Path(sys.argv[2]))
print(files.weights_digest, files.optimizer_digest)
"""


def rows_of(step: int) -> np.ndarray:
    return np.random.default_rng(step).integers(0, 300, (5, 33)).astype(np.uint16)


def trained(steps: int, recipe: Recipe = RECIPE) -> Trainer:
    trainer = Trainer(recipe, Profile())
    for step in range(steps):
        trainer.train_step(rows_of(step))
    return trainer


def test_save_load_continue_is_bit_equal_to_never_stopping(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "c").mkdir()
    half = trained(3).save(tmp_path / "a")
    resumed = Trainer.load(RECIPE, Profile(), step=3, weights=half.weights, optimizer=half.optimizer)
    straight = trained(3)
    for step in range(3, 8):
        assert resumed.train_step(rows_of(step)) == straight.train_step(rows_of(step))
    assert resumed.step == straight.step == 8
    one, two = resumed.save(tmp_path / "b"), straight.save(tmp_path / "c")
    assert one.weights_digest == two.weights_digest
    assert one.optimizer_digest == two.optimizer_digest


def test_another_process_computes_the_same_bits(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    command = [sys.executable, "-c", SCRIPT, RECIPE.to_json(), str(tmp_path / "there")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    files = trained(6).save(tmp_path / "here")
    assert done.stdout.split() == [files.weights_digest, files.optimizer_digest]


def test_a_checkpoint_before_the_first_step_is_the_initialisation(tmp_path: Path) -> None:
    fresh = Trainer(RECIPE, Profile())
    files = fresh.save(tmp_path)
    again = Trainer.load(RECIPE, Profile(), step=0, weights=files.weights, optimizer=files.optimizer)
    straight = trained(2)
    for step in range(2):
        again.train_step(rows_of(step))
    pairs = zip(again.model.parameters(), straight.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_training_learns_a_repeating_row() -> None:
    trainer = Trainer(replace(RECIPE, schedule=replace(RECIPE.schedule, learning_rate=1e-2)), Profile())
    rows = np.tile(np.arange(33, dtype=np.uint16), (5, 1))
    losses = [trainer.train_step(rows).loss for _ in range(30)]
    assert losses[-1] < 0.3 * losses[0]
    assert losses[0] == pytest.approx(np.log(300), abs=1.0)


def test_metrics_say_what_the_step_did() -> None:
    metrics = Trainer(RECIPE, Profile()).train_step(rows_of(0))
    assert metrics.step == 0
    assert metrics.tokens == 5 * 32
    assert metrics.learning_rate == pytest.approx(1.5e-3)
    assert metrics.grad_norm > 0


def test_rows_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(5, 32\)"):
        Trainer(RECIPE, Profile()).train_step(rows_of(0)[:, :32])


def test_a_step_is_that_of_the_plain_rendition() -> None:
    """Loss, clip and update against torch's own cross entropy and unfused AdamW."""
    trainer, plain = Trainer(RECIPE, Profile()), Trainer(RECIPE, Profile())
    model = plain.model
    named = dict(model.named_parameters())
    groups = [
        {"params": [p for n, p in named.items() if is_decayed(n, p)], "weight_decay": 0.1},
        {"params": [p for n, p in named.items() if not is_decayed(n, p)], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1.5e-3, betas=(0.9, 0.99), eps=1e-8, fused=False, foreach=False)
    ids = torch.from_numpy(rows_of(0).astype(np.int64))
    logits = model(ids[:, :-1]) @ model.embedding.weight.t()
    loss = torch.nn.functional.cross_entropy(logits.reshape(-1, 300), ids[:, 1:].reshape(-1))
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    metrics = trainer.train_step(rows_of(0))
    assert metrics.loss == pytest.approx(loss.item(), rel=1e-5)
    assert metrics.grad_norm == pytest.approx(norm.item(), rel=1e-4)
    # Adam's first step is lr * g / (|g| + eps): where |g| is near eps, rounding shows.
    for mine, its in zip(trainer.model.parameters(), model.parameters(), strict=True):
        assert torch.allclose(mine, its, atol=2e-5)


def test_decay_spares_norms_and_embeddings() -> None:
    named = dict(Trainer(RECIPE, Profile()).model.named_parameters())
    spared = {name for name, p in named.items() if not is_decayed(name, p)}
    norms = {f"blocks.{layer}.{kind}_norm" for layer in (0, 1) for kind in ("attention", "ffn")}
    assert spared == norms | {"norm", "embedding.weight"}


def test_an_optimizer_file_of_another_model_is_refused() -> None:
    model = Trainer(RECIPE, Profile()).model
    optimizer = AdamW(dict(model.named_parameters()), RECIPE.optimizer)
    tensors = optimizer.state_tensors()
    tensors.pop("exp_avg.norm")
    with pytest.raises(DataError) as caught:
        optimizer.load_state_tensors(tensors, step=1)
    assert caught.value.error_id == "data.wrong-optimizer"


def test_bfloat16_trains_with_float32_weights() -> None:
    trainer = Trainer(RECIPE, Profile(dtype="bfloat16"))
    first = trainer.train_step(rows_of(0))
    assert first.loss == pytest.approx(Trainer(RECIPE, Profile()).train_step(rows_of(0)).loss, rel=1e-2)
    assert trainer.model.norm.dtype == torch.float32


def test_a_profile_of_a_cuda_device_asks_cublas_for_determinism_unless_the_user_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    apply_profile(Profile(device="cuda:1"))
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    apply_profile(Profile())
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    apply_profile(Profile(device="cuda"))
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
