"""Training and tasks without arithmetic: what comes out is a hash of what goes in.

So equal work gives equal digests wherever it is done, and a result that was made of the wrong inputs
cannot hide. A `salt` is a machine whose arithmetic differs: the same work, other bits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coordinator.core.values import Figures, TaskResult
from coordinator.plans.base import CorpusFacts
from potluck.ids import Digest, Json, digest_json
from potluck.recipe import Segment

CORPUS_DIGEST = Digest("c" * 64)
TARGET_DIGEST = Digest("d" * 64)
CORPUS = CorpusFacts(
    shards=tuple(Digest(f"{index:064d}") for index in range(2)),
    sources=("a", "b"),
    target_shards=(Digest("e" * 64),),
)

OUTPUTS: Mapping[str, tuple[str, ...]] = {
    "bpe": ("tokenizer",),
    "part": ("part",),
    "collect": ("tokens",),
    "score": ("column",),
    "sorted_greedy": ("assignment",),
    "stream_greedy": ("assignment",),
    "nll": ("nll",),
    "compare": ("report",),
    "contest": ("report",),
    "lsi": ("encoder",),
    "embed": ("vectors",),
    "fit_clusters": ("tree",),
    "partition": ("labels", "distances"),
    "sources": ("labels", "partition"),
    "cards": ("cards", "partition"),
    "labels": ("labels", "array", "natural"),
    "near_duplicates": ("excluded",),
    "target_histogram": ("mixture",),
    "source_mixtures": tuple(f"mixture-{number:05d}" for number in range(len(CORPUS.sources))),
    "instantiate": ("weights",),
    "gradients": ("gradients",),
    "bank": ("bank", "optimizer"),
    "common": ("common", "optimizer"),
    "local_steps": ("delta", "bank", "optimizer"),
    "average": ("common", "momentum"),
    "assemble": ("weights",),
}
"""Names of a task's blobs, by what its parameters call it; those of a soup's beginning depend on its parts."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    child: Digest
    weights: Digest
    optimizer: Digest
    figures: Figures


def checkpoint(
    recipe: str, parent: Digest, segments: Sequence[Segment], start_step: int, end_step: int, salt: str = ""
) -> Checkpoint:
    """What training from `parent` to `end_step` gives: of the segments, those that start before it count.

    `recipe` is the lineage's id, which is the digest of its recipe.
    """
    read = [segment.digest for segment in segments if segment.start_step < end_step]
    of: list[Json] = [recipe, parent, [*read], end_step, salt]
    child = digest_json(of)
    return Checkpoint(
        child=child,
        weights=digest_json(["weights", child]),
        optimizer=digest_json(["optimizer", child]),
        figures={"loss": 2.0 + int(child[:4], 16) / 0xFFFF / end_step, "tokens": 16 * (end_step - start_step)},
    )


def task_result(kind: str, params_json: str, inputs: Sequence[tuple[str, Digest]], salt: str = "") -> TaskResult:
    """The blobs a task of this kind has, and figures that its plan can go on with."""
    params = json.loads(params_json)
    what = what_of(kind, params)
    of: list[Json] = [kind, params, [list(pair) for pair in inputs], salt]
    digest = digest_json(of)
    luck = int(digest[:6], 16) / 0xFFFFFF
    by_what: dict[str, dict[str, Any]] = {
        "collect": {"train_rows": 20_000, "valid_rows": 30, "test_rows": 40},
        "probe": {"mean_nll": 2.0 + luck / 100, "finite": True, "log_vocab": 5.7},
        "purity": {"purity": luck, "nmi": luck, "loads": [1, 1]},
        "nll": {"nll_all": luck, "nll_suffix": luck},
        "compare": {"mixture": {"nll_suffix": luck}},
        "gate": {
            "difference": luck - 0.5,
            "low": luck - 0.6,
            "high": luck - 0.4,
            "smallest_effect": 0.1,
            "verdict": "adopted" if luck < 0.5 else "kept natural",
        },
        "target_histogram": {"repeats": 1 + luck, "warnings": []},
        "labels": {"domains": len(CORPUS.sources)},
        "source_mixtures": {"sources": list(CORPUS.sources)},
        "gradients": {"loss": 2.0 + luck},
        "local_steps": {"loss": 2.0 + luck},
    }
    figures = by_what.get(what, {})
    return TaskResult(blobs={name: digest_json([name, digest]) for name in _outputs(what, params)}, figures=figures)


def _outputs(what: str, params: Mapping[str, Any]) -> tuple[str, ...]:
    if what == "begin":
        parts = params["setting"]["spread"]["parts"]
        return ("setting", "common", *(f"bank-{part:03d}" for part in range(parts)))
    return OUTPUTS.get(what, ())


def what_of(kind: str, params: Mapping[str, Any]) -> str:
    return str(params.get("what") or params.get("rule") or kind)
