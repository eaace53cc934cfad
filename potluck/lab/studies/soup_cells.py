"""Soup-of-Experts (arXiv 2502.01804): specialists made of one training, for targets that no domain was built from."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from potluck.lab.sides import Side, contest, made, tokens_of, unique
from potluck.lab.study import CORPUS, FINISHED, BudgetName, Cell, Found, TextWish, number
from potluck.lab.trials import Trials

SOUP, GENERIC, CONSTANT, CRISP = "soup", "generic", "constant", "crisp"
"""In contests: the soup's model of the corpus, a plain model, the soup that does not see h, CRISP's specialist."""
HELD_OUT = (0, 2)
"""Tenths of a source's documents that are a target."""


@dataclass(frozen=True, kw_only=True)
class Design(Trials):
    """The cells of one budget, and the sides that are compared."""

    clusters: int
    experts: tuple[int, ...]
    """Ascending; the last is the soup's."""
    supports: tuple[int, ...]
    """Ascending."""
    support: int
    targets: tuple[str, ...]
    """Sources of which a part is held out."""
    left_out: tuple[str, ...]
    """Those of them of which the corpus has nothing at all."""
    crisp_targets: tuple[str, ...]
    """The first is the one that CRISP's rate is searched on; it is in the corpus."""

    @property
    def texts(self) -> dict[str, TextWish]:
        kept = dict.fromkeys(self.targets, (HELD_OUT[1], 10))
        corpus = TextWish(sources=self.sources, without=self.left_out, parts=kept)
        return {CORPUS: corpus} | {t: TextWish(sources=(t,), parts={t: HELD_OUT}) for t in self.targets}

    @cached_property
    def soups(self) -> Side:
        return Side(
            name=SOUP,
            values=self.rates,
            seeds=self.seeds,
            cell=lambda rate, seed: self.soup(rate, seed),
            examined=self.examined,
            valid=lambda found: own_mean(found.report),
        )

    @cached_property
    def generics(self) -> Side:
        return Side(name=GENERIC, values=self.rates, seeds=self.seeds, cell=self.generic)

    @cached_property
    def specialists(self) -> Side:
        """CRISP, a training for each target; its rate is chosen on the first."""
        target = self.crisp_targets[0]
        return Side(
            name=f"{CRISP} for {target}",
            values=self.rates,
            seeds=self.seeds,
            cell=lambda rate, seed: self.crisp(target, rate, seed),
            examined=self.examined,
            valid=lambda found: found.told("by_source", target, "models", "specialist", "nll"),
        )

    @property
    def searches(self) -> tuple[Side, ...]:
        return self.soups, self.generics, self.specialists

    def cells(self, found: Mapping[str, Found]) -> tuple[Cell, ...]:
        wanted = [cell for side in self.searches for cell in side.cells(found)]
        rate, crisp_rate = self.soups.best(found), self.specialists.best(found)
        if crisp_rate is not None:
            wanted += self.crisps(crisp_rate)
        if rate is not None:
            wanted += self.variants(rate)
            for seed in self.seeds:
                wanted += self.made_for(rate, seed, found)
                wanted += [cell for t in self.targets if (cell := self.compared(t, seed, found)) is not None]
        return unique(wanted)

    def expected(self) -> tuple[Cell, ...]:
        rate = self.rates[0]
        searched = [cell for side in self.searches for cell in side.expected()]
        return unique([*searched, *self.variants(rate), *self.crisps(rate)])

    def variants(self, rate: float) -> list[Cell]:
        """With the constant control, with other numbers of experts, and with other supports."""
        cells = [self.soup(rate, seed, constant=True) for seed in self.seeds]
        cells += [self.soup(rate, seed, experts=n) for n in self.experts for seed in self.seeds]
        return cells + [self.soup(rate, seed, support=s) for s in self.supports for seed in self.seeds]

    def crisps(self, rate: float) -> list[Cell]:
        return [self.crisp(target, rate, seed) for target in self.crisp_targets for seed in self.seeds]

    def soup(self, rate: float, seed: int, *, experts: int = 0, support: int = 0, constant: bool = False) -> Cell:
        n, s = experts or self.experts[-1], support or self.support
        body = {
            **self.body(rate, seed),
            "method": "soup",
            "partition": self._partition,
            "bank": {"experts": n, "support": s},
            "controls": {"generic": False, "constant": constant},
        }
        control = " and constant" if constant else ""
        return Cell(key=f"{SOUP}{control} n={n} s={s} lr={rate:g} seed={seed}", body=body)

    def generic(self, rate: float, seed: int) -> Cell:
        body = {"method": "single", **self.body(rate, seed)}
        return Cell(key=f"{GENERIC} lr={rate:g} seed={seed}", body=body)

    def crisp(self, target: str, rate: float, seed: int) -> Cell:
        body = {**self.body(rate, seed), "method": "crisp", "max_repeats": 1e6, "partition": self._partition}
        return Cell(key=f"{CRISP} {target} lr={rate:g} seed={seed}", body=body, target=(target,))

    def instantiated(self, target: str, soup: Found) -> Cell:
        """Theta(h) of the target's text, of the soup that a run made."""
        seed, told = soup.cell.body["seed"], soup.results["soup"]
        named = ("labels", "partition", "tokenizer", "model", "config", "encoder", "encoder_name", "tree")
        source = {name: told[name] for name in named}
        source |= {"bank": told["weights"], "natural": made(soup, SOUP)["weights"]}
        body = {"method": "instantiate", "seed": seed, "text": self.text, "soup": source}
        return Cell(key=f"{SOUP} for {target} of {soup.cell.key}", body=body, data=target)

    def base(self, rate: float, seed: int, found: Mapping[str, Found]) -> Found | None:
        """The finished soup with its control."""
        one = found.get(self.soup(rate, seed, constant=True).key)
        return one if one is not None and one.state == FINISHED else None

    def made_for(self, rate: float, seed: int, found: Mapping[str, Found]) -> list[Cell]:
        soup = self.base(rate, seed, found)
        return [self.instantiated(target, soup) for target in self.targets] if soup is not None else []

    def compared(self, target: str, seed: int, found: Mapping[str, Found]) -> Cell | None:
        """All models of one seed on one target's test text, once they are there."""
        rate, generic, crisp_rate = self.soups.best(found), self.generics.best(found), self.specialists.best(found)
        soup = self.base(rate, seed, found) if rate is not None else None
        if soup is None or generic is None or crisp_rate is None:
            return None
        plain = found.get(self.generic(generic, seed).key)
        made_for = {t: found.get(self.instantiated(t, soup).key) for t in self.targets}
        crisp = found.get(self.crisp(target, crisp_rate, seed).key) if target in self.crisp_targets else None
        if plain is None or None in made_for.values() or (target in self.crisp_targets and crisp is None):
            return None
        models = {name: made(soup, name) for name in (SOUP, CONSTANT)} | {GENERIC: made(plain, "model")}
        models |= {for_target(t): made(one, "specialist") for t, one in made_for.items() if one is not None}
        models |= {CRISP: made(crisp, "specialist")} if crisp is not None else {}
        own = made_for[target]
        tokens = tokens_of(own) if own is not None else ""
        if not tokens:
            return None
        models = {name: model for name, model in models.items() if model}
        return contest(
            f"contest on {target} seed={seed}", seed=seed, text=self.text, tokens=tokens, split="test", models=models
        )

    @property
    def _partition(self) -> dict[str, Any]:
        return {"by": "clusters", "k": self.clusters}


