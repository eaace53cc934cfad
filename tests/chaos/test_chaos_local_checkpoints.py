"""The checkpoints for a node's own restart: a death in the middle of one, and a disk that takes none."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.disks import fill, small_disk
from tests.integration.test_node_resume import Lineages

Chain = list[tuple[object, ...]]


@pytest.fixture(scope="module")
def lineages(tmp_path_factory: pytest.TempPathFactory) -> Lineages:
    return Lineages(tmp_path_factory.mktemp("lineages"))


@pytest.fixture(scope="module")
def unbroken(lineages: Lineages) -> Chain:
    return lineages.unbroken()


def test_a_worker_killed_in_the_middle_of_local_checkpoints_resumes_to_the_chain_of_an_unbroken_one(
    lineages: Lineages, unbroken: Chain
) -> None:
    lineage = lineages.new("broken")
    for at_pass in (3, 5):
        with lineages.worker(POTLUCK_CRASH_AT=f"worker.mid-local-checkpoint:{at_pass}") as worker:
            assert lineage.train(worker) == "killed"
    with lineages.worker() as worker:
        assert lineage.train(worker) == "done"
    assert lineage.chain() == unbroken
    assert lineages.facts("resumed-locally")


def test_without_room_for_local_checkpoints_training_goes_on_to_the_same_chain(
    lineages: Lineages, unbroken: Chain, tmp_path: Path
) -> None:
    lineage = lineages.new("full")
    with small_disk(tmp_path / "disk", 1) as disk, lineages.worker() as worker:
        lineage.local = disk / "local"
        fill(disk)
        assert lineage.train(worker) == "done"
    assert lineage.chain() == unbroken
    assert lineages.facts("local-checkpoint-failed")
