"""The full-size models: experts, their random-split control, the dense twin; their probes and publications."""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.core.values import Publication, TaskResult
from coordinator.plans.smalltalk_recipes import Training
from coordinator.plans.smalltalk_routing import URGENT_RANK, Scene, want_chunk
from coordinator.plans.smalltalk_sizes import Cell, derive
from potluck.config import to_mapping
from potluck.ids import Digest, Json, canonical_json
from potluck.lm.memory import predict_inference_bytes
from potluck.recipe import Assigned, RandomShare, Segment, Stream

ORDINARY_RANK = 1
EVAL_RANK = 2
PROBE_TOLERANCE = 0.05
"""Nats per token a later publication may be worse than the one before."""
NUM_PROBES = 4
"""At the first commit at or beyond each quarter."""


@dataclass(frozen=True, kw_only=True)
class Probed:
    publication: Publication | None
    """The last checkpoint that passed."""
    is_complete: bool
    """Every probe up to the last step has been taken."""
    refusal: str = ""
    """The slot and the last probe's figures, where no checkpoint has passed."""


def want_experts(
    scene: Scene, cells: tuple[Cell, ...], frozen: tuple[Digest, ...] | None
) -> dict[Cell, list[Training]]:
    """Chunk c is segment c of every expert, in every cell alike."""
    num = scene.spec.experts.num
    suffixes = cell_suffixes(cells)
    experts = {cell: [scene.recipes.expert(e, cell, suffixes[cell]) for e in range(num)] for cell in cells}
    assignments = _want_assignments(scene, experts, frozen) if frozen is not None else []
    for cell, trainings in experts.items():
        for index, training in enumerate(trainings):
            segments = tuple(
                _segment(scene, cell, chunk, _routed(scene, chunk, index, assignment))
                for chunk, assignment in enumerate(assignments)
            )
            scene.wishes.lineage(training.wanted(segments))
    return experts


def want_random_split(scene: Scene, cell: Cell) -> list[Training]:
    """Experts that see random equal shares of the same chunks; exchangeable, so one may stand for all."""
    num = {"none": 0, "one": 1, "all": scene.spec.experts.num}[scene.spec.controls.random_split]
    trainings = [scene.recipes.random_split(index, cell) for index in range(num)]
    for index, training in enumerate(trainings):
        chunks = range(scene.spec.experts.chunks)
        segments = tuple(_segment(scene, cell, chunk, _random(scene, chunk, index)) for chunk in chunks)
        scene.wishes.lineage(training.wanted(segments))
    return trainings


def want_dense(scene: Scene, cells: tuple[Cell, ...]) -> dict[Cell, Training]:
    """One segment, known as soon as there are tokens."""
    if not scene.spec.dense.enabled:
        return {}
    suffixes = cell_suffixes(cells)
    trainings = {cell: scene.recipes.dense(cell, suffixes[cell]) for cell in cells}
    data = Stream(tokens=scene.text.tokens, key=scene.sizes.key, start=scene.sizes.expert_chunk_start(0))
    for training in trainings.values():
        scene.wishes.lineage(
            training.wanted((Segment(index=0, start_step=0, end_step=training.total_steps, data=data),))
        )
    return trainings


def cell_suffixes(cells: tuple[Cell, ...]) -> dict[Cell, str]:
    """For people: nothing where there is one cell."""
    if len(cells) == 1:
        return {cells[0]: ""}
    return {cell: f" (batch {cell.batch_size}, rate {cell.learning_rate:g})" for cell in cells}


def final_weights(scene: Scene, training: Training) -> Digest | None:
    return scene.wishes.weights(training.recipe.id, training.total_steps)


def want_nll(scene: Scene, training: Training, split: str) -> TaskResult | None:
    """NLL of every held-out row under a fully trained model, once it is."""
    weights = final_weights(scene, training)
    if weights is None:
        return None
    return scene.wishes.task(
        "eval",
        {"what": "nll", "split": split, "prefix_length": scene.spec.text.prefix_length, **_model_params(scene)},
        {"weights": weights, "tokens_manifest": scene.text.tokens},
        label=f"{split} NLL of {training.label}",
        rank=EVAL_RANK,
        memory_bytes=_eval_memory_bytes(scene),
    )


