"""One lineage in memory: rows in, a step done, checkpoints out and back.

Same recipe, same rows, same profile: the same bits, in any process on the same kind of machine.
"""

from __future__ import annotations

import ctypes
import platform
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from potluck.ids import digest_file
from potluck.lm.checkpoint import CheckpointFiles
from potluck.lm.loss import mean_nll
from potluck.lm.model import Decoder, init_decoder, load_weights
from potluck.lm.optim.build import build_optimizer
from potluck.lm.schedule import learning_rate
from potluck.recipe import Profile, Recipe

WEIGHTS_FILE = "weights.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_MMAP_THRESHOLD = 32 << 20
"""glibc refuses more."""
KEPT_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    step: int
    """0-based index of the step that was done."""
    loss: float
    """Nats per target, before the update."""
    grad_norm: float
    """Before clipping."""
    learning_rate: float
    tokens: int
    """Targets that were trained on."""


def _keep_memory() -> None:
    """Asks glibc to keep freed memory: by default each large array is mapped and its pages faulted in anew,
    every time, which costs small models a tenth of their speed."""
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
    libc.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def apply_profile(profile: Profile) -> None:
    """Sets this process's arithmetic as the profile says; call it once, before any model is built.

    Deterministic algorithms only; denormals are flushed, since they are slow and carry nothing here.
    """
    _keep_memory()
    torch.set_num_threads(profile.threads)
    # As torch.use_deterministic_algorithms(True), which also imports the compiler: a second of every start.
    torch.set_deterministic_debug_mode("error")
    # The deterministic mode also fills new memory with NaN, to show reads of it; nothing here reads any.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    for kind in (np.float32, np.float64):
        np.finfo(kind)  # numpy measures these once, and warns if denormals are already flushed by then
    torch.set_flush_denormal(True)
    torch.set_float32_matmul_precision("highest")


class Trainer:
    """Weights, optimizer and step of one lineage."""

    def __init__(self, recipe: Recipe, profile: Profile) -> None:
        apply_profile(profile)
        self.recipe = recipe
        self.profile = profile
        self.step = 0
        self.model: Decoder = init_decoder(recipe.model, seed=recipe.init_seed).to(profile.device)
        self._forward = torch.compile(self.model) if profile.compile else self.model
        self._optimizer = build_optimizer(self.model, recipe.optimizer)

    def train_step(self, rows: np.ndarray) -> StepMetrics:
        """Does one step.

        Args:
            rows: [batch_size, columns] uint16; column c predicts column c + 1.

        Raises:
            ValueError: the shape is not the recipe's.
        """
        wanted = (self.recipe.batch_size, self.recipe.columns)
        if rows.shape != wanted:
            raise ValueError(f"rows have shape {rows.shape}, the recipe reads {wanted}")
        ids = torch.from_numpy(rows.astype(np.int64)).to(self.profile.device)
        self._optimizer.zero_grad()
        loss = self._loss(ids)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.optimizer.grad_clip)
        rate = learning_rate(self.recipe.schedule, self.step)
        self._optimizer.step(rate)
        self.step += 1
        tokens = rows.shape[0] * (rows.shape[1] - 1)
        return StepMetrics(
            step=self.step - 1, loss=loss.item(), grad_norm=norm.item(), learning_rate=rate, tokens=tokens
        )

    def save(self, folder: Path) -> CheckpointFiles:
        """Writes the two files of a checkpoint into an existing folder; equal states give equal bytes."""
        from safetensors.torch import save_file

        weights, optimizer = folder / WEIGHTS_FILE, folder / OPTIMIZER_FILE
        save_file({name: p.detach().cpu() for name, p in self.model.named_parameters()}, weights)
        save_file({name: t.cpu() for name, t in self._optimizer.state_tensors().items()}, optimizer)
        return CheckpointFiles(
            weights=weights,
            optimizer=optimizer,
            weights_digest=digest_file(weights),
            optimizer_digest=digest_file(optimizer),
        )

    @staticmethod
    def load(recipe: Recipe, profile: Profile, *, step: int, weights: Path, optimizer: Path) -> Trainer:
        """Continues from the files of a checkpoint after `step` steps, bit by bit as if never interrupted.

        Raises:
            DataError: the files do not belong to the recipe.
        """
        from safetensors.torch import load_file

        trainer = Trainer(recipe, profile)
        load_weights(trainer.model, weights)
        trainer._optimizer.load_state_tensors(load_file(optimizer), step=step)
        trainer.step = step
        return trainer

    def _loss(self, ids: Tensor) -> Tensor:
        bfloat16 = self.profile.dtype == "bfloat16"
        with torch.autocast(torch.device(self.profile.device).type, dtype=torch.bfloat16, enabled=bfloat16):
            hidden = self._forward(ids[:, :-1])
        flat = hidden.float().reshape(-1, hidden.shape[-1])
        return mean_nll(flat, self.model.embedding.weight, ids[:, 1:].reshape(-1))
