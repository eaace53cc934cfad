"""AdEMAMix (arXiv 2409.03137) as a study: its cells, claims, searches and curves."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from potluck.lab.sides import TEST_NLL, by_seed
from potluck.lab.studies.ademamix_cells import DESIGNS, Design
from potluck.lab.studies.ademamix_claims import claims
from potluck.lab.study import Budget, Found, Judgement, Lines, Plot, Quoted
from potluck.lab.trials import TrialStudy


class AdEMAMixStudy(TrialStudy[Design]):
    name = "ademamix"
    paper = "2409.03137"
    title = "A slow average of the gradients beside Adam's"
    quoted = (
        Quoted(what="1.3B, 101B tokens of AdEMAMix against AdamW", value="as good as AdamW after 197B tokens"),
        Quoted(what="110M, 256,000 steps of AdEMAMix", value="about as good as AdamW after 500,000"),
    )
    designs = DESIGNS

    def claims(self, budget: Budget, found: Mapping[str, Found]) -> tuple[Judgement, ...]:
        return claims(self.designs[budget.name], found)

    def plots(self, budget: Budget, found: Mapping[str, Found]) -> tuple[Plot, ...]:
        design = self.designs[budget.name]
        rates = {
            side.name: [(rate, score) for rate, score in side.search(found).scores.items() if score is not None]
            for side in design.searches
        }
        lengths = [(1.0, design.adamw), *((length, design.longer(length)) for length in design.lengths)]
        tests = [(length, by_seed(side.at_best(found), *TEST_NLL)) for length, side in lengths]
        ours = by_seed(design.ademamix.at_best(found), *TEST_NLL)
        steps = {
            design.adamw.name: [(design.steps * length, statistics.fmean(t.values())) for length, t in tests if t],
            design.ademamix.name: [(float(design.steps), statistics.fmean(ours.values()))] if ours else [],
        }
        return (
            Lines(title="Valid NLL by learning rate", x_label="learning rate", series=rates, x_log=True),
            Lines(title="Test NLL by steps, each at its best rate", x_label="steps", series=steps),
        )
