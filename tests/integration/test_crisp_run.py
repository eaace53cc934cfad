"""A specialist by real daemons: better than the generalist on its target, and every task the same without a daemon."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from potluck.errors import DataError
from potluck.ids import Digest, digest_file
from potluck.net.blobs.store import BlobStore
from potluck.recipe import Recipe
from sampling.tasks import run_task
from tests.integration.harness import Cluster
from tests.integration.mixture_runs import corpus_of, crisp_spec, target_of
from tests.integration.plan_events import lineages_of
from tests.integration.smalltalk_runs import TaskDone, read_json, tasks_done


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """One run that continues the generalist from half its steps, and fine-tunes both."""
    folder = tmp_path_factory.mktemp("crisp")
    corpus, target = corpus_of(folder / "corpus"), target_of(folder / "target")
    with Cluster(folder / "cluster") as cluster:
        cluster.start_coordinator()
        cluster.put_corpus(corpus.files)
        cluster.put_corpus(target.files)
        for name in ("a", "b"):
            cluster.start_node(name)
        run = cluster.start_run(crisp_spec(corpus.digest, target.digest, switch=0.5, finetune_steps=20))
        info = cluster.wait_ended(run)
        assert info.state == "finished", f"{info.reason}{cluster.tails()}"
        with cluster.client() as admin:
            ledger = admin.get_ledger(run)
        blobs = cluster.blobs()
    journal = cluster.home / "journal.db"
    report = read_json(blobs, Digest(info.report))
    return {
        "info": info,
        "ledger": ledger,
        "blobs": blobs,
        "report": report,
        "tasks": tasks_done(journal),
        "lineages": lineages_of(journal),
    }


def test_the_specialist_is_better_on_its_target_and_worse_on_the_rest(ran: Mapping[str, Any]) -> None:
    report = ran["report"]
    on_target = report["pairs"]["specialist - generalist"]
    on_corpus = report["facts"]["on_the_corpus"]["pairs"]["specialist - generalist"]
    assert on_target["high"] < 0 < on_corpus["low"]


def test_what_continues_another_lineage_is_in_the_ledger_and_starts_at_its_checkpoint(ran: Mapping[str, Any]) -> None:
    assert ran["ledger"].ok, ran["ledger"].problems
    by_label = {line.label: line for line in ran["ledger"].lineages}
    assert set(by_label) == {"generalist", "specialist", "generalist fine-tuned", "specialist fine-tuned"}
    recipes = {one.label: Recipe.from_json(one.recipe_json) for one in ran["lineages"]}
    half = next(r for r in by_label["generalist"].ranges if r.end_step == 60)
    origin = recipes["specialist"].origin
    assert origin is not None
    checkpoint = read_json(ran["blobs"], Digest(half.child))
    assert (origin.step, origin.weights, origin.optimizer) == (60, checkpoint["weights"], checkpoint["optimizer"])
    assert by_label["specialist"].total_steps == 60


def test_every_task_gives_the_same_bytes_without_a_daemon(ran: Mapping[str, Any], tmp_path: Path) -> None:
    done: tuple[TaskDone, ...] = ran["tasks"]
    kinds = {(task.wanted.kind, json.loads(task.wanted.params_json).get("what", "")) for task in done}
    assert {("fit", "lsi"), ("embed", ""), ("fit_clusters", ""), ("fit", "target_histogram")} <= kinds
    for number, task in enumerate(done):
        out = tmp_path / str(number)
        out.mkdir()
        params, inputs = json.loads(task.wanted.params_json), dict(task.wanted.inputs)
        made = run_task(task.wanted.kind, params, inputs, Kept(ran["blobs"]), out, lambda fraction: None)
        assert {name: digest_file(path) for name, path in made.files.items()} == task.blobs, task.wanted.label
        assert dict(made.figures) == dict(task.figures), task.wanted.label


class Kept:
    """The hub's blobs, read in place."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs

    def path(self, digest: Digest) -> Path:
        if not self._blobs.has(digest):
            raise DataError("data.missing", digest, "")
        return self._blobs.path(digest)