def for_target(name: str) -> str:
    return f"{SOUP} for {name}"


def own_mean(report: Mapping[str, Any] | None) -> float | None:
    """Mean over sources of the NLL of each source's own model on it; None where one is missing."""
    sources = (report or {}).get("by_source") or {}
    levels = [number(told, "models", for_target(source), "nll") for source, told in sources.items()]
    known = [level for level in levels if level is not None]
    return statistics.fmean(known) if known and len(known) == len(levels) else None


_EIGHT = (
    "recipes",
    "code_python",
    "encyclopedia_en",
    "encyclopedia_es",
    "encyclopedia_fr",
    "quotes",
    "legal",
    "religion",
)

DESIGNS: Mapping[BudgetName, Design] = {
    "quick": Design(
        seeds=(0,),
        preset="0.04M",
        steps=150,
        rates=(1e-2,),
        clusters=8,
        experts=(1, 4),
        supports=(2,),
        support=2,
        targets=("recipes", "quotes"),
        left_out=(),
        crisp_targets=("recipes",),
        sources=("legal", "quotes", "recipes"),
    ),
    "standard": Design(
        seeds=(0, 1, 2),
        preset="0.04M",
        steps=1000,
        rates=(5e-3, 1e-2, 2e-2, 4e-2, 8e-2),
        clusters=32,
        experts=(1, 4, 16),
        supports=(1, 2, 4, 8, 32),
        support=4,
        targets=_EIGHT,
        left_out=("legal", "religion"),
        crisp_targets=("recipes", "code_python", "legal"),
    ),
    "full": Design(
        seeds=(0, 1, 2, 3, 4),
        preset="2.5M",
        steps=5000,
        rates=(5e-4, 1e-3, 2e-3, 4e-3, 8e-3),
        clusters=64,
        experts=(1, 4, 16, 32),
        supports=(1, 2, 4, 8, 16, 64),
        support=4,
        targets=_EIGHT,
        left_out=("legal", "religion"),
        crisp_targets=("recipes", "code_python", "legal"),
        batch=64,
        sequence=256,
        profile={"device": "cuda", "dtype": "float32"},
    ),
}
