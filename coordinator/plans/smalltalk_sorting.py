"""What sorts rows to experts: frozen routers, or for comparison clusters of prefixes, or the sources of the text.

Each gives a column of scores for each expert, and all that follows (assignment, routing, tables) takes columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from coordinator.core.values import TaskResult
from coordinator.plans.partition import Clusters, Divider
from coordinator.plans.smalltalk_routing import Scene, want_assignment, want_score
from potluck.ids import Digest, Json
from potluck.specs.partition import PartitionSpec


@dataclass(frozen=True, kw_only=True)
class FrozenRouters:
    weights: tuple[Digest, ...]


@dataclass(frozen=True, kw_only=True)
class Centroids:
    """Expert e has cluster e of the tf-idf vectors of prefixes (2410.03529, section 4: the paper's baseline)."""

    partition: Digest
    clusters: Clusters
    divider: Divider


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Expert e has the sources e, e + E, ..."""


Sorter = FrozenRouters | Centroids | Sources


def want_sorter(scene: Scene) -> Sorter | str:
    """What sorts the text without routers, or the stage that is under way."""
    spec = scene.spec
    if spec.partition_by == "source":
        return Sources()
    how = PartitionSpec(by="clusters", k=spec.experts.num)
    columns = spec.text.prefix_length
    divider = Divider(spec=spec, how=how, text=scene.text, wishes=scene.wishes, columns=columns)
    domains = divider.divide()
    if isinstance(domains, str):
        return domains
    assert domains.clusters is not None
    return Centroids(partition=domains.partition, clusters=domains.clusters, divider=divider)


def want_column(
    scene: Scene, sorter: Sorter, expert: int, *, split: str, start: int, count: int, label: str, rank: int
) -> TaskResult | None:
    """One expert's column over rows: positions of the stream for train, the rows in order else."""
    match sorter:
        case FrozenRouters(weights=weights):
            return want_score(scene, weights[expert], split=split, start=start, count=count, label=label, rank=rank)
        case Centroids():
            return _distance(scene, sorter, expert, _span(scene, split, start, count), label, rank)
        case Sources():
            params: dict[str, Json] = {"what": "source", "expert": expert, "num_experts": scene.spec.experts.num}
            return scene.wishes.task(
                "score",
                params | _span(scene, split, start, count),
                {"tokens_manifest": scene.text.tokens},
                label=label,
                rank=rank,
            )
        case _:
            assert_never(sorter)


def want_chunk(scene: Scene, sorter: Sorter, chunk: int, rank: int) -> Digest | None:
    """The balanced assignment of an expert chunk."""
    columns: dict[str, Digest] = {}
    for index in range(scene.spec.experts.num):
        scored = want_column(
            scene,
            sorter,
            index,
            split="train",
            start=scene.sizes.expert_chunk_start(chunk),
            count=scene.spec.experts.chunk_sequences,
            label=f"score chunk {chunk} with router {index}",
            rank=rank,
        )
        if scored is not None:
            columns[f"column-{index:03d}"] = scored.blobs["column"]
    return want_assignment(scene, columns, scene.spec.experts.chunk_sequences, label=f"assign chunk {chunk}", rank=rank)


def _distance(
    scene: Scene, sorter: Centroids, expert: int, span: dict[str, Json], label: str, rank: int
) -> TaskResult | None:
    split = str(span["split"])
    rows = {"train": scene.text.train_rows, "valid": scene.text.valid_rows, "test": scene.text.test_rows}[split]
    found = sorter.clusters
    vectors = sorter.divider.vectors(found.encoder_name, found.encoder, scene.text.tokens, split, rows, "")
    if vectors is None:
        return None
    params: dict[str, Json] = {"what": "distance", "cluster": expert}
    return scene.wishes.task("score", params | span, {"tree": found.tree, **vectors}, label=label, rank=rank)


def _span(scene: Scene, split: str, start: int, count: int) -> dict[str, Json]:
    key = scene.sizes.key if split == "train" else 0
    return {"split": split, "key": key, "start": start, "count": count}
