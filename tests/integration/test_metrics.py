"""A training by real daemons, seen live, in files, in TensorBoard, and not in the journal."""

from __future__ import annotations

import json
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from coordinator.core.events import DurableEvent
from coordinator.journal import SqliteJournal
from potluck.metrics import MEASURES
from potluck.specs.sections import ModelShape, TextSpec
from potluck.specs.single import SingleSpec, TrainingSpec
from potluck.v1 import admin_pb2
from tests.integration.harness import Cluster
from tests.integration.smalltalk_runs import small_corpus

STEPS = 2000
"""More than will be trained: the daemons are stopped once enough was seen."""
BATCH, SEQUENCE = 16, 32


@dataclass(frozen=True, kw_only=True)
class Seen:
    live: admin_pb2.LineageInfo
    """The lineage in the middle of its training, after a commit."""
    hub: Path
    """What the coordinator kept."""
    node: Path
    """What the node kept."""
    journal: list[dict[str, Any]]
    committed: list[tuple[int, int]]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    folder = tmp_path_factory.mktemp("metrics")
    hub, node = folder / "hub-metrics", folder / "node-metrics"
    with Cluster(folder / "cluster") as cluster:
        cluster.start_coordinator("--metrics", str(hub), "--tensorboard")
        cluster.start_node("attic", "--metrics", str(node), "--tensorboard")
        run = start_training(cluster, folder)
        live = wait_measured(cluster, run, beyond=0)
        with cluster.client() as client:
            ledger = client.get_ledger(run)
        home = cluster.home
    journal = SqliteJournal(home / "journal.db")
    rows = [json.loads(row) for row in journal.read_all()]
    journal.close()
    committed = [(r.start_step, r.end_step) for line in ledger.lineages for r in line.ranges]
    return Seen(live=live, hub=hub, node=node, journal=rows, committed=committed)


def start_training(cluster: Cluster, folder: Path) -> str:
    corpus = small_corpus(folder)
    cluster.put_corpus(corpus.files)
    spec = SingleSpec(
        method="single",
        corpus=corpus.digest,
        text=TextSpec(vocab_size=300, sequence_length=SEQUENCE, prefix_length=8),
        model=ModelShape(hidden=64, layers=2, heads=2, ffn=160),
        training=TrainingSpec(steps=STEPS, batch_size=BATCH),
        bytes_per_token=10.0,  # commits seldom enough for heartbeats to fall between two
    )
    return cluster.start_run(spec)


def wait_measured(cluster: Cluster, run: str, *, beyond: int) -> admin_pb2.LineageInfo:
    """The lineage once two heartbeats told of its training, the last between two commits and after `beyond`."""
    told: set[int] = set()

    def is_measured(info: admin_pb2.RunInfo) -> bool:
        for line in info.lineages:
            if line.grad_norm and line.live_step > line.head_step:
                told.add(line.live_step)
                return len(told) > 1 and line.head_step > 0 and line.live_step > beyond
        return False

    (line,) = cluster.wait_until(run, is_measured).lineages
    return line


def lines_of(folder: Path) -> list[dict[str, Any]]:
    (path,) = folder.glob("*.jsonl")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_run_says_what_its_training_measures_while_it_goes_on(seen: Seen) -> None:
    live = seen.live
    assert 0 < live.loss < 10
    assert 0 < live.learning_rate <= 6e-3
    assert live.tokens_per_second > 0
    assert live.flops_per_second > live.tokens_per_second
    assert 0 < live.mfu < 1.5
    assert live.rss_bytes > 50_000_000


@pytest.mark.parametrize("side", ["hub", "node"])
def test_the_files_have_every_measure_of_the_steps(seen: Seen, side: str) -> None:
    lines = lines_of(getattr(seen, side))
    progress = [line for line in lines if line["kind"] == "progress"]
    assert len(progress) >= 2
    assert {(line["lineage"], line["label"], line["node"]) for line in lines} == {
        (seen.live.lineage, seen.live.label, seen.live.node)
    }
    for line in progress:
        assert all(line[name] > 0 for name in MEASURES), line
    steps = [line["step"] for line in progress]
    assert steps == sorted(set(steps))


@pytest.mark.parametrize("side", ["hub", "node"])
def test_the_files_have_a_line_a_commit_with_its_mean_loss(seen: Seen, side: str) -> None:
    commits = [line for line in lines_of(getattr(seen, side)) if line["kind"] == "commit"]
    mean = {row["end_step"]: row["figures"]["loss"] for row in seen.journal if row["type"] == "CheckpointCommitted"}
    assert commits
    told = {line["step"]: line["loss"] for line in commits}
    assert {step: told[step] for step in mean} == mean


@pytest.mark.parametrize("side", ["hub", "node"])
def test_tensorboard_shows_what_the_lines_say(seen: Seen, side: str) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder: Path = getattr(seen, side)
    (path,) = folder.glob("*.jsonl")
    found = EventAccumulator(str(folder / "tensorboard" / path.stem), {"scalars": 0}).Reload()
    lines = lines_of(folder)
    for kind, prefix in (("progress", ""), ("commit", "commit/")):
        for name in MEASURES:
            told = [(line["step"], line[name]) for line in lines if line["kind"] == kind and line[name] is not None]
            if told:
                shown = found.Scalars(prefix + name)
                assert [(s.step, s.value) for s in shown] == [(n, pytest.approx(v, rel=1e-6)) for n, v in told]


def test_no_metric_is_in_the_journal(seen: Seen) -> None:
    assert {row["type"] for row in seen.journal} <= {kind.__name__ for kind in typing.get_args(DurableEvent)}
    commits = [row for row in seen.journal if row["type"] == "CheckpointCommitted"]
    assert seen.committed
    assert [(row["start_step"], row["end_step"]) for row in commits[: len(seen.committed)]] == seen.committed
    assert not any(name in row for row in seen.journal for name in ("grad_norm", "mfu", "flops_per_second"))


def test_a_node_that_was_killed_goes_on_in_the_same_files(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    kept = tmp_path / "kept"
    arguments = ("--metrics", str(kept), "--tensorboard")
    with Cluster(tmp_path / "cluster") as cluster:
        cluster.start_coordinator()
        node = cluster.start_node("attic", *arguments)
        run = start_training(cluster, tmp_path)
        before = wait_measured(cluster, run, beyond=0).live_step
        node.kill()
        cluster.start_node("attic", *arguments)
        wait_measured(cluster, run, beyond=before)
    steps = [line["step"] for line in lines_of(kept) if line["kind"] == "progress"]
    assert min(steps) < before < max(steps)
    (events,) = (kept / "tensorboard").iterdir()
    assert len(list(events.iterdir())) == 2
    shown = [s.step for s in EventAccumulator(str(events), {"scalars": 0}).Reload().Scalars("loss")]
    assert shown == sorted(set(shown))
    assert shown[-1] == max(steps)
