"""AdEMAMix (arXiv 2409.03137): a second, slow average of the gradients against AdamW, at equal steps and text."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from potluck.lab.sides import Side, contest, made, tokens_of, unique
from potluck.lab.study import CORPUS, FINISHED, BudgetName, Cell, Found, TextWish
from potluck.lab.trials import Trials
from potluck.lm.optim.horizon import DERIVED_HALF_LIVES, FEWEST_HALF_LIVES, beta_of

TINY, TARGET = "tiny", "target"
TARGET_SOURCE, LEFT_SOURCE = "recipes", "quotes"
"""Of the forgetting probe: what is read after the switch, and what is not read any more."""
BETA2 = 0.99
"""Of both sides: SmallTalk's, which suits short runs."""
CHOSEN_ALPHA = 5.0
"""Not searched, while the rate is: the robustness grid has what other values do."""
ADAMW, ADEMAMIX = "AdamW", "AdEMAMix"


@dataclass(frozen=True, kw_only=True)
class Design(Trials):
    """The cells of one budget, and the sides that are compared."""

    alphas: tuple[float, ...]
    lengths: tuple[float, ...]
    """Of AdamW, in AdEMAMix's steps."""
    switches: tuple[float, ...]
    """Shares of the training after which AdamW becomes AdEMAMix."""
    shifts: tuple[float, ...]
    """Shares of the training after which only text like the target is read."""
    clusters: int = 32

    @property
    def texts(self) -> dict[str, TextWish]:
        return {
            CORPUS: TextWish(sources=self.sources),
            TARGET: TextWish(sources=(TARGET_SOURCE,), parts={TARGET_SOURCE: (0, 3)}),
            TINY: TextWish(sources=("legal", "quotes"), parts={"": (0, 1)}),
        }

    @cached_property
    def adamw(self) -> Side:
        return self._side(ADAMW, {"name": "adamw"}, searched=len(self.seeds))

    @cached_property
    def ademamix(self) -> Side:
        return self.at_alpha(CHOSEN_ALPHA)

    def at_alpha(self, alpha: float) -> Side:
        return self._side(f"{ADEMAMIX} alpha={alpha:g}", _slow(alpha), searched=len(self.seeds))

    def longer(self, length: float) -> Side:
        return self._side(f"{ADAMW} x{length:g} steps", {"name": "adamw"}, length=length)

    @cached_property
    def raised(self) -> Side:
        """AdamW whose one average is as slow as AdEMAMix's second."""
        beta = round(beta_of(self.steps / DERIVED_HALF_LIVES), 6)
        return self._side(f"{ADAMW} beta1={beta:g}", {"name": "adamw", "beta1": beta})

    def unready(self, warmup: float) -> Side:
        """Large alpha and the slowest average that the steps allow, with its schedulers or without."""
        beta3 = math.floor(beta_of(self.steps / FEWEST_HALF_LIVES) * 1e6) / 1e6
        optimizer = {**_slow(max(self.alphas)), "beta3": beta3, "warmup_fraction": warmup}
        return self._side(f"{ADEMAMIX} slow, warm-up {warmup:g}", optimizer)

    @cached_property
    def no_fast(self) -> Side:
        return self._side(f"{ADEMAMIX} beta1=0", {**_slow(CHOSEN_ALPHA), "beta1": 0.0})

    @cached_property
    def tiny(self) -> tuple[Side, Side]:
        """Both on so little text that it is read many times."""
        slow = self._side(f"{ADEMAMIX} {TINY}", _slow(CHOSEN_ALPHA), data=TINY)
        return slow, self._side(f"{ADAMW} {TINY}", {"name": "adamw"}, data=TINY)

    @property
    def searches(self) -> tuple[Side, ...]:
        grid = [self.at_alpha(alpha) for alpha in self.alphas]
        controls = (self.raised, self.unready(1.0), self.unready(0.0), self.no_fast, *self.tiny)
        return (self.adamw, *grid, *(self.longer(length) for length in self.lengths), *controls)

    def cells(self, found: Mapping[str, Found]) -> tuple[Cell, ...]:
        wanted = [cell for side in self.searches for cell in side.cells(found)]
        fast, slow = self.adamw.best(found), self.ademamix.best(found)
        if fast is not None and slow is not None:
            wanted += self.after_search(fast, slow)
            wanted += [cell for seed in self.seeds if (cell := self.duel(seed, found)) is not None]
            wanted += [cell for seed in self.seeds if (cell := self.remembered(seed, found)) is not None]
        return unique(wanted)

    def expected(self) -> tuple[Cell, ...]:
        return unique(
            [cell for side in self.searches for cell in side.expected()]
            + self.after_search(self.rates[0], self.rates[-1])
        )

    def after_search(self, fast: float, slow: float) -> list[Cell]:
        """What uses the rates that AdamW and AdEMAMix chose."""
        cells = [self.switched(fraction, fast, seed) for fraction in self.switches for seed in self.seeds]
        cells += [self.returned(slow, seed) for seed in self.seeds]
        cells += [self.without_alpha(fast, seed) for seed in self.seeds]
        both = ((ADAMW, fast), (ADEMAMIX, slow))
        cells += [
            self.shifted(name, rate, shift, seed)
            for (name, rate), shift, seed in itertools.product(both, self.shifts, self.seeds)
        ]
        return cells

    def switched(self, fraction: float, rate: float, seed: int) -> Cell:
        """AdamW until a share of the training, then AdEMAMix, as the paper does it: alpha 2 and no schedulers."""
        optimizer = {**_slow(2.0), "from_fraction": fraction, "warmup_fraction": 0.0}
        return self._single(f"{ADAMW} to {ADEMAMIX} at {fraction:g}", optimizer, rate, seed)

    def returned(self, rate: float, seed: int) -> Cell:
        """AdEMAMix, and AdamW from the middle on."""
        return self._single(f"{ADEMAMIX} to {ADAMW} at 0.5", {**_slow(CHOSEN_ALPHA), "until_fraction": 0.5}, rate, seed)

    def without_alpha(self, rate: float, seed: int) -> Cell:
        return self._single(f"{ADEMAMIX} alpha=0", _slow(0.0), rate, seed)

    def shifted(self, name: str, rate: float, shift: float, seed: int) -> Cell:
        """Everything is read until the shift, then text like the target alone."""
        optimizer = {"name": "adamw"} if name == ADAMW else _slow(CHOSEN_ALPHA)
        body = {
            **self._body(optimizer, rate, seed),
            "method": "crisp",
            "partition": {"by": "clusters", "k": self.clusters},
            "switch_fraction": shift,
            "max_repeats": 1000.0,
        }
        return Cell(key=f"{name} shift at {shift:g} lr={rate:g} seed={seed}", body=body, target=(TARGET,))

    def duel(self, seed: int, found: Mapping[str, Found]) -> Cell | None:
        """Both at their best, paired over documents."""
        sides = {ADEMAMIX: self.ademamix.at_best(found).get(seed), ADAMW: self.adamw.at_best(found).get(seed)}
        models = {name: made(one, "model") for name, one in sides.items() if one is not None and made(one, "model")}
        tokens = {tokens_of(one) for one in sides.values() if one is not None} - {""}
        if len(models) < len(sides) or len(tokens) != 1:
            return None
        text, pairs = self.text, [(ADEMAMIX, ADAMW)]
        key = f"contest of the two seed={seed}"
        return contest(key, seed=seed, text=text, tokens=tokens.pop(), split="test", models=models, pairs=pairs)

    def remembered(self, seed: int, found: Mapping[str, Found]) -> Cell | None:
        """All models of one seed's shifts on the corpus' test text, source by source."""
        fast, slow = self.adamw.best(found), self.ademamix.best(found)
        assert fast is not None, "wanted once both rates are there"
        assert slow is not None, "wanted once both rates are there"
        models: dict[str, Any] = {}
        tokens = ""
        for (name, rate), shift in itertools.product(((ADAMW, fast), (ADEMAMIX, slow)), self.shifts):
            one = found.get(self.shifted(name, rate, shift, seed).key)
            if one is None or one.state != FINISHED:
                return None
            tokens = tokens_of(one)
            models |= {f"{name} {shift:g} {which}": made(one, which) for which in ("specialist", "generalist")}
        if not models:
            return None
        key = f"contest of what is remembered seed={seed}"
        return contest(key, seed=seed, text=self.text, tokens=tokens, split="test", models=models)

    def _side(
        self, name: str, optimizer: Mapping[str, Any], *, searched: int = 1, length: float = 1.0, data: str = CORPUS
    ) -> Side:
        def cell(rate: float, seed: int) -> Cell:
            return self._single(name, optimizer, rate, seed, steps=round(length * self.steps), data=data)

        return Side(name=name, values=self.rates, seeds=self.seeds, cell=cell, searched=searched)

    def _single(
        self,
        name: str,
        optimizer: Mapping[str, Any],
        rate: float,
        seed: int,
        *,
        steps: int = 0,
        data: str = CORPUS,
    ) -> Cell:
        body = {"method": "single", **self._body(optimizer, rate, seed, steps)}
        return Cell(key=f"{name} lr={rate:g} seed={seed}", body=body, data=data)

    def _body(self, optimizer: Mapping[str, Any], rate: float, seed: int, steps: int = 0) -> dict[str, Any]:
        return {**self.body(rate, seed, steps=steps), "optimizer": {"beta2": BETA2, **optimizer}}


