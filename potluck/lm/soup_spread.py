"""A soup that several nodes train together: how it is divided, and what each of its tasks must know. No torch here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from potluck.config import added
from potluck.errors import SpecError
from potluck.ids import Digest, digest_json
from potluck.recipe import Mixtures, Recipe

MAX_PARTS = 64


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Part p has the p-th share of each step's mixtures, and owns the p-th share of the experts."""

    parts: int = 1
    """W. One part is one lineage, on one node at a time."""
    local_steps: int = 1
    """H, steps from one exchange to the next. One is the training of one node, bit by bit."""
    outer_rate: float = 1.0
    """Of the averaged change of shared model and coefficients (DiLoCo, 2311.08105)."""
    outer_momentum: float = 0.0
    """Nesterov's; 0 with a rate of 1 is the plain average."""
    transport: Literal["hub", "hivemind"] = "hub"
    """How changes of shared model and coefficients are averaged. Where what hivemind made of them is not believed, or
    the parts do not meet, the hub averages that round."""
    exchange_s: float = added(60.0)
    """Seconds a part that is done waits for the others to average with, where the transport is hivemind."""

    def __post_init__(self) -> None:
        _require(1 <= self.parts <= MAX_PARTS, "parts", self.parts, f"1 to {MAX_PARTS}")
        _require(self.local_steps >= 1, "local_steps", self.local_steps, "1 or more")
        _require(0 < self.outer_rate < math.inf, "outer_rate", self.outer_rate, "above 0, finite")
        _require(0 <= self.outer_momentum < 1, "outer_momentum", self.outer_momentum, "[0, 1)")
        _require(self.parts > 1 or self.local_steps == 1, "local_steps", self.local_steps, "1 with one part")
        _require(0 < self.exchange_s <= 3600, "exchange_s", self.exchange_s, "above 0, at most 3600")
        fix = "hub while local_steps is 1, which averages nothing"
        _require(self.transport == "hub" or self.local_steps > 1, "transport", self.transport, fix)
        plain = self.outer_rate == 1 and self.outer_momentum == 0
        fix = "outer_rate 1 and outer_momentum 0 while local_steps is 1, which averages nothing"
        _require(plain or self.local_steps > 1, "outer_rate", self.outer_rate, fix)

    def share(self, whole: int, part: int) -> range:
        """What of `whole` things in a row is a part's."""
        assert whole % self.parts == 0, (whole, self.parts)
        each = whole // self.parts
        return range(part * each, (part + 1) * each)

    def steps(self, number: int, total: int) -> range:
        """The steps of a round."""
        return range(number * self.local_steps, min((number + 1) * self.local_steps, total))

    def rounds(self, total: int) -> int:
        """Rounds of so many steps; the last one may be shorter."""
        return -(-total // self.local_steps)


def exchange_key(setting: Digest, number: int, common: Digest) -> Digest:
    """The name under which the parts of a round average: all of it, so that it meets no other round."""
    return digest_json(["average", setting, number, common])


@dataclass(frozen=True, kw_only=True)
class SpreadSetting:
    """What all tasks of a spread soup share; a blob, so that each of them names it by its digest."""

    recipe: Recipe
    data: Mixtures
    """From the first step."""
    spread: Spread


def _require(ok: bool, name: str, value: object, allowed: str) -> None:
    if not ok:
        raise SpecError("spec.bad-value", f"spread.{name} = {value}", f"allowed: {allowed}")
