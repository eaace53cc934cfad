"""What a trainer trains: one model, or a soup of them. Gradients in, an optimizer's step out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from potluck.lm.gradients import add_gradients
from potluck.lm.model import Decoder, init_decoder, load_weights
from potluck.lm.optim.base import Optimizer
from potluck.lm.optim.build import build_optimizer
from potluck.recipe import Profile, Recipe


class Peers(Protocol):
    """The processes that train a lineage together with this one, each with the same weights."""

    def share(self, rows: np.ndarray, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
        """This process's rows of a batch, and their weights."""
        ...

    def average(self, parameters: Iterable[nn.Parameter], loss: Tensor) -> Tensor:
        """Replaces the gradients by their averages over the processes; the average of their losses, a scalar."""
        ...


class Learner(Protocol):
    decoder: Decoder
    optimizer: Optimizer

    def take_gradients(
        self, rows: np.ndarray, weights: np.ndarray | None, mixtures: np.ndarray | None, *, clip: float
    ) -> tuple[Tensor, Tensor]:
        """Gradients of the rows' mean loss, clipped to a norm: the loss, and the norm before, both scalars."""
        ...

    def tensors(self) -> Mapping[str, Tensor]:
        """The weights of a checkpoint, by name, not copied."""
        ...

    def load(self, weights: Path) -> None:
        """Takes over the weights of a checkpoint.

        Raises:
            DataError: ``data.wrong-weights`` or ``data.bad-tensors``.
        """
        ...


class OneModel:
    """A decoder (a `Learner`)."""

    def __init__(self, recipe: Recipe, profile: Profile, peers: Peers | None) -> None:
        self._profile = profile
        self._peers = peers
        self.decoder = init_decoder(recipe.model, seed=recipe.init_seed).to(profile.device)
        self.decoder.activation_checkpointing = profile.activation_checkpointing
        self._forward = torch.compile(self.decoder) if profile.compile else self.decoder
        parameters = dict(self.decoder.named_parameters())
        self.optimizer = build_optimizer(
            parameters, recipe.optimizer, recipe.schedule.total_steps, compile=profile.compile
        )

    def take_gradients(
        self, rows: np.ndarray, weights: np.ndarray | None, mixtures: np.ndarray | None, *, clip: float
    ) -> tuple[Tensor, Tensor]:
        assert mixtures is None, "one model does not read them"
        if self._peers is not None:
            rows, weights = self._peers.share(rows, weights)
        loss = add_gradients(self._forward, self.decoder.embedding.weight, rows, weights, self._profile)
        if self._peers is not None:
            loss = self._peers.average(self.decoder.parameters(), loss)
        return loss, torch.nn.utils.clip_grad_norm_(self.decoder.parameters(), clip)

    def tensors(self) -> Mapping[str, Tensor]:
        return {name: p.detach() for name, p in self.decoder.named_parameters()}

    def load(self, weights: Path) -> None:
        load_weights(self.decoder, weights)
