"""The shape of a soup: one shared model, a bank of experts, and coefficients from domain weights. No torch here.

Soup-of-Experts (2502.01804): theta(h) = S + sum_j phi(h)_j E_j, for weights h over the domains of a partition.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from potluck.errors import SpecError


@dataclass(frozen=True, kw_only=True)
class SoupConfig:
    """What a soup has beside the shape of its models."""

    domains: int
    """k, the length of h."""
    experts: int
    """n."""
    rank: int = 0
    """0: each E_j is as large as a model; else each of its matrices is a product of two of this rank."""
    coefficients: Literal["mlp", "linear", "constant"] = "mlp"
    """phi; `constant` does not look at h: the control that cannot specialise."""
    hidden: int = 128
    """Width of the MLP."""
    expert_rate: float = 1.0
    """Learning rate of the bank, as a multiple of the shared model's."""
    coefficient_rate: float = 1.0
    """Learning rate of phi, as a multiple of the schedule's."""

    def __post_init__(self) -> None:
        for name in ("domains", "experts", "hidden"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        _require(self.rank >= 0, "rank", self.rank, "0 (as large as the model) or more")
        for name in ("expert_rate", "coefficient_rate"):
            _require(0 <= getattr(self, name) < math.inf, name, getattr(self, name), "0 or more, finite")


def _require(ok: bool, name: str, value: object, allowed: str) -> None:
    if not ok:
        raise SpecError("spec.bad-value", f"soup.{name} = {value}", f"allowed: {allowed}")
