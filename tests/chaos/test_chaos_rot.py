"""Bytes that went bad where they lay: in a node's cache, and a head's weights at the hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from potluck.ids import Digest
from potluck.net.blobs.client import BlobClient
from potluck.net.blobs.store import BlobStore
from tests.chaos.world import Job, Outcome, begin, outcome
from tests.integration.harness import CALL_S, Cluster


def flip(path: Path) -> bytes:
    """Changes one bit in the middle of a file; returns what it held before."""
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    return whole


def head_weights(cluster: Cluster, run: str) -> list[Digest]:
    """The weights of every lineage's head, by the checkpoint manifests at the hub."""
    with cluster.client() as client:
        heads = [line.ranges[-1].child for line in client.get_ledger(run).lineages if line.ranges]
    hub = cluster.blobs()
    return [Digest(json.loads(hub.path(Digest(head)).read_text())["weights"]) for head in heads]


def test_a_copy_that_rotted_in_a_node_s_cache_is_fetched_again(job: Job, undisturbed: Outcome, tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster:
        cluster.start_coordinator()
        node = cluster.start_node("a")
        run = begin(cluster, job)
        cluster.wait_until(run, lambda info: any(0 < line.head_step < line.total_steps for line in info.lineages))
        assert node.stop() == 0
        cache = BlobStore(node.home / "blobs")
        cached = [digest for digest, _ in cache.blobs()]
        assert cached
        for digest in cached:
            flip(cache.path(digest))
        node = cluster.start_node("a")
        assert outcome(cluster, run) == undisturbed
        assert "blob-damaged" in node.log.read_text()


def test_weights_of_heads_that_only_the_hub_had_are_named_when_they_rot_and_a_copy_lets_the_run_go_on(
    job: Job, undisturbed: Outcome, tmp_path: Path
) -> None:
    with Cluster(tmp_path) as cluster:
        cluster.start_coordinator()
        node = cluster.start_node("a")
        run = begin(cluster, job)
        cluster.wait_until(run, lambda info: any(0 < line.head_step < line.total_steps for line in info.lineages))
        assert node.stop() == 0
        shutil.rmtree(node.home / "blobs")
        weights, copies = head_weights(cluster, run), tmp_path / "copies"
        copies.mkdir()
        for digest in weights:
            (copies / digest).write_bytes(flip(cluster.blobs().path(digest)))
        cluster.start_node("a")
        info = cluster.wait_ended(run)
        assert info.state == "failed"
        assert any(digest[:12] in info.reason for digest in weights), info.reason
        with BlobClient(cluster.admin, BlobStore(tmp_path / "cache")) as blobs:
            for digest in weights:
                blobs.put(digest, copies / digest, "weights").result(timeout=CALL_S)
        assert cluster.start_run(job.spec) == run
        assert outcome(cluster, run) == undisturbed
