"""Method name -> plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from coordinator.plans import smalltalk
from coordinator.plans.base import CorpusFacts, Results, Wanted
from potluck.spec import RunSpec

Plan = Callable[[RunSpec, CorpusFacts, Results], Wanted]

PLANS: Mapping[str, Plan] = {"smalltalk": smalltalk.advance}


def advance(spec_json: str, corpus_json: str, results: Results) -> Wanted:
    """Evaluates the plan of a spec's method from scratch.

    Raises:
        SpecError: the spec is none, or asks for what cannot be.
    """
    spec = RunSpec.from_json(spec_json)
    return PLANS[spec.method](spec, CorpusFacts.from_json(corpus_json), results)
