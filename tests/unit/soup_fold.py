"""A soup run's world without arithmetic: blobs are digests of what they are made of."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from coordinator.core.values import TaskResult, TaskWanted
from potluck.ids import Digest, digest_json
from potluck.specs.sections import ModelShape, TextSpec
from potluck.specs.single import TrainingSpec
from potluck.specs.soup import BankSpec, SoupSpec
from tests.unit.plan_fold import CORPUS, Fold

OUTPUTS = {
    "labels": ("labels", "array", "natural"),
    "source_mixtures": tuple(f"mixture-{number:05d}" for number in range(len(CORPUS.sources))),
    "instantiate": ("weights",),
    "assemble": ("weights",),
    "gradients": ("gradients",),
    "bank": ("bank", "optimizer"),
    "common": ("common", "optimizer"),
    "local_steps": ("delta", "bank", "optimizer"),
    "average": ("common", "momentum"),
}


class SoupFold(Fold):
    def _result(self, task: TaskWanted) -> TaskResult:
        params = json.loads(task.params_json)
        what = str(params.get("what", ""))
        names = OUTPUTS.get(what, ())
        if what == "begin":
            parts = params["setting"]["spread"]["parts"]
            names = ("setting", "common", *(f"bank-{part:03d}" for part in range(parts)))
        figures: dict[str, Any] = {
            "labels": {"domains": len(CORPUS.sources)},
            "source_mixtures": {"sources": list(CORPUS.sources), "windows": [9, 9], "expected_noise": [0.1, 0.1]},
            "gradients": {"loss": 3.0, "tokens": 64},
            "local_steps": {"loss": 3.0, "tokens": 64},
        }.get(what, {})
        usual = super()._result(task)
        blobs = {name: digest_json([task.id, name]) for name in names} or usual.blobs
        return TaskResult(blobs=blobs, figures=figures or usual.figures)


def soup(**changes: Any) -> SoupSpec:
    spec = SoupSpec(
        method="soup",
        corpus=Digest("c" * 64),
        seed=3,
        text=TextSpec(vocab_size=300, sequence_length=16, prefix_length=8),
        model=ModelShape(preset="0.04M").resolved(""),
        training=TrainingSpec(steps=40, batch_size=8),
        bank=BankSpec(experts=8),
    )
    return replace(spec, **changes)
