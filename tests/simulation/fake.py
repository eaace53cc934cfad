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
from potluck.specs.sections import EvalSpec, ModelShape, TextSpec
from potluck.specs.smalltalk import DenseSpec, ExpertSpec, RouterSpec, SmallTalkSpec

CORPUS_DIGEST = Digest("c" * 64)
CORPUS = CorpusFacts(shards=tuple(Digest(f"{index:064d}") for index in range(2)), sources=("a", "b"))
TINY = ModelShape(hidden=8, layers=1, heads=1, ffn=8)

_OUTPUTS: Mapping[str, tuple[str, ...]] = {
    "bpe": ("tokenizer",),
    "part": ("part",),
    "collect": ("tokens",),
    "score": ("column",),
    "sorted_greedy": ("assignment",),
    "nll": ("nll",),
    "compare": ("report",),
}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    child: Digest
    weights: Digest
    optimizer: Digest
    figures: Figures


def small_spec(variant: int, *, bootstrap_samples: int = 200, expert_steps: int = 4) -> SmallTalkSpec:
    """A SmallTalk run of some thirty tasks and thirty commits. `variant` is even for 2 experts, odd for 3.

    `expert_steps`: of each chunk, and expert.
    """
    num = 2 + variant % 2
    return SmallTalkSpec(
        corpus=CORPUS_DIGEST,
        seed=variant,
        text=TextSpec(vocab_size=300, sequence_length=16, prefix_length=8),
        routers=RouterSpec(model=TINY, rounds=2, chunk_sequences=4 * num, batch_size=1),
        experts=ExpertSpec(model=TINY, num=num, chunks=2, chunk_sequences=expert_steps * num, batch_size=1),
        dense=DenseSpec(batch_size=4),
        evaluation=EvalSpec(bootstrap_samples=bootstrap_samples),
    )


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
    what = params.get("what") or params.get("rule") or kind
    of: list[Json] = [kind, params, [list(pair) for pair in inputs], salt]
    digest = digest_json(of)
    luck = int(digest[:6], 16) / 0xFFFFFF
    by_what: dict[str, dict[str, Any]] = {
        "collect": {"train_rows": 64, "valid_rows": 30, "test_rows": 40},
        "probe": {"mean_nll": 2.0 + luck / 100, "finite": True, "log_vocab": 5.7},
        "purity": {"purity": luck, "nmi": luck, "loads": [1, 1]},
        "nll": {"nll_all": luck, "nll_suffix": luck},
        "compare": {"mixture": {"nll_suffix": luck}},
    }
    figures = by_what.get(what, {})
    return TaskResult(blobs={name: digest_json([name, digest]) for name in _OUTPUTS.get(what, ())}, figures=figures)
