"""CRISP (arXiv 2410.03735): specialists by a target's histogram over clusters, and generalists of equal tokens."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from potluck.lab.sides import Side, unique
from potluck.lab.study import CORPUS, BudgetName, Cell, Found, TextWish
from potluck.lab.trials import Trials

SPECIALIST, GENERALIST = "specialist", "generalist"
BOTH = (SPECIALIST, GENERALIST)
SMALL = "small corpus"
HELD_OUT, FEW, SMALL_PART = (0, 3), (0, 1), (3, 5)
"""Tenths of a target's documents that are the target, those of a small target, and those of a small corpus."""
SEARCH_K = 32
"""Clusters at which rates are searched, and of all that compares no clusters."""


@dataclass(frozen=True, kw_only=True)
class Design(Trials):
    """The cells of one budget, and the sides that are compared."""

    clusters: tuple[int, ...]
    """Ascending; the ends are coarse and fine."""
    fine: int
    """Clusters of claim 4, fixed beforehand."""
    targets: tuple[str, ...]
    """Sources; the first is the one of all that is done on one target."""
    switches: tuple[float, ...]
    finetune_rates: tuple[float, ...]
    finetune_steps: int

    @property
    def texts(self) -> dict[str, TextWish]:
        kept = dict.fromkeys(self.targets, (HELD_OUT[1], 10))
        wishes = {
            CORPUS: TextWish(sources=self.sources, parts=kept),
            SMALL: TextWish(sources=self.sources, parts={"": SMALL_PART}),
        }
        for target in self.targets:
            wishes[target] = TextWish(sources=(target,), parts={target: HELD_OUT})
            wishes[few(target)] = TextWish(sources=(target,), parts={target: FEW})
        return wishes

    @property
    def main(self) -> str:
        return self.targets[0]

    def side(self, which: str, target: str) -> Side:
        """The rate of one of a run's two models, each chosen for the target."""
        return Side(
            name=f"{which} for {target}",
            values=self.rates,
            seeds=self.seeds,
            cell=lambda rate, seed: self.crisp(target, rate, seed),
            examined=self.examined,
            valid=lambda found: found.told("by_source", target, "models", which, "nll"),
        )

    def by_clusters(self, target: str, rate: float) -> Side:
        """Numbers of clusters between the ends, the best chosen on valid text."""
        return Side(
            name=f"clusters for {target}",
            values=tuple(float(k) for k in self.clusters[1:-1]),
            seeds=self.seeds,
            cell=lambda k, seed: self.crisp(target, rate, seed, k=int(k)),
            examined=self.examined,
            valid=lambda found: found.told("by_source", target, "models", SPECIALIST, "nll"),
        )

    def tuned(self, which: str, target: str, rate: float) -> Side:
        """The rate of fine-tuning, of a model trained at `rate`; `target` is a text's name."""
        source = self.main
        return Side(
            name=f"{which} fine-tuned on {target}",
            values=self.finetune_rates,
            seeds=self.seeds,
            cell=lambda finetune, seed: self.crisp(target, rate, seed, finetune=finetune),
            examined=self.examined,
            valid=lambda found: found.told("by_source", source, "models", f"{which} fine-tuned", "nll"),
        )

    @property
    def searches(self) -> tuple[Side, ...]:
        return tuple(self.side(which, target) for target in self.targets for which in BOTH)

    def cells(self, found: Mapping[str, Found]) -> tuple[Cell, ...]:
        wanted = [cell for side in self.searches for cell in side.cells(found)]
        for target in self.targets:
            rate = self.side(SPECIALIST, target).best(found)
            if rate is not None:
                wanted += [*self.by_clusters(target, rate).cells(found), *self.all_clusters(target, rate)]
        rates = {which: self.side(which, self.main).best(found) for which in BOTH}
        if (rate := rates[SPECIALIST]) is not None:
            wanted += self.on_main(rate)
        for (which, rate), text in itertools.product(rates.items(), (self.main, few(self.main))):
            if rate is not None:
                wanted += self.tuned(which, text, rate).cells(found)
        return unique(wanted)

    def expected(self) -> tuple[Cell, ...]:
        rate = self.rates[0]
        wanted = [cell for side in self.searches for cell in side.expected()]
        wanted += [cell for target in self.targets for cell in self.all_clusters(target, rate)]
        wanted += self.on_main(rate)
        wanted += [
            cell for text in (self.main, few(self.main)) for cell in self.tuned(SPECIALIST, text, rate).expected()
        ]
        return unique(wanted)

    def all_clusters(self, target: str, rate: float) -> list[Cell]:
        return [self.crisp(target, rate, seed, k=k) for k in self.clusters for seed in self.seeds]

    def on_main(self, rate: float) -> list[Cell]:
        """What is done on one target: corpora and targets of other sizes, several targets at once, switches."""
        cells = [
            self.crisp(target, rate, seed, k=k, data=data)
            for (data, target), k, seed in itertools.product(self.sizes, self.ends, self.seeds)
        ]
        cells += [self.crisp(self.main, rate, seed, switch=switch) for switch in self.switches for seed in self.seeds]
        return [*cells, *(self.of_all(rate, seed) for seed in self.seeds if len(self.targets) > 1)]

    @property
    def sizes(self) -> tuple[tuple[str, str], ...]:
        """Corpus and target of all four corners of the two sizes, the large ones first."""
        return tuple(itertools.product((CORPUS, SMALL), (self.main, few(self.main))))

    @property
    def ends(self) -> tuple[int, int]:
        return self.clusters[0], self.clusters[-1]

    def crisp(
        self,
        target: str,
        rate: float,
        seed: int,
        *,
        k: int = SEARCH_K,
        data: str = CORPUS,
        switch: float = 0.0,
        finetune: float = 0.0,
    ) -> Cell:
        body = self._body(rate, seed, k)
        key = f"{target} K={k} lr={rate:g} seed={seed}"
        if data != CORPUS:
            key = f"{data}, {key}"
        if switch:
            body["switch_fraction"], key = switch, f"{key} switch={switch:g}"
        if finetune:
            body["finetune"] = {"steps": self.finetune_steps, "checks": 4, "batch_size": 8, "learning_rate": finetune}
            key = f"{key} finetune={finetune:g}"
        return Cell(key=key, body=body, data=data, target=(target,))

    def of_all(self, rate: float, seed: int) -> Cell:
        """One specialist for all targets alike."""
        body = self._body(rate, seed, SEARCH_K)
        body["target_weights"] = [{"name": target, "weight": 1.0} for target in self.targets]
        return Cell(key=f"all targets lr={rate:g} seed={seed}", body=body, target=self.targets)

    def _body(self, rate: float, seed: int, k: int) -> dict[str, Any]:
        return {
            **self.body(rate, seed),
            "method": "crisp",
            "partition": {"by": "clusters", "k": k},
            "max_repeats": 1e6,
        }


