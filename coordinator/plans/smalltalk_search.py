"""Which batch size and learning rate each side gets: given, or found on validation text among a grid of cells."""

from __future__ import annotations

import math
from dataclasses import dataclass

from coordinator.core.values import TaskResult
from coordinator.plans.held_out import EVAL_RANK, bootstrap_params
from coordinator.plans.smalltalk_routing import Scene
from coordinator.plans.smalltalk_sizes import Cell
from coordinator.plans.smalltalk_sorting import Sorter, want_column
from coordinator.plans.trainings import Training
from potluck.ids import Digest, Json
from potluck.specs.smalltalk import SmallTalkSpec


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The cell a side goes on with, and all cells with what validation said of them."""

    cell: Cell | None
    """None until every cell has been trained and evaluated."""
    table: list[Json]


def expert_cells(spec: SmallTalkSpec) -> tuple[Cell, ...]:
    if spec.search.mode != "grid":
        return (Cell(batch_size=spec.experts.batch_size, learning_rate=spec.experts.learning_rate),)
    return _grid(spec.search.expert_batch, spec.search.expert_learning_rate)


def dense_cells(spec: SmallTalkSpec) -> tuple[Cell, ...]:
    if spec.search.mode != "grid":
        return (Cell(batch_size=spec.dense.batch_size, learning_rate=spec.dense.learning_rate),)
    return _grid(spec.search.dense_batch, spec.search.dense_learning_rate)


def choose_dense(scene: Scene, trainings: dict[Cell, Training]) -> Chosen:
    if not trainings or scene.spec.search.mode != "grid":
        return Chosen(cell=next(iter(trainings), None), table=[])
    scores: dict[Cell, float | None] = {}
    for cell, training in trainings.items():
        result = scene.examiner.nll(training, "valid")
        scores[cell] = _finite(result.figures.get("nll_suffix")) if result is not None else None
    return _least(scores, {cell: training.total_steps for cell, training in trainings.items()})


def choose_experts(scene: Scene, experts: dict[Cell, list[Training]], sorter: Sorter | None) -> Chosen:
    """By the mixture's suffix NLL on validation rows, each routed as a reader's text would be."""
    if scene.spec.search.mode != "grid":
        return Chosen(cell=next(iter(experts)), table=[])
    columns = want_held_out_columns(scene, sorter, "valid") if sorter is not None else None
    scores: dict[Cell, float | None] = {}
    for cell, trainings in experts.items():
        nll = held_out_inputs("expert", [scene.examiner.nll(training, "valid") for training in trainings])
        scores[cell] = None
        if columns is not None and nll is not None:
            compared = _want_valid_compare(scene, trainings, {**columns, **nll})
            mixture = compared.figures.get("mixture") if compared is not None else None
            if compared is not None:
                scores[cell] = _finite(mixture.get("nll_suffix") if isinstance(mixture, dict) else None)
    return _least(scores, {cell: trainings[0].total_steps for cell, trainings in experts.items()})


def want_held_out_columns(scene: Scene, sorter: Sorter, split: str) -> dict[str, Digest] | None:
    """Every expert's column over all rows of a held-out split, once all are there."""
    count = {"valid": scene.text.valid_rows, "test": scene.text.test_rows}[split]
    columns: dict[str, Digest] = {}
    for index in range(scene.spec.experts.num):
        label = f"score the {split} rows with router {index}"
        scored = want_column(scene, sorter, index, split=split, start=0, count=count, label=label, rank=EVAL_RANK)
        if scored is not None:
            columns[f"column-{index:03d}"] = scored.blobs["column"]
    return columns if len(columns) == scene.spec.experts.num else None


def held_out_inputs(name: str, results: list[TaskResult | None]) -> dict[str, Digest] | None:
    """NLL blobs by input name, once all are there."""
    found = [result.blobs["nll"] for result in results if result is not None]
    if len(found) < len(results):
        return None
    return {f"{name}-{index:03d}": digest for index, digest in enumerate(found)}


def compare_params(scene: Scene, split: str) -> dict[str, Json]:
    return {
        "what": "compare",
        "split": split,
        "prefix_length": scene.spec.text.prefix_length,
        **bootstrap_params(scene.spec, "bootstrap"),
    }


def _want_valid_compare(scene: Scene, trainings: list[Training], inputs: dict[str, Digest]) -> TaskResult | None:
    names: list[Json] = [name for name in inputs if name.startswith("expert-")]
    groups: dict[str, Json] = {"mixture": names, "dense": None, "random_split": None}
    return scene.wishes.task(
        "eval",
        {**compare_params(scene, "valid"), "facts": {}, "groups": groups},
        {"tokens_manifest": scene.text.tokens, **inputs},
        label=f"valid NLL of the mixture{trainings[0].label.removeprefix('expert 0')}",
        rank=EVAL_RANK,
    )


def _grid(batches: tuple[int, ...], rates: tuple[float, ...]) -> tuple[Cell, ...]:
    cells = (Cell(batch_size=batch, learning_rate=rate) for batch in batches for rate in rates)
    return tuple(dict.fromkeys(cells))


def _finite(value: Json) -> float:
    """A cell that diverged is the worst of all."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.inf


def _least(scores: dict[Cell, float | None], steps: dict[Cell, int]) -> Chosen:
    """The least NLL; the earlier cell of equals."""
    if any(score is None for score in scores.values()):
        return Chosen(cell=None, table=[])
    known = {cell: score for cell, score in scores.items() if score is not None}
    table: list[Json] = [
        {
            "batch_size": cell.batch_size,
            "learning_rate": cell.learning_rate,
            "steps": steps[cell],
            "valid_nll_suffix": score if math.isfinite(score) else None,
        }
        for cell, score in known.items()
    ]
    return Chosen(cell=min(known, key=lambda cell: known[cell]), table=table)
