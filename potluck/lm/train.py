"""One lineage in memory: rows in, a step done, checkpoints out and back.

Same recipe, same rows, same profile: the same bits, in any process on the same kind of machine.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from potluck.ids import digest_file
from potluck.lm.checkpoint import OPTIMIZER_FILE, WEIGHTS_FILE, CheckpointFiles
from potluck.lm.loss import mean_nll
from potluck.lm.model import Decoder, init_decoder, load_weights
from potluck.lm.optim.build import build_optimizer
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


class Peers(Protocol):
    """The processes that train a lineage together with this one, each with the same weights."""

    def share(self, rows: np.ndarray, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
        """This process's rows of a batch, and their weights."""
        ...

    def average(self, parameters: Iterable[nn.Parameter], loss: Tensor) -> Tensor:
        """Replaces the gradients by their averages over the processes; the average of their losses, a scalar."""
        ...


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
            SpecError: ``spec.bad-value``, the profile's micro-batches do not divide the recipe's batch.
        """
        require_shares(recipe.batch_size, profile)
        assert (peers is not None) == (profile.processes > 1), profile
        apply_profile(profile)
        self._peers = peers
        self.recipe = recipe
        self.profile = profile
        self.step = 0
        self.model: Decoder = init_decoder(recipe.model, seed=recipe.init_seed).to(profile.device)
        self.model.activation_checkpointing = profile.activation_checkpointing
        self._forward = torch.compile(self.model) if profile.compile else self.model
        self._optimizer = build_optimizer(
            self.model, recipe.optimizer, recipe.schedule.total_steps, compile=profile.compile
        )

    def train_step(self, rows: np.ndarray, weights: np.ndarray | None = None) -> StepMetrics:
        """Does one step.

        Args:
            rows: [batch_size, columns] uint16; column c predicts column c + 1.
            weights: [batch_size] float32; the loss is sum_b weights_b * (row b's mean NLL) / batch_size.
                None weighs all rows alike.

        Raises:
            ValueError: a shape is not the recipe's.
        """
        wanted = (self.recipe.batch_size, self.recipe.columns)
        if rows.shape != wanted:
            raise ValueError(f"rows have shape {rows.shape}, the recipe reads {wanted}")
        if weights is not None and weights.shape != wanted[:1]:
            raise ValueError(f"weights have shape {weights.shape}, the recipe's are {wanted[:1]}")
        self._optimizer.zero_grad()
        if self._peers is None:
            loss = self._add_gradients(rows, weights)
        else:
            loss = self._add_gradients(*self._peers.share(rows, weights))
            loss = self._peers.average(self.model.parameters(), loss)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.optimizer.grad_clip)
        rate = learning_rate(self.recipe.schedule, self.recipe.schedule_step(self.step))
        self._optimizer.step(rate)
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
        load_weights(trainer.model, weights)
        if optimizer is not None:
            trainer._optimizer.load_state_tensors(load_tensors(optimizer), step=recipe.optimizer_step(step))
        trainer.step = step
        return trainer

    def _state(self) -> Snapshot:
        """The state itself, not a copy."""
        return Snapshot(
            weights={name: p.detach() for name, p in self.model.named_parameters()},
            optimizer=self._optimizer.state_tensors(),
        )

    def _add_gradients(self, rows: np.ndarray, weights: np.ndarray | None) -> Tensor:
        """Adds the gradients of the rows' mean loss to the parameters', a micro-batch at a time; the loss, a scalar."""
        device, total = self.profile.device, rows.shape[0]
        size = self.profile.micro_batch or total
        ids = torch.from_numpy(rows.astype(np.int64)).to(device)
        row_weights = None if weights is None else torch.from_numpy(weights.astype(np.float32)).to(device)
        parts = []
        for start in range(0, total, size):
            piece = slice(start, start + size)
            loss = self._loss(ids[piece], None if row_weights is None else row_weights[piece])
            loss = loss if size == total else loss * (size / total)
            loss.backward()
            parts.append(loss.detach())
        return torch.stack(parts).sum()

    def _loss(self, ids: Tensor, weights: Tensor | None) -> Tensor:
        bfloat16 = self.profile.dtype == "bfloat16"
        with torch.autocast(torch.device(self.profile.device).type, dtype=torch.bfloat16, enabled=bfloat16):
            hidden = self._forward(ids[:, :-1])
        flat, targets = hidden.float().reshape(-1, hidden.shape[-1]), ids[:, 1:]
        of_positions = None if weights is None else weights.repeat_interleave(targets.shape[1])
        return mean_nll(flat, self.model.embedding.weight, targets.reshape(-1), of_positions)
