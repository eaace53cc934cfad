"""A coordinator that comes back with another data port, for somebody named its base port this time."""

from __future__ import annotations

from pathlib import Path

from potluck.net.identity import Identity
from potluck.specs.sections import EvalSpec, ModelShape, TextSpec
from potluck.specs.single import SingleSpec, TrainingSpec
from tests.integration.harness import Cluster
from tests.integration.smalltalk_runs import small_corpus


def test_a_node_that_starts_learns_the_data_port_of_now_and_works_on(tmp_path: Path) -> None:
    corpus = small_corpus(tmp_path)
    spec = SingleSpec(
        method="single",
        corpus=corpus.digest,
        text=TextSpec(vocab_size=300, sequence_length=32, prefix_length=8),
        model=ModelShape(hidden=16, layers=1, heads=2, ffn=24),
        training=TrainingSpec(steps=40, batch_size=8),
        evaluation=EvalSpec(bootstrap_samples=100),
    )
    with Cluster(tmp_path / "cluster") as cluster:
        coordinator = cluster.start_coordinator()
        node = cluster.start_node("node")
        before = Identity.load(cluster.folder / "node" / "identity")
        assert node.stop() == 0
        assert coordinator.stop() == 0
        cluster.start_coordinator("--port", str(before.control_port))
        cluster.start_node("node")
        now = Identity.load(cluster.folder / "node" / "identity")
        assert (now.control_port, now.data_port) == (before.control_port, before.control_port + 2)
        assert now.data_port != before.data_port
        cluster.put_corpus(corpus.files)
        assert cluster.wait_ended(cluster.start_run(spec)).state == "finished", cluster.tails()