DESIGNS: Mapping[BudgetName, Design] = {
    "quick": Design(
        seeds=(0,),
        preset="0.04M",
        steps=150,
        rates=(1e-2, 2e-2),
        alphas=(CHOSEN_ALPHA,),
        lengths=(2.0,),
        switches=(0.5,),
        shifts=(0.5,),
        sources=("legal", "quotes", "recipes"),
    ),
    "standard": Design(
        seeds=(0, 1, 2),
        preset="0.04M",
        steps=600,
        rates=(2.5e-3, 5e-3, 1e-2, 2e-2, 4e-2),
        alphas=(2.0, CHOSEN_ALPHA, 10.0),
        lengths=(1.5, 2.0),
        switches=(0.25, 0.5, 0.75),
        shifts=(0.5, 0.75),
    ),
    "full": Design(
        seeds=(0, 1, 2, 3, 4),
        preset="2.5M",
        steps=5000,
        rates=(5e-4, 1e-3, 2e-3, 4e-3, 8e-3),
        alphas=(2.0, CHOSEN_ALPHA, 8.0, 10.0),
        lengths=(1.25, 1.5, 2.0),
        switches=(0.25, 0.5, 0.75),
        shifts=(0.5, 0.75),
        batch=64,
        sequence=256,
        clusters=64,
        profile={"device": "cuda", "dtype": "bfloat16"},
    ),
}


def _slow(alpha: float) -> dict[str, Any]:
    return {"name": "ademamix", "alpha": alpha}
