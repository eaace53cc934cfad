"""A run of one model by real daemons, served by the router."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

from potluck.client import RouterClient
from potluck.specs.sections import EvalSpec, ModelShape, TextSpec
from potluck.specs.single import SingleSpec, TrainingSpec
from tests.integration.harness import Cluster
from tests.integration.smalltalk_runs import small_corpus

PREFIX = 8
TEXT = "the quick brown fox jumps over the lazy dog"


def test_the_model_of_a_single_run_scores_and_generates(tmp_path: Path) -> None:
    corpus = small_corpus(tmp_path)
    spec = SingleSpec(
        method="single",
        corpus=corpus.digest,
        text=TextSpec(vocab_size=300, sequence_length=32, prefix_length=PREFIX),
        model=ModelShape(hidden=16, layers=1, heads=2, ffn=24),
        training=TrainingSpec(steps=40, batch_size=8),
        evaluation=EvalSpec(bootstrap_samples=100),
    )
    with Cluster(tmp_path / "cluster") as cluster:
        cluster.start_coordinator()
        cluster.put_corpus(corpus.files)
        cluster.start_node("node")
        router = cluster.start_router("router", "--http", "--patience", "60")
        run = cluster.start_run(spec)
        assert cluster.wait_ended(run).state == "finished", cluster.tails()
        with RouterClient(cluster.admin, router.ready["address"]) as client:
            routed = client.route(TEXT)
            scored = client.score(TEXT)
            pieces = list(client.generate(TEXT, max_tokens=5))
        body = json.dumps({"text": TEXT, "slot": "model"}).encode()
        port = router.ready["http_port"]
        with urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/score", data=body)) as answer:
            over_http = json.load(answer)
    assert (routed.expert, routed.prefix_nll, routed.prefix_tokens, routed.run) == (0, (), PREFIX, run)
    assert (scored.expert, scored.weights) == (0, routed.weights)
    assert len(scored.log_probs) == len(scored.ids) - 1
    assert over_http["log_probs"] == list(scored.log_probs)
    assert 1 <= sum(len(piece.ids) for piece in pieces) <= 5