def few(target: str) -> str:
    """The name of a target's small text."""
    return f"few {target}"


DESIGNS: Mapping[BudgetName, Design] = {
    "quick": Design(
        seeds=(0,),
        preset="0.04M",
        steps=150,
        rates=(2e-2,),
        clusters=(8, SEARCH_K, 128),
        fine=128,
        targets=("recipes",),
        switches=(0.5,),
        finetune_rates=(1e-3,),
        finetune_steps=30,
        sources=("legal", "quotes", "recipes"),
    ),
    "standard": Design(
        seeds=(0, 1, 2),
        preset="0.04M",
        steps=500,
        rates=(5e-3, 1e-2, 2e-2, 4e-2),
        clusters=(8, SEARCH_K, 128, 512),
        fine=128,
        targets=("recipes", "legal", "code_python"),
        switches=(0.5, 0.75),
        finetune_rates=(3e-4, 1e-3, 3e-3),
        finetune_steps=100,
    ),
    "full": Design(
        seeds=(0, 1, 2, 3, 4),
        preset="2.5M",
        steps=5000,
        rates=(5e-4, 1e-3, 2e-3, 4e-3, 8e-3),
        clusters=(8, SEARCH_K, 128, 512, 2048),
        fine=512,
        targets=("recipes", "legal", "code_python", "religion"),
        switches=(0.25, 0.5, 0.75),
        finetune_rates=(1e-4, 3e-4, 1e-3, 3e-3),
        finetune_steps=400,
        batch=32,
        sequence=256,
        profile={"device": "cuda", "dtype": "bfloat16"},
    ),
}
