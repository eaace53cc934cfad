"""What is neither dead nor well: a node that hangs, and bytes that have gone bad at the hub."""

from __future__ import annotations

import signal
from pathlib import Path

from potluck.v1 import admin_pb2
from tests.chaos.world import Job, Outcome, begin, children_of, outcome
from tests.integration.harness import Cluster


def test_the_work_of_a_node_that_hangs_is_done_by_the_others_and_it_comes_back(
    job: Job, undisturbed: Outcome, tmp_path: Path
) -> None:
    def works(info: admin_pb2.RunInfo) -> bool:
        return any(lineage.node.endswith("-b") for lineage in info.lineages)

    with Cluster(tmp_path) as cluster:
        cluster.start_coordinator()
        hanging = cluster.start_node("b")
        run = begin(cluster, job)
        cluster.wait_until(run, works)
        held = children_of(hanging)
        hanging.signal(signal.SIGSTOP)
        for child in held:
            child.suspend()
        try:
            cluster.start_node("a")
            assert outcome(cluster, run) == undisturbed
        finally:
            for child in held:
                child.resume()
            hanging.signal(signal.SIGCONT)
        assert hanging.stop() == 0
        assert "Traceback" not in hanging.tail()


def test_a_run_that_met_a_damaged_blob_goes_on_once_the_blob_is_put_again(
    job: Job, undisturbed: Outcome, tmp_path: Path
) -> None:
    (shard,) = [digest for digest, path in job.files.items() if path.suffix == ".jsonl"]
    with Cluster(tmp_path) as cluster:
        cluster.start_coordinator()
        run = begin(cluster, job)
        damaged = cluster.blobs().path(shard)
        whole = damaged.read_bytes()
        damaged.write_bytes(whole[:1000] + b"?" + whole[1001:])
        cluster.start_node("a")
        info = cluster.wait_ended(run)
        assert info.state == "failed"
        assert shard[:12] in info.reason
        cluster.put_corpus(job.files)
        assert cluster.start_run(job.spec) == run
        assert outcome(cluster, run) == undisturbed
