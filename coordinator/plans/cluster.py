"""A corpus divided into domains, and nothing trained: its report is the cards."""

from __future__ import annotations

from coordinator.core.values import Finished
from coordinator.plans.base import CorpusFacts, Results, Wanted, Wishes
from coordinator.plans.held_out import made_models
from coordinator.plans.partition import Divider
from coordinator.plans.text import want_text
from potluck.ids import Json
from potluck.specs.cluster import ClusterSpec


def advance(spec: ClusterSpec, corpus: CorpusFacts, results: Results) -> Wanted:
    """All that the run wants now, from scratch."""
    wishes = Wishes(results)
    text = want_text(spec, corpus, wishes)
    if isinstance(text, str):
        return wishes.wanted(text)
    domains = Divider(spec=spec, how=spec.partition, text=text, wishes=wishes).divide()
    if isinstance(domains, str):
        return wishes.wanted(domains)
    figures: dict[str, Json] = {
        "headline": {**domains.figures, "partition": domains.partition, "train_rows": text.train_rows},
        "made": made_models(text.tokens, {}),
    }
    return wishes.wanted("done", outcome=Finished(report=domains.cards, figures=figures))
