"""A plan's world without daemons: every task is run and every lineage trained, in an order of chance."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from coordinator.core.values import CommittedStep, LineageWanted, TaskResult, TaskWanted
from coordinator.plans.base import CorpusFacts
from potluck.ids import NO_DIGEST, Digest
from potluck.lm.train import Trainer
from potluck.recipe import Recipe, Segment, next_commit
from potluck.specs.soup import SoupSpec
from sampling.batches import SegmentReader
from sampling.ingest import Ingested
from sampling.taskio import LocalBlobs
from sampling.tasks import run_task
from tests.unit.plan_fold import Fold


class RealFold(Fold):
    """Files go into `folder`; what was done for one spec is there for the next."""

    def __init__(self, spec: SoupSpec, corpus: Ingested, folder: Path) -> None:
        super().__init__(spec)
        self.corpus = CorpusFacts.from_manifest(corpus.manifest)
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.blobs = LocalBlobs()
        for path in corpus.files.values():
            self.blobs.add(path)

    def read_json(self, digest: Digest) -> dict[str, Any]:
        value = json.loads(self.blobs.path(digest).read_text(encoding="utf-8"))
        assert isinstance(value, dict)
        return value

    def tasks_named(self, word: str) -> list[TaskWanted]:
        return [task for task in self.seen_tasks.values() if word in task.label]

    def _result(self, task: TaskWanted) -> TaskResult:
        out = self.folder / task.id[:16]
        out.mkdir()
        done = run_task(task.kind, json.loads(task.params_json), dict(task.inputs), self.blobs, out, lambda _: None)
        return TaskResult(blobs={n: self.blobs.add(p) for n, p in done.files.items()}, figures=done.figures)

    def _commit(self, wanted: LineageWanted) -> None:
        """One commit further, from the files of the last."""
        chain = self.chains.setdefault(wanted.id, {})
        head = max(chain, default=0)
        recipe, segments = Recipe.from_json(wanted.recipe_json), tuple(map(Segment.from_json, wanted.segments_json))
        end = next_commit(step=head, commit_every=wanted.commit_every, segments=segments)
        trainer = Trainer(recipe, recipe.profile)
        if head:
            weights, optimizer = (self.blobs.path(d) for d in (chain[head].weights, chain[head].optimizer))
            trainer = Trainer.load(recipe, recipe.profile, step=head, weights=weights, optimizer=optimizer)
        reader = SegmentReader(segments[-1], recipe.batch_size, recipe.columns, self.blobs)
        losses = [
            trainer.train_step(reader.batch(step), reader.weights(step), reader.mixtures(step)).loss
            for step in range(head, end)
        ]
        out = self.folder / f"{wanted.id[:16]}-{end}"
        out.mkdir()
        files = trainer.save(out)
        chain[end] = CommittedStep(
            step=end,
            checkpoint=NO_DIGEST,
            weights=self.blobs.add(files.weights),
            optimizer=self.blobs.add(files.optimizer),
            figures={"loss": sum(losses) / len(losses)},
        )
