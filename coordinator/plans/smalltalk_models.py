"""The full-size models: experts, their random-split control, the dense twin; their probes and publications."""

from __future__ import annotations

from coordinator.plans.seeds import derive
from coordinator.plans.smalltalk_routing import URGENT_RANK, Scene
from coordinator.plans.smalltalk_sizes import Cell
from coordinator.plans.smalltalk_sorting import Sorter, want_chunk
from coordinator.plans.trainings import Training
from potluck.ids import Digest
from potluck.recipe import Assigned, RandomShare, Segment, Stream

ORDINARY_RANK = 1


def want_experts(scene: Scene, cells: tuple[Cell, ...], sorter: Sorter | None) -> dict[Cell, list[Training]]:
    """Chunk c is segment c of every expert, in every cell alike."""
    num = scene.spec.experts.num
    suffixes = cell_suffixes(cells)
    experts = {cell: [scene.recipes.expert(e, cell, suffixes[cell]) for e in range(num)] for cell in cells}
    assignments = _want_assignments(scene, experts, sorter) if sorter is not None else []
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


# --- data -------------------------------------------------------------------------------------


def _want_assignments(scene: Scene, experts: dict[Cell, list[Training]], sorter: Sorter) -> list[Digest]:
    """Assignments of the chunks from the first on, as far as they are known without a gap.

    All chunks are scored as nodes find the time; the next one is urgent once an expert has begun the last it has.
    """
    known: list[Digest] = []
    gap = False
    for chunk in range(scene.spec.experts.chunks):
        rank = URGENT_RANK if chunk == 0 or _has_begun(scene, experts, chunk - 1) else ORDINARY_RANK
        assignment = want_chunk(scene, sorter, chunk, rank)
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
