"""Soup-of-Experts (arXiv 2502.01804) as a study: its cells, claims and searches."""

from __future__ import annotations

from collections.abc import Mapping

from potluck.lab.studies.soup_cells import DESIGNS
from potluck.lab.studies.soup_claims import claims
from potluck.lab.study import Budget, BudgetName, Cell, Found, Judgement, Study, Table, TextWish

MINUTES: Mapping[BudgetName, float] = {"quick": 5, "standard": 90, "full": 600}


class SoupStudy(Study):
    name = "soup"
    paper = "2502.01804"
    title = "Specialists made of one training"

    def budget(self, name: BudgetName) -> Budget:
        return Budget(name=name, seeds=DESIGNS[name].seeds, minutes=MINUTES[name])

    def texts(self, budget: Budget) -> Mapping[str, TextWish]:
        return DESIGNS[budget.name].texts

    def cells(self, budget: Budget, found: Mapping[str, Found]) -> tuple[Cell, ...]:
        return DESIGNS[budget.name].cells(found)

    def expected(self, budget: Budget) -> tuple[Cell, ...]:
        return DESIGNS[budget.name].expected()

    def claims(self, budget: Budget, found: Mapping[str, Found]) -> tuple[Judgement, ...]:
        return claims(DESIGNS[budget.name], found)

    def tables(self, budget: Budget, found: Mapping[str, Found]) -> tuple[Table, ...]:
        return tuple(side.search(found).table("learning rate") for side in DESIGNS[budget.name].searches)
