"""The end of a SmallTalk run: held-out tables of everything that was trained, and the facts beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from coordinator.core.values import Figures, TaskResult
from coordinator.plans.held_out import EVAL_RANK
from coordinator.plans.smalltalk_routing import Scene, want_score
from coordinator.plans.smalltalk_search import (
    Chosen,
    compare_params,
    held_out_inputs,
    want_held_out_columns,
)
from coordinator.plans.smalltalk_sizes import Cell
from coordinator.plans.smalltalk_sorting import FrozenRouters, Sorter
from coordinator.plans.trainings import Training
from potluck.config import to_mapping
from potluck.ids import Digest, Json
from potluck.lm.optim.horizon import optimizer_facts


@dataclass(frozen=True, kw_only=True)
class Contest:
    """The models the tables are about, and how they were chosen."""

    cell: Cell
    experts: list[Training]
    random_split: list[Training]
    dense_cell: Cell | None
    dense: Training | None
    expert_search: Chosen
    dense_search: Chosen


def want_report(
    scene: Scene, contest: Contest, sorter: Sorter | None, purity: tuple[Figures | None, ...]
) -> TaskResult | None:
    """The comparison on test rows, once all it compares is there."""
    columns = want_held_out_columns(scene, sorter, "test") if sorter is not None else None
    rounds = [figures for figures in purity if figures is not None]
    if len(rounds) < len(purity):
        columns = None
    return _want_compare(scene, contest, columns, facts_of(scene, contest, rounds), "compare on test rows")


def want_prefixes(scene: Scene, contest: Contest, sorter: Sorter | None) -> dict[str, TaskResult] | None:
    """The same by prefix, had the routers seen so many tokens of each test row; None until all are there."""
    found: dict[str, TaskResult] = {}
    for prefix in scene.spec.controls.prefixes:
        columns: dict[str, Digest] = {}
        for index, weights in enumerate(sorter.weights if isinstance(sorter, FrozenRouters) else ()):
            scored = want_score(
                scene,
                weights,
                split="test",
                start=0,
                count=scene.text.test_rows,
                label=f"score the test rows' first {prefix} tokens with router {index}",
                rank=EVAL_RANK,
                prefix=prefix,
            )
            if scored is not None:
                columns[f"column-{index:03d}"] = scored.blobs["column"]
        whole = columns if len(columns) == scene.spec.experts.num else None
        compared = _want_compare(scene, contest, whole, {}, f"compare on test rows routed by {prefix} tokens")
        if compared is not None:
            found[str(prefix)] = compared
    return found if len(found) == len(scene.spec.controls.prefixes) else None


def _want_compare(
    scene: Scene, contest: Contest, columns: dict[str, Digest] | None, facts: dict[str, Json], label: str
) -> TaskResult | None:
    """Each part starts as early as it can."""
    experts = held_out_inputs("expert", [scene.examiner.nll(training, "test") for training in contest.experts])
    randoms = held_out_inputs(
        "random_split", [scene.examiner.nll(training, "test") for training in contest.random_split]
    )
    dense = scene.examiner.nll(contest.dense, "test") if contest.dense is not None else None
    if columns is None or experts is None or randoms is None or (contest.dense is not None and dense is None):
        return None
    groups: dict[str, Json] = {
        "mixture": list(experts),
        "dense": "dense" if dense is not None else None,
        "random_split": list(randoms) or None,
    }
    inputs = {"tokens_manifest": scene.text.tokens, **columns, **experts, **randoms}
    if dense is not None:
        inputs["dense"] = dense.blobs["nll"]
    return scene.wishes.task(
        "eval",
        {**compare_params(scene, "test"), "facts": facts, "groups": groups},
        inputs,
        label=label,
        rank=EVAL_RANK,
    )


def facts_of(scene: Scene, contest: Contest, purity: list[Figures]) -> dict[str, Json]:
    """What was trained on what, for how much: everything a reader needs to doubt the tables well."""
    spec, sizes = scene.spec, scene.sizes
    router_rows = sizes.router_rounds * spec.routers.chunk_sequences
    expert_rows = spec.experts.chunks * spec.experts.chunk_sequences
    dense_rows = 0
    if contest.dense is not None:
        dense_rows = contest.dense.total_steps * contest.dense.recipe.batch_size
    return {
        "spec": spec.id,
        "method": spec.method,
        "seed": spec.seed,
        "corpus": spec.corpus,
        "tokens": scene.text.tokens,
        "profile": to_mapping(spec.profile),
        "bytes_per_trained_token": spec.bytes_per_token,
        "rows": {
            "train": scene.text.train_rows,
            "valid": scene.text.valid_rows,
            "test": scene.text.test_rows,
            "routers": router_rows,
            "experts": expert_rows,
            "dense": dense_rows,
        },
        "epochs": {
            "routers": router_rows / scene.text.train_rows,
            "experts": expert_rows / scene.text.train_rows,
            "dense": dense_rows / scene.text.train_rows,
        },
        "routers": _router_facts(scene, router_rows) if spec.has_routers else None,
        "partition_by": spec.partition_by,
        "experts": {"num": spec.experts.num, "chunks": spec.experts.chunks, **_model_facts(scene, contest.experts)},
        "random_split": _model_facts(scene, contest.random_split) if contest.random_split else None,
        "dense": _model_facts(scene, [contest.dense]) if contest.dense is not None else None,
        "flops": {
            "mixture": dict(sizes.mixture_flops),
            "dense": dense_rows * sizes.expert_row_flops,
            "random_split": sum(_flops(training) for training in contest.random_split),
        },
        "purity": [{"round": index, **_purity(figures)} for index, figures in enumerate(purity)],
        "search": {
            "mode": spec.search.mode,
            "table": spec.search.table,
            "experts": contest.expert_search.table,
            "dense": contest.dense_search.table,
        },
        "paper_bytes_per_round": sizes.paper_bytes_per_round,
    }


def run_figures(
    scene: Scene,
    contest: Contest,
    report: TaskResult,
    prefixes: Mapping[str, TaskResult],
    purity: tuple[Figures | None, ...],
) -> Figures:
    """What stays of a finished run beside its report: the headline, also of shorter prefixes, loss curves by label,
    purity by round, a search."""
    shown = [*contest.experts, *contest.random_split]
    if contest.dense is not None:
        shown.append(contest.dense)
    num_routers = scene.spec.experts.num if scene.spec.has_routers else 0
    routers = [scene.recipes.router(index) for index in range(num_routers)]
    curves: dict[str, Json] = {each.label: scene.wishes.loss_curve(each.recipe.id) for each in (*routers, *shown)}
    figures: dict[str, Json] = {
        "headline": dict(report.figures),
        "lineages": curves,
        "purity": [figures.get("purity") for figures in purity if figures is not None],
        "made": scene.examiner.made(_named(contest)),
    }
    if prefixes:
        figures["prefixes"] = {prefix: dict(compared.figures) for prefix, compared in prefixes.items()}
    if scene.spec.search.mode == "grid":
        figures["search"] = {"experts": contest.expert_search.table, "dense": contest.dense_search.table}
    return figures


def _named(contest: Contest) -> dict[str, Training]:
    groups = {"expert": contest.experts, "random_split": contest.random_split}
    named = {f"{name}-{index}": each for name, group in groups.items() for index, each in enumerate(group)}
    return named | ({"dense": contest.dense} if contest.dense is not None else {})


def _router_facts(scene: Scene, rows: int) -> dict[str, Json]:
    spec, sizes = scene.spec, scene.sizes
    model = spec.router_model()
    tokens = rows * (spec.text.prefix_length - 1)
    return {
        "rounds": spec.routers.rounds,
        "batch_size": spec.routers.batch_size,
        "learning_rate": spec.routers.learning_rate,
        "parameters": model.num_parameters,
        "steps": sizes.router_steps,
        "tokens": tokens,
        "tokens_per_parameter": tokens / spec.experts.num / model.num_parameters,
    }


def _model_facts(scene: Scene, trainings: list[Training]) -> dict[str, Json]:
    """Of models that were trained alike; tokens are targets, of all of them together."""
    recipe = trainings[0].recipe
    tokens = recipe.schedule.total_steps * recipe.batch_size * scene.spec.text.sequence_length
    return {
        "trained": len(trainings),
        "batch_size": recipe.batch_size,
        "learning_rate": recipe.schedule.learning_rate,
        "parameters": recipe.model.num_parameters,
        "steps": recipe.schedule.total_steps,
        "commit_every": recipe.commit_every,
        "optimizer": optimizer_facts(recipe.optimizer),
        "tokens": tokens * len(trainings),
        "tokens_per_parameter": tokens / recipe.model.num_parameters,
    }


def _flops(training: Training) -> float:
    return training.total_steps * training.flops_per_step


def _purity(figures: Figures) -> dict[str, Json]:
    return {name: figures.get(name) for name in ("purity", "nmi", "loads")}
