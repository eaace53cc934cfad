"""Requests of one kind at a running system: counted, put to the gate, and the next lineage reads more of it."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from potluck.client import AdminClient, RouterClient
from potluck.ids import Digest
from potluck.recipe import Clustered, Recipe, Segment
from potluck.specs.single import TrainingSpec
from potluck.v1 import mixture_pb2
from sampling.mixture import Mixture
from tests.integration.harness import Cluster
from tests.integration.mixture_runs import corpus_of, steered_spec, target_of
from tests.integration.plan_events import lineages_of

REQUESTS = 40
STEPS = 6000
COUNTED_S = 30.0


@pytest.mark.timeout(300)
def test_traffic_of_one_kind_makes_the_next_lineage_read_more_of_it(tmp_path: Path) -> None:
    corpus, more = corpus_of(tmp_path / "corpus", documents=300), target_of(tmp_path / "target")
    spec = steered_spec(corpus.digest)
    spec = replace(spec, training=TrainingSpec(steps=STEPS, batch_size=8, learning_rate=1e-2))
    texts = texts_of(more.files)
    with Cluster(tmp_path / "cluster") as cluster:
        cluster.start_coordinator()
        cluster.put_corpus(corpus.files)
        cluster.start_node("trainer")
        cluster.start_node("spare")  # probes what the other trains, so that it is served meanwhile
        router = cluster.start_router("router", "--count-domains", "--patience", "60")
        run = cluster.start_run(spec)
        cluster.wait_until(run, lambda info: any(slot.replicas for slot in info.published))
        with RouterClient(cluster.admin, router.ready["address"]) as client:
            for text in texts[:REQUESTS]:
                client.score(text, run=run)
        with cluster.client() as admin:
            asked = wait_counted(admin, run)
            answer = admin.propose_mixture(run, {}, request_id="1", origin="traffic", reason="what is asked for")
            wished = {each.domain: each.weight for each in answer.weights}
            cluster.wait_until(run, lambda info: any("proposal of change 1" in line.label for line in info.lineages))
            info = cluster.wait_ended(run, timeout_s=250)
            assert info.state == "finished", f"{info.reason}{cluster.tails()}"
            mixture = admin.show_mixture(run)
        blobs = cluster.blobs()
    wanted = lineages_of(cluster.home / "journal.db")
    most = max(asked, key=lambda domain: asked[domain])
    natural = {each.domain: each.natural for each in mixture.current}
    assert asked[most] > REQUESTS / 2, asked
    assert wished[most] > 1.5 * natural[most]

    (verdict,) = mixture.proposals
    assert verdict.origin == "traffic"
    assert verdict.state == "adopted", verdict
    assert verdict.high <= 0
    ends = [one.total_steps + origin_step(one.recipe_json) for one in wanted]
    (last,) = [one for one, end in zip(wanted, ends, strict=True) if end == STEPS and "proposal" in one.label]
    read = [Segment.from_json(text).data for text in last.segments_json]
    assert all(isinstance(data, Clustered) for data in read)
    used = Mixture.from_json(blobs.path(Digest(read[-1].mixture)).read_text())  # type: ignore[union-attr]
    assert used.weights[most] > 1.5 * natural[most]


def texts_of(files: dict[Digest, Path]) -> list[str]:
    (shard,) = [path for path in files.values() if path.suffix == ".jsonl"]
    return [json.loads(line)["text"] for line in shard.read_text(encoding="utf-8").splitlines()]


def wait_counted(admin: AdminClient, run: str) -> dict[str, int]:
    """Asks until all requests have been told of; the router sends once a second."""
    pause = threading.Event()
    for _ in range(int(COUNTED_S * 10)):
        traffic: mixture_pb2.TrafficInfo = admin.get_traffic(run)
        counts = {each.domain: each.requests for each in traffic.counts}
        if sum(counts.values()) >= REQUESTS:
            return counts
        pause.wait(0.1)
    raise AssertionError(f"only {counts} were counted")


def origin_step(recipe_json: str) -> int:
    origin = Recipe.from_json(recipe_json).origin
    return origin.step if origin is not None else 0
