"""CRISP (arXiv 2410.03735) as a study: its cells, claims, searches and curves."""

from __future__ import annotations

from collections.abc import Mapping

from potluck.lab.studies.crisp_cells import DESIGNS, SPECIALIST, Design
from potluck.lab.studies.crisp_claims import claims, mean_curve
from potluck.lab.study import Budget, Found, Judgement, Lines, Plot, Table
from potluck.lab.trials import TrialStudy


class CrispStudy(TrialStudy[Design]):
    name = "crisp"
    paper = "2410.03735"
    title = "Specialists by importance sampling of clusters"
    designs = DESIGNS

    def claims(self, budget: Budget, found: Mapping[str, Found]) -> tuple[Judgement, ...]:
        return claims(self.designs[budget.name], found)

    def plots(self, budget: Budget, found: Mapping[str, Found]) -> tuple[Plot, ...]:
        design = self.designs[budget.name]
        curves = {target: mean_curve(design, target, found) for target in design.targets}
        title = "Test NLL of specialists by number of clusters"
        return (Lines(title=title, x_label="clusters", series=curves, x_log=True),)

    def tables(self, budget: Budget, found: Mapping[str, Found]) -> tuple[Table, ...]:
        design = self.designs[budget.name]
        searches = list(super().tables(budget, found))
        for target in design.targets:
            rate = design.side(SPECIALIST, target).best(found)
            if rate is not None:
                searches.append(design.by_clusters(target, rate).search(found).table("clusters"))
        return tuple(searches)
