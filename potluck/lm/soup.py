"""Soup-of-Experts (2502.01804): theta(h) = S + sum_j phi(h)_j E_j, and its gradients.

All parameters of a model lie in one vector of `Layout.size` floats, so that the models of a step are one
product of coefficients [m, n] and bank [n, size], and so are the gradients on the way back.

The bank begins at zero (of two factors, the outer one), so that theta(h) begins at S whatever h is; phi begins
at random, or all experts would move alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from potluck.errors import DataError
from potluck.lm.config import ModelConfig
from potluck.lm.model import Decoder, init_decoder
from potluck.lm.optim.adamw import is_decayed
from potluck.lm.soup_config import SoupConfig
from potluck.lm.tensors import FLOATS, load_tensors, tensor_shapes

GRAIN = 16
"""Floats that each tensor's place is a multiple of: products of unaligned memory may round otherwise."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where each parameter of a model lies in the vector; those that are decayed come first."""

    places: Mapping[str, tuple[int, tuple[int, ...]]]
    """First float and shape, by name."""
    decayed: int
    """Floats that weight decay applies to."""
    size: int

    @staticmethod
    def of(config: ModelConfig) -> Layout:
        with torch.device("meta"):
            named = dict(Decoder(config).named_parameters())
        order = sorted(named, key=lambda name: not is_decayed(name, named[name]))
        places: dict[str, tuple[int, tuple[int, ...]]] = {}
        at = decayed = 0
        for name in order:
            places[name] = (at, tuple(named[name].shape))
            at += -(-named[name].numel() // GRAIN) * GRAIN
            decayed = at if is_decayed(name, named[name]) else decayed
        return Layout(places=places, decayed=decayed, size=at)

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """The parameters in a vector [size], by name."""
        return {
            name: flat[start : start + math.prod(shape)].view(shape) for name, (start, shape) in self.places.items()
        }

    def pack(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """A vector [size] of parameters by name; what lies between them is zero."""
        flat = torch.zeros(self.size, dtype=next(iter(tensors.values())).dtype)
        for name, view in self.views(flat).items():
            view.copy_(tensors[name].detach())
        return flat

    def halves(self, flat: Tensor, prefix: str) -> dict[str, Tensor]:
        """Views of a vector [size] as optimizers want it: ``PREFIX.matrices`` is a matrix, for those are decayed."""
        return {f"{prefix}.matrices": flat[: self.decayed].view(-1, GRAIN), f"{prefix}.rest": flat[self.decayed :]}


class Coefficients:
    """phi: weights over domains [m, k] to coefficients of the experts [m, n]."""

    def __init__(self, config: SoupConfig, *, seed: int) -> None:
        self.config = config
        generator = torch.Generator().manual_seed(seed)
        shapes = {
            "mlp": {"in.weight": (config.hidden, config.domains), "out.weight": (config.experts, config.hidden)},
            "linear": {"out.weight": (config.experts, config.domains)},
            "constant": {},
        }[config.coefficients]
        self.parameters: dict[str, nn.Parameter] = {}
        for name, (rows, columns) in shapes.items():
            # h has norm 1 to 1 / sqrt(k): scaled by sqrt(k) in `__call__`, so fan-in is the right divisor here too.
            matrix = torch.empty(rows, columns).normal_(0.0, columns**-0.5, generator=generator)
            self.parameters[name] = nn.Parameter(matrix)
        if "in.weight" in shapes:
            self.parameters["in.bias"] = nn.Parameter(torch.zeros(config.hidden))
        bias = torch.zeros(config.experts)
        if config.coefficients == "constant":
            bias.normal_(0.0, config.experts**-0.5, generator=generator)
        self.parameters["out.bias"] = nn.Parameter(bias)

    def __call__(self, h: Tensor) -> Tensor:
        """[m, n] of [m, k] weights, each row of which sums to one."""
        own, config = self.parameters, self.config
        if config.coefficients == "constant":
            return own["out.bias"].expand(h.shape[0], -1)
        x = h * math.sqrt(config.domains)
        if config.coefficients == "mlp":
            x = torch.relu(torch.addmm(own["in.bias"], x, own["in.weight"].t()))
        return torch.addmm(own["out.bias"], x, own["out.weight"].t()) / math.sqrt(config.experts)


class Soup:
    """Shared model, bank and coefficients."""

    def __init__(self, model: ModelConfig, config: SoupConfig, *, seed: int) -> None:
        """At its initialisation: S is what a plain model of this seed would be."""
        self.model = model
        self.config = config
        self.layout = Layout.of(model)
        self.shared = self.layout.pack(dict(init_decoder(model, seed=seed).named_parameters()))
        self.phi = Coefficients(config, seed=seed)
        self.bank = self._fresh_bank(seed)

    @cached_property
    def is_low_rank(self) -> bool:
        return self.config.rank > 0

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> Soup:
        """Moves all of it; before any optimizer holds its memory."""
        self.shared = self.shared.detach().to(device=device, dtype=dtype)
        self.bank = {name: tensor.detach().to(device=device, dtype=dtype) for name, tensor in self.bank.items()}
        for parameter in self.phi.parameters.values():
            parameter.data = parameter.data.to(device=device, dtype=dtype)
        return self

    def combine(self, alpha: Tensor) -> Tensor:
        """Models [m, size] of coefficients [m, n]; differentiable in all that requires it."""
        if not self.is_low_rank:
            return torch.addmm(self.shared, alpha, self.bank["experts"])
        pieces: list[Tensor] = []
        at = 0
        each = alpha.repeat_interleave(self.config.rank, dim=1)
        for name, (start, shape) in self.layout.places.items():
            if f"{name}.outer" not in self.bank:
                continue
            outer, inner = self.bank[f"{name}.outer"], self.bank[f"{name}.inner"]
            product = torch.matmul(outer * each.unsqueeze(1), inner).reshape(alpha.shape[0], -1)
            pieces += [product.new_zeros(alpha.shape[0], start - at), product]
            at = start + math.prod(shape)
        pieces.append(alpha.new_zeros(alpha.shape[0], self.layout.size - at))
        return self.shared + torch.cat(pieces, dim=1)

    def instantiate(self, h: Tensor) -> dict[str, Tensor]:
        """The weights of theta(h), a plain model's, by name.

        Args:
            h: [k], not negative, sums to one.
        """
        with torch.no_grad():
            alpha = self.phi(h.to(self.shared).unsqueeze(0))
            return {name: view.contiguous() for name, view in self.layout.views(self.combine(alpha)[0]).items()}

    def tensors(self) -> dict[str, Tensor]:
        """All that is trained, by name, not copied: ``shared``, ``bank.NAME``, ``phi.NAME``."""
        bank = {f"bank.{name}": tensor.detach() for name, tensor in self.bank.items()}
        phi = {f"phi.{name}": parameter.detach() for name, parameter in self.phi.parameters.items()}
        return {"shared": self.shared.detach(), **bank, **phi}

    def load(self, weights: Path) -> None:
        """Takes over a checkpoint's weights, bit by bit.

        Raises:
            DataError: ``data.bad-tensors``, it is no safetensors file; ``data.wrong-weights``, it holds another soup.
        """
        own, header = self.tensors(), tensor_shapes(weights)
        wanted = {name: tuple(tensor.shape) for name, tensor in own.items()}
        found = {name: shape for name, (dtype, shape) in header.items() if dtype in FLOATS}
        if wanted != found or len(header) != len(found):
            odd = sorted(set(wanted.items()) ^ set(found.items()))[:4]
            fix = "use the recipe that made this checkpoint"
            raise DataError("data.wrong-weights", f"{weights} does not hold {self.config}: {odd} differ", fix)
        tensors = load_tensors(weights)
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(tensors[name])

    def _fresh_bank(self, seed: int) -> dict[str, Tensor]:
        if not self.is_low_rank:
            return {"experts": torch.zeros(self.config.experts, self.layout.size)}
        generator = torch.Generator().manual_seed(seed + 1)
        width = self.config.experts * self.config.rank
        bank: dict[str, Tensor] = {}
        for name, (_, shape) in self.layout.places.items():
            if len(shape) == 2:
                bank[f"{name}.outer"] = torch.zeros(shape[0], width)
                inner = torch.empty(width, shape[1])
                bank[f"{name}.inner"] = inner.normal_(0.0, shape[1] ** -0.5, generator=generator)
        return bank


def load_soup(model: ModelConfig, config: SoupConfig, weights: Path) -> Soup:
    """A soup from a checkpoint, on the CPU in float32.

    Raises:
        DataError: as `Soup.load`.
    """
    soup = Soup(model, config, seed=0)
    soup.load(weights)
    return soup
