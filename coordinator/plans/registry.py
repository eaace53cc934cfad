"""Method name -> plan."""

from __future__ import annotations

from typing import assert_never

from coordinator.plans import choices, cluster, contest, crisp, instantiate, single, smalltalk, soup
from coordinator.plans.base import CorpusFacts, Results, Wanted
from potluck.specs.choices import ChoicesSpec
from potluck.specs.cluster import ClusterSpec
from potluck.specs.contest import ContestSpec
from potluck.specs.crisp import CrispSpec
from potluck.specs.instantiate import InstantiateSpec
from potluck.specs.run import spec_from_json
from potluck.specs.single import SingleSpec
from potluck.specs.smalltalk import SmallTalkSpec
from potluck.specs.soup import SoupSpec


def advance(spec_json: str, corpus_json: str, results: Results) -> Wanted:
    """Evaluates the plan of a spec's method from scratch.

    Raises:
        SpecError: the spec is none, or asks for what cannot be.
    """
    spec = spec_from_json(spec_json)
    corpus = CorpusFacts.from_json(corpus_json)
    match spec:
        case SmallTalkSpec():
            return smalltalk.advance(spec, corpus, results)
        case SingleSpec():
            return single.advance(spec, corpus, results)
        case CrispSpec():
            return crisp.advance(spec, corpus, results)
        case ClusterSpec():
            return cluster.advance(spec, corpus, results)
        case SoupSpec():
            return soup.advance(spec, corpus, results)
        case InstantiateSpec():
            return instantiate.advance(spec, corpus, results)
        case ContestSpec():
            return contest.advance(spec, results)
        case ChoicesSpec():
            return choices.advance(spec, results)
        case _:
            assert_never(spec)
