"""One lineage in memory: rows in, a step done, checkpoints out and back.

Same recipe, same rows, same profile: the same bits, in any process on the same kind of machine.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from potluck.errors import SpecError
from potluck.ids import digest_file
from potluck.lm.checkpoint import OPTIMIZER_FILE, WEIGHTS_FILE, CheckpointFiles
from potluck.lm.learners import Learner, OneModel, Peers
from potluck.lm.model import Decoder
from potluck.lm.schedule import learning_rate
from potluck.lm.tensors import load_tensors
from potluck.recipe import Profile, Recipe, require_shares

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


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The tensors of a checkpoint, by name."""

    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]

    def save(self, folder: Path) -> CheckpointFiles:
        """Writes two files into an existing folder; equal tensors give equal bytes."""
        from safetensors.torch import save_file

        weights, optimizer = folder / WEIGHTS_FILE, folder / OPTIMIZER_FILE
        save_file({name: tensor.cpu() for name, tensor in self.weights.items()}, weights)
        save_file({name: tensor.cpu() for name, tensor in self.optimizer.items()}, optimizer)
        return CheckpointFiles(
            weights=weights,
            optimizer=optimizer,
            weights_digest=digest_file(weights),
            optimizer_digest=digest_file(optimizer),
        )


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}


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
    if profile.device.startswith("cuda"):
        # cuBLAS is deterministic with it alone, and torch refuses products without; it is read at the first of them.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
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

    def __init__(self, recipe: Recipe, profile: Profile, peers: Peers | None = None) -> None:
        """Starts at the recipe's initialisation. Peers come from `potluck.lm.parallel.open_trainer`.

        Raises:
            SpecError: ``spec.bad-value``, the profile's micro-batches do not divide the recipe's batch, or it shares
                a soup among processes.
        """
        require_shares(recipe.batch_size, profile)
        if recipe.soup is not None and profile.processes > 1:
            what = f"profile.processes = {profile.processes} with a soup"
            raise SpecError("spec.bad-value", what, "allowed: 1; a soup is spread over nodes instead")
        assert (peers is not None) == (profile.processes > 1), profile
        apply_profile(profile)
        self.recipe = recipe
        self.profile = profile
        self.step = 0
        self._learner = _learner(recipe, profile, peers)

    @property
    def model(self) -> Decoder:
        """The model; of a soup, the one that was last trained on."""
        return self._learner.decoder

    def train_step(
        self, rows: np.ndarray, weights: np.ndarray | None = None, mixtures: np.ndarray | None = None
    ) -> StepMetrics:
        """Does one step.

        Args:
            rows: [batch_size, columns] uint16; column c predicts column c + 1.
            weights: [batch_size] float32; the loss is sum_b weights_b * (row b's mean NLL) / batch_size.
                None weighs all rows alike.
            mixtures: of a soup, [m, domains] float32, the mixtures that the rows are of, in equal shares, in order.

        Raises:
            ValueError: a shape is not the recipe's.
        """
        wanted = (self.recipe.batch_size, self.recipe.columns)
        if rows.shape != wanted:
            raise ValueError(f"rows have shape {rows.shape}, the recipe reads {wanted}")
        if weights is not None and weights.shape != wanted[:1]:
            raise ValueError(f"weights have shape {weights.shape}, the recipe's are {wanted[:1]}")
        optimizer = self._learner.optimizer
        optimizer.zero_grad()
        loss, norm = self._learner.take_gradients(rows, weights, mixtures, clip=self.recipe.optimizer.grad_clip)
        rate = learning_rate(self.recipe.schedule, self.recipe.schedule_step(self.step))
        optimizer.step(rate)
        self.step += 1
        tokens = rows.shape[0] * (rows.shape[1] - 1)
        return StepMetrics(
            step=self.step - 1, loss=loss.item(), grad_norm=norm.item(), learning_rate=rate, tokens=tokens
        )

    def snapshot(self) -> Snapshot:
        """A copy of the state in the host's memory, which later steps leave alone."""
        state = self._state()
        return Snapshot(weights=_copied(state.weights), optimizer=_copied(state.optimizer))

    def save(self, folder: Path) -> CheckpointFiles:
        """Writes the two files of a checkpoint into an existing folder; equal states give equal bytes."""
        return self._state().save(folder)

    @staticmethod
    def load(
        recipe: Recipe,
        profile: Profile,
        *,
        step: int,
        weights: Path,
        optimizer: Path | None,
        peers: Peers | None = None,
    ) -> Trainer:
        """Continues from the files of a checkpoint after `step` steps, bit by bit as if never interrupted.

        Args:
            step: steps of this lineage; 0 with the files of its recipe's origin.
            optimizer: None for a fresh one.

        Raises:
            DataError: the files do not belong to the recipe.
        """
        trainer = Trainer(recipe, profile, peers)
        trainer._learner.load(weights)
        if optimizer is not None:
            trainer._learner.optimizer.load_state_tensors(load_tensors(optimizer), step=recipe.optimizer_step(step))
        trainer.step = step
        return trainer

    def _state(self) -> Snapshot:
        """The state itself, not a copy."""
        return Snapshot(weights=self._learner.tensors(), optimizer=self._learner.optimizer.state_tensors())


def _learner(recipe: Recipe, profile: Profile, peers: Peers | None) -> Learner:
    if recipe.soup is None:
        return OneModel(recipe, profile, peers)
    from potluck.lm.soup_learner import SoupLearner

    return SoupLearner(recipe, profile)
