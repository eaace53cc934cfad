"""Soup-of-Experts (arXiv 2502.01804) as a study: its cells, claims and searches."""

from __future__ import annotations

from collections.abc import Mapping

from potluck.lab.studies.soup_cells import DESIGNS, Design
from potluck.lab.studies.soup_claims import claims
from potluck.lab.study import Budget, Found, Judgement
from potluck.lab.trials import TrialStudy


class SoupStudy(TrialStudy[Design]):
    name = "soup"
    paper = "2502.01804"
    title = "Specialists made of one training"
    designs = DESIGNS

    def claims(self, budget: Budget, found: Mapping[str, Found]) -> tuple[Judgement, ...]:
        return claims(self.designs[budget.name], found)
