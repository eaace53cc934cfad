"""Routers by balanced EM, and their assignments of the experts' text (2410.03529, algorithm 1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from coordinator.core.values import Figures, TaskResult
from coordinator.plans.base import Wishes
from coordinator.plans.held_out import Examiner
from coordinator.plans.seeds import derive
from coordinator.plans.smalltalk_recipes import Recipes
from coordinator.plans.smalltalk_sizes import Sizes
from coordinator.plans.text import Text
from coordinator.plans.trainings import Training
from potluck.config import to_mapping
from potluck.ids import Digest, Json
from potluck.lm.memory import predict_inference_bytes
from potluck.recipe import Assigned, RandomShare, Segment
from potluck.specs.smalltalk import SmallTalkSpec

URGENT_RANK = 0
PURITY_RANK = 2
PURITY_ROWS = 512
"""Validation rows that say how well routing follows the sources."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What every stage after tokenising looks at."""

    spec: SmallTalkSpec
    sizes: Sizes
    text: Text
    recipes: Recipes
    wishes: Wishes

    @property
    def examiner(self) -> Examiner:
        return Examiner(spec=self.spec, text=self.text, wishes=self.wishes)

    @property
    def router_params(self) -> dict[str, Json]:
        """What a score depends on beside rows and weights."""
        spec = self.spec
        return {
            "prefix_length": spec.text.prefix_length,
            "batch_size": spec.routers.score_batch,
            "dtype": spec.profile.dtype,
            "model": to_mapping(spec.router_model()),
        }

    @property
    def router_memory_bytes(self) -> int:
        spec = self.spec
        return predict_inference_bytes(
            spec.router_model(), batch_size=spec.routers.score_batch, sequence=spec.text.prefix_length
        )


@dataclass(frozen=True, kw_only=True)
class Routers:
    """How far EM has come."""

    round_index: int
    """The last round whose data is known."""
    frozen: tuple[Digest, ...] | None
    """Weights of all routers after the last round, once there."""
    purity: tuple[Figures | None, ...]
    """By round; None where not known yet."""


def want_routers(scene: Scene) -> Routers:
    """Round 0 on random equal shares of chunk 0; round r on what the routers of round r - 1 chose of chunk r."""
    spec, sizes, wishes = scene.spec, scene.sizes, scene.wishes
    routers = [scene.recipes.router(index) for index in range(spec.experts.num)]
    segments: list[list[Segment]] = [[] for _ in routers]
    for round_index in range(spec.routers.rounds):
        assignment = _round_assignment(scene, routers, round_index) if round_index else None
        if round_index and assignment is None:
            break
        for index in range(len(routers)):
            segments[index].append(_round_segment(scene, round_index, index, assignment))
    for router, known in zip(routers, segments, strict=True):
        wishes.lineage(router.wanted(tuple(known)))
    return Routers(
        round_index=len(segments[0]) - 1,
        frozen=_weights_of_all(wishes, routers, sizes.router_steps),
        purity=tuple(_want_purity(scene, routers, index) for index in range(spec.routers.rounds)),
    )


def want_score(
    scene: Scene, weights: Digest, *, split: str, start: int, count: int, label: str, rank: int, prefix: int = 0
) -> TaskResult | None:
    """One router's column of scores. Rows of the held-out splits go in order, and know no key.

    Args:
        prefix: tokens that are seen, if not those of the text's own prefix.
    """
    shortened: dict[str, Json] = {"prefix_length": prefix} if prefix else {}
    return scene.wishes.task(
        "score",
        {
            "split": split,
            "key": scene.sizes.key if split == "train" else 0,
            "start": start,
            "count": count,
            **scene.router_params,
            **shortened,
        },
        {"weights": weights, "tokens_manifest": scene.text.tokens},
        label=label,
        rank=rank,
        memory_bytes=scene.router_memory_bytes,
    )


def _round_assignment(scene: Scene, routers: list[Training], round_index: int) -> Digest | None:
    """Scores begin as soon as each router ends its round: the others need not have."""
    sizes, num_rows = scene.sizes, scene.spec.routers.chunk_sequences
    columns: dict[str, Digest] = {}
    for index, router in enumerate(routers):
        weights = scene.wishes.weights(router.recipe.id, round_index * sizes.router_steps_per_round)
        if weights is None:
            continue
        scored = want_score(
            scene,
            weights,
            split="train",
            start=sizes.router_chunk_start(round_index),
            count=num_rows,
            label=f"score round {round_index} with router {index}",
            rank=URGENT_RANK,
        )
        if scored is not None:
            columns[f"column-{index:03d}"] = scored.blobs["column"]
    return want_assignment(scene, columns, num_rows, label=f"assign round {round_index}", rank=URGENT_RANK)


def want_assignment(scene: Scene, columns: Mapping[str, Digest], count: int, *, label: str, rank: int) -> Digest | None:
    num_experts = scene.spec.experts.num
    if len(columns) < num_experts:
        return None
    assigned = scene.wishes.task(
        "assign",
        {"rule": f"{scene.spec.routers.assignment}_greedy", "num_experts": num_experts, "count": count},
        columns,
        label=label,
        rank=rank,
    )
    return assigned.blobs["assignment"] if assigned is not None else None


def _round_segment(scene: Scene, round_index: int, index: int, assignment: Digest | None) -> Segment:
    sizes, count = scene.sizes, scene.spec.routers.chunk_sequences
    tokens, key, start = scene.text.tokens, sizes.key, sizes.router_chunk_start(round_index)
    data: RandomShare | Assigned
    if assignment is None:
        seed = derive(scene.spec.seed, "first round")
        shares = scene.spec.experts.num
        data = RandomShare(tokens=tokens, key=key, start=start, count=count, shares=shares, share=index, seed=seed)
    else:
        data = Assigned(tokens=tokens, key=key, start=start, count=count, assignment=assignment, share=index)
    steps = sizes.router_steps_per_round
    return Segment(index=round_index, start_step=round_index * steps, end_step=(round_index + 1) * steps, data=data)


def _weights_of_all(wishes: Wishes, routers: list[Training], step: int) -> tuple[Digest, ...] | None:
    weights = [wishes.weights(router.recipe.id, step) for router in routers]
    found = tuple(digest for digest in weights if digest is not None)
    return found if len(found) == len(routers) else None


def _want_purity(scene: Scene, routers: list[Training], round_index: int) -> Figures | None:
    weights = _weights_of_all(scene.wishes, routers, (round_index + 1) * scene.sizes.router_steps_per_round)
    if weights is None:
        return None
    inputs = {f"router-{index:03d}": digest for index, digest in enumerate(weights)}
    result = scene.wishes.task(
        "eval",
        {
            "what": "purity",
            "rows": PURITY_ROWS,
            "key": derive(scene.spec.seed, "purity"),
            **scene.router_params,
        },
        {**inputs, "tokens_manifest": scene.text.tokens},
        label=f"purity after round {round_index}",
        rank=PURITY_RANK,
        memory_bytes=scene.router_memory_bytes,
    )
    return result.figures if result is not None else None
