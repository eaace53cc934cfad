"""A tiny SmallTalk run by real daemons, and what is left of it when they are gone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from coordinator.core.events import PlanAdvanced, TaskCompleted
from coordinator.core.values import TaskWanted
from coordinator.journal import SqliteJournal
from coordinator.wire_events import decode_event
from potluck.ids import Digest, Json, canonical_json, digest_file
from potluck.net.blobs.store import BlobStore
from potluck.specs.sections import EvalSpec, ModelShape, TextSpec
from potluck.specs.smalltalk import ControlSpec, DenseSpec, ExpertSpec, RouterSpec, SmallTalkSpec
from potluck.v1 import admin_pb2
from sampling.ingest import Ingested, ingest
from tests.integration.harness import Cluster
from tests.reference.languages import write_languages


@dataclass(frozen=True, kw_only=True)
class TaskDone:
    """A task, and what a node made of it."""

    wanted: TaskWanted
    blobs: Mapping[str, Digest]
    figures: Mapping[str, Json]


@dataclass(frozen=True, kw_only=True)
class Ran:
    info: admin_pb2.RunInfo
    ledger: admin_pb2.GetLedgerResponse
    tasks: tuple[TaskDone, ...]
    """In the order of their completion."""
    blobs: BlobStore
    nodes: frozenset[str]
    """Those that committed something."""

    @property
    def report(self) -> Digest:
        return Digest(self.info.report)

    def checkpoints(self) -> dict[str, dict[int, str]]:
        """Digest of every committed checkpoint, by lineage and step."""
        return {line.lineage: {r.end_step: r.child for r in line.ranges} for line in self.ledger.lineages}


def small_corpus(folder: Path) -> Ingested:
    return ingest(write_languages(folder / "languages.jsonl", documents=60, seed=0), folder / "corpus")


def in_two_shards(corpus: Ingested, folder: Path) -> Ingested:
    """The same documents in two shards, as a large corpus has them."""
    (shard,) = [path for path in corpus.files.values() if path.suffix == ".jsonl"]
    lines = shard.read_bytes().splitlines(keepends=True)
    shards: list[Json] = []
    files: dict[Digest, Path] = {}
    for number in range(2):
        mine = lines[number::2]
        path = folder / f"documents-{number:05d}.jsonl"
        path.write_bytes(b"".join(mine))
        digest = digest_file(path)
        files[digest] = path
        shards.append({"digest": digest, "bytes": path.stat().st_size, "documents": len(mine)})
    names = {f"documents-{number:05d}": digest for number, digest in enumerate(files)}
    manifest: dict[str, Json] = {**corpus.manifest, "blobs": names, "shards": shards}
    path = folder / "corpus.json"
    path.write_text(canonical_json(manifest), encoding="utf-8")
    digest = digest_file(path)
    return replace(corpus, digest=digest, path=path, files={**files, digest: path}, manifest=manifest)


def small_spec(corpus: Digest) -> SmallTalkSpec:
    """Three experts of two chunks, three rounds of EM; the experts' chunks reach into a second pass over the rows."""
    router = ModelShape(hidden=16, layers=1, heads=2, ffn=24)
    expert = ModelShape(hidden=16, layers=2, heads=2, ffn=40)
    return SmallTalkSpec(
        corpus=corpus,
        seed=5,
        text=TextSpec(vocab_size=300, sequence_length=32, prefix_length=8),
        routers=RouterSpec(model=router, rounds=3, chunk_sequences=720, batch_size=8, learning_rate=1e-2),
        experts=ExpertSpec(model=expert, num=3, chunks=2, chunk_sequences=960, batch_size=8, learning_rate=1e-2),
        dense=DenseSpec(batch_size=16, learning_rate=1e-2),
        controls=ControlSpec(random_split="one"),
        evaluation=EvalSpec(bootstrap_samples=500),
        bytes_per_token=16.0,
    )


def run_by_daemons(folder: Path, spec: SmallTalkSpec, corpus: Ingested, *, nodes: int) -> Ran:
    """Carries a run from its start to its end: one coordinator, so many nodes, TLS and CURVE between them."""
    with Cluster(folder) as cluster:
        cluster.start_coordinator()
        cluster.put_corpus(corpus.files)
        for number in range(nodes):
            cluster.start_node(f"node-{number}")
        run = cluster.start_run(spec)
        info = cluster.wait_ended(run)
        assert info.state == "finished", f"{info.state}: {info.reason}{cluster.tails()}"
        with cluster.client() as client:
            ledger = client.get_ledger(run)
    return Ran(
        info=info,
        ledger=ledger,
        tasks=tasks_done(cluster.home / "journal.db"),
        blobs=cluster.blobs(),
        nodes=frozenset(r.node for line in ledger.lineages for r in line.ranges),
    )


def tasks_done(path: Path) -> tuple[TaskDone, ...]:
    """Every task that the journal at `path` says is done; its coordinator must have ended."""
    wanted: dict[str, TaskWanted] = {}
    done: list[TaskDone] = []
    journal = SqliteJournal(path)
    try:
        for event in map(decode_event, journal.read_all()):
            if isinstance(event, PlanAdvanced):
                wanted.update((task.id, task) for task in event.tasks)
            elif isinstance(event, TaskCompleted):
                done.append(TaskDone(wanted=wanted[event.task], blobs=dict(event.blobs), figures=event.figures))
    finally:
        journal.close()
    return tuple(done)


def read_json(blobs: BlobStore, digest: Digest) -> dict[str, Json]:
    value = json.loads(blobs.path(digest).read_text(encoding="utf-8"))
    assert isinstance(value, dict)
    return value
