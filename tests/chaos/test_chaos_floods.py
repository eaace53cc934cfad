"""What one node may leave at the hub without anybody naming it, met by an honest run and by a flood."""

from __future__ import annotations

from pathlib import Path

import pytest

from potluck.errors import ResourceError
from potluck.ids import digest_bytes
from potluck.net.blobs.client import BlobClient
from potluck.net.blobs.store import BlobStore
from potluck.net.identity import Identity
from tests.chaos.world import Job, Outcome, begin, outcome
from tests.integration.harness import Cluster

LIMIT = 600_000


def test_a_run_of_more_bytes_than_a_node_may_leave_unclaimed_goes_through_for_its_results_are_claimed(
    job: Job, undisturbed: Outcome, tmp_path: Path
) -> None:
    with Cluster(tmp_path) as cluster:
        cluster.start_coordinator("--unclaimed-bytes", str(LIMIT))
        cluster.start_node("a")
        run = begin(cluster, job)
        assert outcome(cluster, run) == undisturbed
        assert BlobStore(tmp_path / "coordinator" / "blobs").total_bytes > LIMIT


def test_a_node_that_floods_the_hub_is_refused_and_an_administrator_is_not(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster:
        cluster.start_coordinator("--unclaimed-bytes", str(LIMIT))
        node = cluster.start_node("a")
        blobs = [bytes([number]) * (LIMIT // 2) for number in range(4)]
        identities = {"node": node.home / "identity", "admin": tmp_path / "coordinator" / "admin" / "identity"}
        for role, folder in identities.items():
            with BlobClient(Identity.load(folder), BlobStore(tmp_path / role)) as client:
                for data in blobs[:2] if role == "node" else blobs[2:]:
                    path = tmp_path / "blob"
                    path.write_bytes(data)
                    client.put(digest_bytes(data), path, "weights").result(20)
                path.write_bytes(extra := role.encode() * 100_000)
                more = client.put(digest_bytes(extra), path, "weights")
                if role == "admin":
                    more.result(20)
                    continue
                with pytest.raises(ResourceError) as caught:
                    more.result(20)
                assert caught.value.error_id == "resource.unclaimed"
