"""A soup's steps: several mixtures each, the gradients of all by one product (2502.01804, algorithm 2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from potluck.errors import DataError
from potluck.lm.gradients import add_gradients
from potluck.lm.model import Decoder
from potluck.lm.optim.base import Optimizer
from potluck.lm.optim.build import build_optimizer
from potluck.lm.soup import Soup
from potluck.recipe import OptimizerConfig, Profile, Recipe


@dataclass(frozen=True, kw_only=True)
class Owned:
    """What of a soup is stepped here, where several nodes train one together; the rest is only read."""

    common: bool
    """Shared model and coefficients."""
    experts: range


class SoupLearner:
    """Shared model, bank and coefficients (a `Learner`). The decoder is where each theta(h) is tried in turn.

    The compiler is left out of it, whose guards would see new weights for each mixture; AdEMAMix's kernel is not.
    """

    def __init__(self, recipe: Recipe, profile: Profile, owned: Owned | None = None) -> None:
        """Args:
        owned: None for all of it; part of a bank only if that is dense.
        """
        assert recipe.soup is not None, recipe
        assert profile.processes == 1, "refused by the trainer"
        self._profile = profile
        self.soup = Soup(recipe.model, recipe.soup, seed=recipe.init_seed).to(profile.device)
        self.decoder = Decoder(recipe.model).to(profile.device)
        self.decoder.activation_checkpointing = profile.activation_checkpointing
        self._decoder_parameters = dict(self.decoder.named_parameters())
        owned = owned or Owned(common=True, experts=range(recipe.soup.experts))
        assert not self.soup.is_low_rank or len(owned.experts) == recipe.soup.experts, owned
        for tensor in (self.soup.shared, *self.soup.phi.parameters.values()):
            tensor.requires_grad_(owned.common)
        for tensor in self.soup.bank.values():
            tensor.requires_grad_(len(owned.experts) > 0)
        self._optimizer = SoupOptimizer(
            self.soup, recipe.optimizer, recipe.schedule.total_steps, compile=profile.compile, owned=owned
        )
        self.optimizer: Optimizer = self._optimizer

    def take_gradients(
        self, rows: np.ndarray, weights: np.ndarray | None, mixtures: np.ndarray | None, *, clip: float
    ) -> tuple[Tensor, Tensor]:
        """Clips by the norm of theta's gradient averaged over the mixtures, which is what a plain model's would be.

        Args:
            rows: [batch, columns]; the first batch / m are of the first mixture, and so on.
            weights: of rows.
            mixtures: float32 [m, k].
            clip: largest norm.
        """
        assert mixtures is not None, "a soup's segments are `Mixtures`"
        alpha, thetas = self.models(torch.from_numpy(mixtures))
        losses, gradients = self.model_gradients(thetas.detach(), rows, weights)
        return losses.sum(), self.take_up(alpha, thetas, gradients, clip=clip)

    def models(self, mixtures: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients [m, n] and models [m, size] of mixtures [m, k], with their graph."""
        alpha = self.soup.phi(mixtures.to(self.soup.shared))
        return alpha, self.soup.combine(alpha)

    def model_gradients(
        self, thetas: Tensor, rows: np.ndarray, weights: np.ndarray | None = None, *, of: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Each model's part of the step's loss, and the gradients with regard to it.

        A model's are the same bits whichever others are with it.

        Args:
            thetas: [m, size].
            rows: [batch, columns], equal shares for each model.
            weights: of rows.
            of: models that the step has, where these are not all of them.

        Returns:
            [m], which sum to the loss of all rows; and [m, size].
        """
        count, size = len(thetas), len(rows) // len(thetas)
        gradients = torch.zeros_like(thetas)
        losses = []
        for index in range(count):
            own = slice(index * size, (index + 1) * size)
            self._become(thetas[index], gradients[index])
            losses.append(
                add_gradients(
                    self.decoder,
                    self.decoder.embedding.weight,
                    rows[own],
                    None if weights is None else weights[own],
                    self._profile,
                    share=1.0 / (of or count),
                )
            )
        return torch.stack(losses), gradients

    def take_up(self, alpha: Tensor, thetas: Tensor, gradients: Tensor, *, clip: float) -> Tensor:
        """Takes the gradients of a step's models back to what is owned, clipped; the norm before, a scalar.

        Args:
            alpha, thetas: of `models`, all of the step.
            gradients: [m, size], with regard to each model; they are clipped in place.
            clip: largest norm.
        """
        norm: Tensor = torch.linalg.vector_norm(gradients.sum(0))
        gradients *= (clip / (norm + 1e-6)).clamp(max=1.0)
        torch.autograd.backward(thetas, gradients)
        self._optimizer.take_up(alpha.detach())
        return norm

    def tensors(self) -> Mapping[str, Tensor]:
        return self.soup.tensors()

    def load(self, weights: Path) -> None:
        self.soup.load(weights)

    def _become(self, theta: Tensor, gradient: Tensor) -> None:
        """Lets the decoder be a model [size], with its gradients added to another vector."""
        layout = self.soup.layout
        values, gradients = layout.views(theta), layout.views(gradient)
        for name, parameter in self._decoder_parameters.items():
            parameter.grad = None
            parameter.data = values[name]
            parameter.grad = gradients[name]


class SoupOptimizer:
    """Steps shared model, bank and coefficients (an `Optimizer`).

    Under Adam each tensor moves by about the learning rate, so theta = S + sum_j alpha_j E_j would move by
    lr (1 + sum_j |alpha_j|): the rate of S and bank is divided by that sum, as it was on average in the step.
    Coefficients are not decayed: that would make them forget h.
    """

    def __init__(self, soup: Soup, config: OptimizerConfig, total_steps: int, *, compile: bool, owned: Owned) -> None:
        self._soup = soup
        self._owned = owned
        self._rates = {"shared": 1.0, "bank": soup.config.expert_rate, "phi": soup.config.coefficient_rate}
        self._shared: dict[str, nn.Parameter] = {}
        self._bank: dict[str, nn.Parameter] = {}
        self._optimizers: dict[str, Optimizer] = {}
        if owned.common:
            self._shared = _parameters(soup.layout.halves(soup.shared.detach(), "shared"))
            self._optimizers["shared"] = build_optimizer(self._shared, config, total_steps, compile=compile)
        if owned.experts:
            bank = {name: tensor.detach() for name, tensor in soup.bank.items()}
            self._bank = _parameters(_by_tensor(soup, bank, owned.experts))
            self._optimizers["bank"] = build_optimizer(self._bank, config, total_steps, compile=compile)
        if owned.common:
            plain = replace(config, weight_decay=0.0)
            self._optimizers["phi"] = build_optimizer(soup.phi.parameters, plain, total_steps, compile=compile)
        self._scale = 1.0

    def take_up(self, alpha: Tensor) -> None:
        """Takes over the gradients of a step, and notes its coefficients [m, n]."""
        self._scale = 1.0 / (1.0 + float(alpha.abs().sum(1).mean()))
        soup = self._soup
        if self._owned.common:
            assert soup.shared.grad is not None
            for name, gradient in soup.layout.halves(soup.shared.grad, "shared").items():
                self._shared[name].grad = gradient
        if self._owned.experts:
            gradients = {name: tensor.grad for name, tensor in soup.bank.items() if tensor.grad is not None}
            for name, gradient in _by_tensor(soup, gradients, self._owned.experts).items():
                self._bank[name].grad = gradient

    def step(self, learning_rate: float) -> None:
        for name, optimizer in self._optimizers.items():
            scale = 1.0 if name == "phi" else self._scale
            optimizer.step(learning_rate * self._rates[name] * scale)

    def zero_grad(self) -> None:
        for tensor in (self._soup.shared, *self._soup.bank.values()):
            tensor.grad = None
        for optimizer in self._optimizers.values():
            optimizer.zero_grad()

    def state_tensors(self) -> dict[str, Tensor]:
        """Those of its optimizers, as ``shared/NAME``, ``bank/NAME`` and ``phi/NAME``."""
        return {
            f"{group}/{name}": tensor
            for group, optimizer in self._optimizers.items()
            for name, tensor in optimizer.state_tensors().items()
        }

    def load_state_tensors(self, tensors: Mapping[str, Tensor], *, step: int) -> None:
        groups: dict[str, dict[str, Tensor]] = {name: {} for name in self._optimizers}
        for name, tensor in tensors.items():
            group, _, rest = name.partition("/")
            groups.setdefault(group, {})[rest] = tensor
        for group, found in groups.items():
            if group not in self._optimizers:
                what = f"the optimizer file holds {group!r}, which no soup has"
                fix = "use the optimizer blob that the weights' own manifest names"
                raise DataError("data.wrong-optimizer", what, fix)
            self._optimizers[group].load_state_tensors(found, step=step)


def _by_tensor(soup: Soup, bank: Mapping[str, Tensor], experts: range) -> dict[str, Tensor]:
    """The bank, or its gradients, as the tensors that are stepped: an expert is a row of a dense bank."""
    if soup.is_low_rank:
        return dict(bank)
    rows = [soup.layout.halves(bank["experts"][index], f"expert-{index:05d}") for index in experts]
    return {name: half for row in rows for name, half in row.items()}


def _parameters(tensors: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
    """On the memory of the tensors."""
    return {name: nn.Parameter(tensor) for name, tensor in tensors.items()}