def want_probes(scene: Scene, training: Training, slot: str) -> Probed:
    """A checkpoint is published if it is finite and below ln V at first, and hardly worse than before later."""
    commits = scene.wishes.results.commits(training.recipe.id)
    publication: Publication | None = None
    before: float | None = None
    refusal = ""
    is_complete = True
    for step in _probe_steps(training.total_steps, tuple(commits)):
        if step is None:
            is_complete = False
            continue
        weights = commits[step].weights
        probe = _want_probe(scene, weights, f"probe {training.label} at step {step}")
        is_complete = is_complete and probe is not None
        if probe is None or not is_complete:  # probes count in order, whichever result comes first
            continue
        nll = probe.figures.get("mean_nll")
        bound = _number(probe.figures.get("log_vocab")) if before is None else before + PROBE_TOLERANCE
        if probe.figures.get("finite") is True and isinstance(nll, int | float) and nll < bound:
            before = float(nll)
            publication = Publication(
                slot=slot,
                lineage=training.recipe.id,
                step=step,
                weights=weights,
                tokenizer=scene.text.tokenizer,
                model_json=canonical_json(to_mapping(training.recipe.model)),
            )
        elif publication is None:
            refusal = f"{slot} (probe {_shown(nll)}, ln V {bound:.2f})"
    return Probed(publication=publication, is_complete=is_complete, refusal="" if publication else refusal)


def _shown(nll: Json) -> str:
    return f"{nll:.2f}" if isinstance(nll, int | float) else "not finite"


def _probe_steps(total: int, steps: tuple[int, ...]) -> list[int | None]:
    """The first commit at or beyond each quarter, each once; None where there is none yet."""
    found: dict[int | None, None] = {}
    for quarter in range(1, NUM_PROBES + 1):
        threshold = -(-total * quarter // NUM_PROBES)
        found[next((step for step in steps if step >= threshold), None)] = None
    return list(found)


def _want_probe(scene: Scene, weights: Digest, label: str) -> TaskResult | None:
    return scene.wishes.task(
        "eval",
        {
            "what": "probe",
            "rows": scene.spec.evaluation.probe_rows,
            "key": derive(scene.spec.seed, "probe"),
            **_model_params(scene),
        },
        {"weights": weights, "tokens_manifest": scene.text.tokens},
        label=label,
        rank=ORDINARY_RANK,
        memory_bytes=_eval_memory_bytes(scene),
    )


def _model_params(scene: Scene) -> dict[str, Json]:
    spec = scene.spec
    return {
        "batch_size": spec.evaluation.batch_size,
        "dtype": spec.profile.dtype,
        "model": to_mapping(spec.expert_model()),
    }


def _eval_memory_bytes(scene: Scene) -> int:
    spec = scene.spec
    return predict_inference_bytes(
        spec.expert_model(), batch_size=spec.evaluation.batch_size, sequence=spec.text.sequence_length
    )


# --- data -------------------------------------------------------------------------------------


def _want_assignments(scene: Scene, experts: dict[Cell, list[Training]], frozen: tuple[Digest, ...]) -> list[Digest]:
    """Assignments of the chunks from the first on, as far as they are known without a gap.

    All chunks are scored as nodes find the time; the next one is urgent once an expert has begun the last it has.
    """
    known: list[Digest] = []
    gap = False
    for chunk in range(scene.spec.experts.chunks):
        rank = URGENT_RANK if chunk == 0 or _has_begun(scene, experts, chunk - 1) else ORDINARY_RANK
        assignment = want_chunk(scene, frozen, chunk, rank)
        gap = gap or assignment is None
        if assignment is not None and not gap:
            known.append(assignment)
    return known


def _has_begun(scene: Scene, experts: dict[Cell, list[Training]], chunk: int) -> bool:
    return any(
        scene.wishes.head_step(training.recipe.id) > chunk * scene.sizes.expert_steps_per_chunk(cell)
        for cell, trainings in experts.items()
        for training in trainings
    )


def _segment(scene: Scene, cell: Cell, chunk: int, data: Assigned | RandomShare) -> Segment:
    steps = scene.sizes.expert_steps_per_chunk(cell)
    return Segment(index=chunk, start_step=chunk * steps, end_step=(chunk + 1) * steps, data=data)


def _routed(scene: Scene, chunk: int, index: int, assignment: Digest) -> Assigned:
    return Assigned(
        tokens=scene.text.tokens,
        key=scene.sizes.key,
        start=scene.sizes.expert_chunk_start(chunk),
        count=scene.spec.experts.chunk_sequences,
        assignment=assignment,
        share=index,
    )


def _random(scene: Scene, chunk: int, index: int) -> RandomShare:
    return RandomShare(
        tokens=scene.text.tokens,
        key=scene.sizes.key,
        start=scene.sizes.expert_chunk_start(chunk),
        count=scene.spec.experts.chunk_sequences,
        shares=scene.spec.experts.num,
        share=index,
        seed=derive(scene.spec.seed, "split", chunk),
    )


def _number(value: Json) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
