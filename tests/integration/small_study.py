"""`potluck reproduce` with a study of seconds: `python -m tests.integration.small_study reproduce small ...`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, cast

from potluck.cli import main
from potluck.lab.book import STUDIES
from potluck.lab.statistics import less, over_seeds
from potluck.lab.study import Budget, BudgetName, Cell, Found, Judgement, Searched, Study, Table, ended, judge

RATES = (3e-3, 1e-2)
SEEDS = (0, 1)
TEXT = {"vocab_size": 300, "sequence_length": 32, "prefix_length": 8}
EVALUATION = {"bootstrap_samples": 100}


class SmallStudy(Study):
    """A search over two rates, the better one with another seed, and a contest of both."""

    name = "small"
    paper = "0000.00000"
    title = "A small study"

    def budget(self, name: BudgetName) -> Budget:
        return Budget(name=name, seeds=SEEDS, minutes=1)

    def cells(self, budget: Budget, found: Mapping[str, Found]) -> tuple[Cell, ...]:
        searched = tuple(_single(rate, SEEDS[0]) for rate in RATES)
        known = ended(searched, found)
        if known is None:
            return searched
        again = tuple(_single(rate, SEEDS[1]) for rate in RATES)
        return (*searched, *again, _contest(known))

    def claims(self, budget: Budget, found: Mapping[str, Found]) -> tuple[Judgement, ...]:
        by_seed = [[_valid(found[_single(rate, seed).key]) for rate in RATES] for seed in SEEDS]
        estimate = over_seeds([one - other for one, other in by_seed])
        return (judge("1", "The lower rate is better", estimate, less(estimate), note="a test", tokens=1),)

    def tables(self, budget: Budget, found: Mapping[str, Found]) -> tuple[Table, ...]:
        scores = {rate: _valid(found[_single(rate, SEEDS[0]).key]) for rate in RATES}
        return (Searched(side="the model", values=RATES, scores=scores).table("learning rate"),)


def _single(rate: float, seed: int) -> Cell:
    body = {
        "method": "single",
        "seed": seed,
        "text": TEXT,
        "evaluation": EVALUATION,
        "model": {"hidden": 16, "layers": 1, "heads": 2, "ffn": 24},
        "training": {"steps": 800, "batch_size": 8, "learning_rate": rate},
    }
    return Cell(key=f"lr={rate:g} seed={seed}", body=body)


def _contest(found: list[Found]) -> Cell:
    made: list[Any] = [one.results["made"] for one in found]
    names = [one.cell.key for one in found]
    models = [{"name": name, **each["models"]["model"]} for name, each in zip(names, made, strict=True)]
    body = {"method": "contest", "seed": SEEDS[0], "text": TEXT, "evaluation": EVALUATION}
    return Cell(key="contest", body={**body, "tokens": made[0]["tokens"], "models": models, "pairs": [names]})


def _valid(found: Found) -> float:
    nll = found.figure("headline", "valid", "models", "model", "nll")
    assert nll is not None
    return nll


if __name__ == "__main__":
    cast(dict[str, Study], STUDIES)["small"] = SmallStudy()
    sys.exit(main())
