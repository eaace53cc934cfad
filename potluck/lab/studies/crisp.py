"""CRISP (arXiv 2410.03735) as a study: its cells, claims, searches and curves."""

from __future__ import annotations

from collections.abc import Mapping

from potluck.lab.studies.crisp_cells import DESIGNS, SPECIALIST
from potluck.lab.studies.crisp_claims import claims, mean_curve
from potluck.lab.study import Budget, BudgetName, Cell, Found, Judgement, Lines, Plot, Study, Table, TextWish

MINUTES: Mapping[BudgetName, float] = {"quick": 5, "standard": 90, "full": 600}


class CrispStudy(Study):
    name = "crisp"
    paper = "2410.03735"
    title = "Specialists by importance sampling of clusters"

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

    def plots(self, budget: Budget, found: Mapping[str, Found]) -> tuple[Plot, ...]:
        design = DESIGNS[budget.name]
        curves = {target: mean_curve(design, target, found) for target in design.targets}
        title = "Test NLL of specialists by number of clusters"
        return (Lines(title=title, x_label="clusters", series=curves, x_log=True),)

    def tables(self, budget: Budget, found: Mapping[str, Found]) -> tuple[Table, ...]:
        design = DESIGNS[budget.name]
        searches = [side.search(found).table("learning rate") for side in design.searches]
        for target in design.targets:
            rate = design.side(SPECIALIST, target).best(found)
            if rate is not None:
                searches.append(design.by_clusters(target, rate).search(found).table("clusters"))
        return tuple(searches)
