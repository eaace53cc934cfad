"""A coordinator's machine is lost for good, and a backup is all there is."""

from __future__ import annotations

import json
from pathlib import Path

from coordinator.journal import read_closed
from coordinator.restore import restore
from potluck.ids import Digest
from potluck.net.blobs.store import BlobStore
from potluck.net.identity import Identity
from potluck.net.moving import find_again
from potluck.v1 import admin_pb2
from tests.chaos.world import Job, Outcome, begin, outcome
from tests.integration.harness import Cluster, Daemon


def commits_of(info: admin_pb2.RunInfo) -> int:
    return sum(line.head_step > 0 for line in info.lineages)


def move(node: Daemon, coordinator: Daemon) -> None:
    """What `potluck join --coordinator` does before it starts the node."""
    folder = node.home / "identity"
    find_again(Identity.load(folder), f"127.0.0.1:{coordinator.ready['control']}").save(folder)


def lose_and_restore(cluster: Cluster, first: Daemon, backup: Path, home: Path) -> None:
    """The machine is gone; its coordinator will start from the backup."""
    first.kill()
    cluster.home = home
    restore(backup, home)


def test_a_run_half_done_is_backed_up_under_load_and_ends_elsewhere_as_if_nothing_had_happened(
    job: Job, undisturbed: Outcome, tmp_path: Path
) -> None:
    with Cluster(tmp_path / "cluster") as cluster:
        first = cluster.start_coordinator()
        nodes = [cluster.start_node(name) for name in ("a", "b")]
        run = begin(cluster, job)
        cluster.wait_until(run, lambda info: commits_of(info) >= 3)
        with cluster.client() as client:
            made = client.back_up(tmp_path / "backup")
        assert (list(made.missing), list(made.damaged)) == ([], [])
        assert made.events == sum(1 for _ in read_closed(tmp_path / "backup" / "journal.db"))
        # Nodes work on: what they commit now is not in the backup, and is done again.
        cluster.wait_until(run, lambda info: commits_of(info) >= 5)
        lose_and_restore(cluster, first, tmp_path / "backup", tmp_path / "elsewhere")
        for node in nodes:
            node.stop()
        second = cluster.start_coordinator()
        assert second.ready["control"] != first.ready["control"]
        for node in nodes:
            move(node, second)
            cluster.start_node(node.name)
        assert outcome(cluster, run) == undisturbed
    store, manifest = BlobStore(cluster.home / "blobs"), json.loads((tmp_path / "backup" / "backup.json").read_text())
    assert all(store.verify(Digest(digest)) for digest in manifest["blobs"])


def test_nodes_that_work_on_find_a_coordinator_that_has_forgotten_their_last_leases(
    job: Job, undisturbed: Outcome, tmp_path: Path
) -> None:
    """Restored at the old address: it grants anew the fences that nodes hold from after the backup."""
    with Cluster(tmp_path / "cluster") as cluster:
        first = cluster.start_coordinator()
        for name in ("a", "b"):
            cluster.start_node(name)
        run = begin(cluster, job)
        cluster.wait_until(run, lambda info: commits_of(info) >= 2)
        with cluster.client() as client:
            client.back_up(tmp_path / "backup.tar")
        cluster.wait_until(run, lambda info: commits_of(info) >= 5)
        ports = (cluster.home / "coordinator.json").read_bytes()
        lose_and_restore(cluster, first, tmp_path / "backup.tar", tmp_path / "elsewhere")
        (cluster.home / "coordinator.json").write_bytes(ports)
        assert cluster.start_coordinator().ready["control"] == first.ready["control"]
        assert outcome(cluster, run) == undisturbed
