"""SmallTalk (arXiv 2410.03529) as a plan: routers that sort the text, experts that never talk, their opponents.

Text → routers by EM, round by round → frozen routers assign the experts' text, chunk by chunk → experts,
random split and dense twin → held-out tables. Everything is wanted as soon as what it needs is there;
the dense twin and the random split need tokens only.
"""

from __future__ import annotations

from typing import assert_never

from coordinator.core.values import Finished
from coordinator.plans.base import CorpusFacts, Results, Wanted, Wishes
from coordinator.plans.held_out import Probed, last_stage, with_refusals
from coordinator.plans.smalltalk_models import (
    want_dense,
    want_experts,
    want_random_split,
)
from coordinator.plans.smalltalk_recipes import Recipes
from coordinator.plans.smalltalk_report import Contest, run_figures, want_prefixes, want_report
from coordinator.plans.smalltalk_routing import Routers, Scene, want_routers
from coordinator.plans.smalltalk_search import choose_dense, choose_experts, dense_cells, expert_cells
from coordinator.plans.smalltalk_sizes import Sizes
from coordinator.plans.smalltalk_sorting import Centroids, FrozenRouters, Sorter, Sources, want_sorter
from coordinator.plans.text import want_ample_text
from potluck.config import to_mapping
from potluck.ids import Json, canonical_json
from potluck.specs.smalltalk import SmallTalkSpec

NO_ROUTERS = Routers(round_index=0, frozen=None, purity=())


def advance(spec: SmallTalkSpec, corpus: CorpusFacts, results: Results) -> Wanted:
    """All that the run wants now, from scratch."""
    wishes = Wishes(results)
    text = want_ample_text(spec, corpus, wishes)
    if isinstance(text, Wanted):
        return text
    sizes = Sizes(spec=spec)
    scene = Scene(spec=spec, sizes=sizes, text=text, recipes=Recipes(sizes, text.tokens), wishes=wishes)
    return _train(scene)


def _train(scene: Scene) -> Wanted:
    spec, wishes = scene.spec, scene.wishes
    routers = want_routers(scene) if spec.has_routers else NO_ROUTERS
    found = _sorter(scene, routers)
    sorter, waiting = (None, found) if isinstance(found, str) else (found, "")
    experts = want_experts(scene, expert_cells(spec), sorter)
    denses = want_dense(scene, dense_cells(spec))
    expert_choice = choose_experts(scene, experts, sorter)
    dense_choice = choose_dense(scene, denses)
    serving = _serving_json(scene, sorter)
    if expert_choice.cell is None or (denses and dense_choice.cell is None):
        return wishes.wanted(waiting or "searching batch size and learning rate", serving_json=serving)
    contest = Contest(
        cell=expert_choice.cell,
        experts=experts[expert_choice.cell],
        random_split=want_random_split(scene, expert_choice.cell),
        dense_cell=dense_choice.cell,
        dense=denses[dense_choice.cell] if dense_choice.cell is not None else None,
        expert_search=expert_choice,
        dense_search=dense_choice,
    )
    probed = _want_publications(scene, contest)
    publish = tuple(probe.publication for probe in probed if probe.publication is not None)
    report = want_report(scene, contest, sorter, routers.purity)
    prefixes = want_prefixes(scene, contest, sorter)
    if report is None or prefixes is None or not all(probe.is_complete for probe in probed):
        stage = with_refusals(waiting or _models_stage(scene, contest), probed)
        return wishes.wanted(stage, publish=publish, serving_json=serving)
    figures = run_figures(scene, contest, report, prefixes, routers.purity)
    finished = Finished(report=report.blobs["report"], figures=figures)
    return wishes.wanted(last_stage(probed), publish=publish, outcome=finished, serving_json=serving)


def _want_publications(scene: Scene, contest: Contest) -> list[Probed]:
    slots = {f"expert-{index}": training for index, training in enumerate(contest.experts)}
    if contest.dense is not None and scene.spec.evaluation.publish_dense:
        slots["dense"] = contest.dense
    return [scene.examiner.probes(training, slot) for slot, training in slots.items()]


def _sorter(scene: Scene, routers: Routers) -> Sorter | str:
    """What sorts the experts' text, or the stage until it is there.

    Stages are for people, and coarse, so that a plan that only waits says the same thing again.
    """
    if not scene.spec.has_routers:
        return want_sorter(scene)
    if routers.frozen is None:
        return f"routers in round {routers.round_index + 1} of {scene.spec.routers.rounds}"
    return FrozenRouters(weights=routers.frozen)


def _serving_json(scene: Scene, sorter: Sorter | None) -> str:
    """What a router needs beside the published slots, once it is settled what sorts text.

    Nobody can tell the source of a request: a run sorted by source is served by its dense twin, if it has one.
    """
    spec = scene.spec
    view: dict[str, Json] = {
        "method": spec.method,
        "tokenizer": scene.text.tokenizer,
        "sequence_length": spec.text.sequence_length,
        "prefix_length": spec.text.prefix_length,
        "expert_model": to_mapping(spec.expert_model()),
    }
    match sorter:
        case None:
            return ""
        case FrozenRouters(weights=weights):
            view |= {"router_model": to_mapping(spec.router_model()), "routers": list(weights)}
        case Centroids(partition=partition):
            view |= {"route_by": "partition", "partition": partition, "experts": spec.experts.num}
        case Sources():
            if not spec.dense.enabled:
                return ""
            view |= {"route_by": "one", "default_slot": "dense"}
        case _:
            assert_never(sorter)
    return canonical_json(view)


def _models_stage(scene: Scene, contest: Contest) -> str:
    trainings = [*contest.experts, *contest.random_split]
    if contest.dense is not None:
        trainings.append(contest.dense)
    if all(scene.examiner.final_weights(training) is not None for training in trainings):
        return "evaluating"
    return "training experts"
