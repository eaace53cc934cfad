"""A disk that is full, at every writer: whoever it is says so, and goes on once there is room."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch

from expert_node.outbox import Outbox
from potluck.durable import is_full_disk
from potluck.errors import ResourceError
from tests.chaos.disks import fill, small_disk
from tests.chaos.world import Job, Outcome, begin, outcome, refused, wait_said
from tests.integration.conftest import TEXT, World
from tests.integration.harness import Cluster
from tests.unit.test_node_outbox import commit

SIZE_MIB = 16


def test_a_full_disk_ends_the_coordinator_and_room_lets_it_go_on(
    job: Job, undisturbed: Outcome, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "coordinator", SIZE_MIB), Cluster(tmp_path) as cluster:
        coordinator = cluster.start_coordinator()
        cluster.start_node("a")
        run = begin(cluster, job)
        cluster.wait_until(run, lambda info: info.tasks_done >= 1)
        ballast = fill(cluster.home)
        assert coordinator.popen.wait(timeout=60) == ResourceError.exit_code
        assert "[resource.disk-full]" in coordinator.tail()
        assert "fix: " in coordinator.tail()
        ballast.unlink()
        cluster.start_coordinator()
        assert outcome(cluster, run) == undisturbed


def test_a_run_that_the_quota_stopped_goes_on_when_it_is_started_again_with_a_larger_one(
    job: Job, undisturbed: Outcome, tmp_path: Path
) -> None:
    with Cluster(tmp_path) as cluster:
        coordinator = cluster.start_coordinator("--quota-bytes", "700000")
        cluster.start_node("a")
        run = begin(cluster, job)
        info = cluster.wait_ended(run)
        assert info.state == "failed"
        assert info.reason.startswith("[resource.quota] ")
        assert "bytes are taken" in info.reason
        assert coordinator.stop() == 0
        cluster.start_coordinator()
        assert cluster.start_run(job.spec) == run
        assert outcome(cluster, run) == undisturbed


@pytest.mark.parametrize("where", ["", pytest.param("blobs", marks=pytest.mark.long)], ids=["home", "cache"])
def test_a_node_without_room_asks_for_no_work_until_there_is_some_and_metrics_without_room_end_alone(
    where: str, job: Job, undisturbed: Outcome, tmp_path: Path
) -> None:
    with (
        small_disk(tmp_path / "a" / where, SIZE_MIB) as disk,
        small_disk(tmp_path / "metrics", 1) as metrics,
        Cluster(tmp_path) as cluster,
    ):
        fill(metrics)
        coordinator = cluster.start_coordinator("--metrics", str(metrics))
        node = cluster.start_node("a")
        run = begin(cluster, job)
        cluster.wait_until(run, lambda info: info.tasks_done >= 2)
        ballast = fill(disk)
        wait_said(node, "no-room")
        ballast.unlink()
        assert outcome(cluster, run) == undisturbed
        assert node.popen.poll() is None
        assert "room-again" in node.log.read_text()
        assert "metrics-stopped" in coordinator.log.read_text()
        assert "Traceback" not in cluster.tails()


def test_a_node_whose_cache_may_keep_next_to_nothing_fetches_again_and_changes_nothing(
    job: Job, undisturbed: Outcome, tmp_path: Path
) -> None:
    with Cluster(tmp_path) as cluster:
        cluster.start_coordinator()
        node = cluster.start_node("a", "--cache-bytes", "1")
        assert outcome(cluster, begin(cluster, job)) == undisturbed
        assert "cache-trimmed" in node.log.read_text()
        assert "lease-returned" not in node.log.read_text()


def test_a_cache_of_no_bytes_is_refused(tmp_path: Path) -> None:
    said = refused("expert_node", "--home", str(tmp_path), "--cache-bytes", "0")
    assert said.says("usage.bad-quota")


def test_a_node_that_starts_on_a_full_disk_says_so(tmp_path: Path) -> None:
    with small_disk(tmp_path / "a", 1) as disk, Cluster(tmp_path) as cluster:
        cluster.start_coordinator()
        assert cluster.start_node("a").stop() == 0
        fill(disk)
        refusal = refused("expert_node", "--home", str(disk))
        assert refusal.exit_code == ResourceError.exit_code
        assert refusal.says("resource.disk-full")


def test_an_outbox_without_room_holds_no_half_entry_and_takes_the_same_one_once_there_is_room(tmp_path: Path) -> None:
    with small_disk(tmp_path / "a", 1) as disk:
        outbox, source = Outbox(disk / "outbox"), disk / "work"
        entry = commit(outbox.next_number())
        source.mkdir()
        (source / "weights.safetensors").write_bytes(b"weights")
        ballast = fill(disk)
        with pytest.raises(OSError) as error:
            outbox.add(entry, source)
        assert is_full_disk(error.value)
        assert outbox.entries() == Outbox(disk / "outbox").entries() == []
        ballast.unlink()
        outbox.add(entry, source)
        assert Outbox(disk / "outbox").entries() == [entry]


@pytest.mark.long
def test_a_run_that_a_full_disk_of_blobs_stopped_goes_on_when_it_is_started_again_with_room(
    job: Job, undisturbed: Outcome, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "coordinator" / "blobs", SIZE_MIB) as disk, Cluster(tmp_path) as cluster:
        cluster.start_coordinator()
        cluster.start_node("a")
        run = begin(cluster, job)
        cluster.wait_until(run, lambda info: info.tasks_done >= 2)
        ballast = fill(disk)
        info = cluster.wait_ended(run)
        assert info.state == "failed"
        assert "no room left" in info.reason
        ballast.unlink()
        assert cluster.start_run(job.spec) == run
        assert outcome(cluster, run) == undisturbed


def test_a_router_that_cannot_keep_its_view_serves_it_all_the_same_and_starts_from_the_one_before(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.set_num_threads(1)

    async def scenario(disk: Path) -> None:
        world = World(disk.parent)
        first, second = world.view(), world.view(seed=200)
        async with world.router() as router, router.client() as client:
            router.offer(first, 1)
            await router.attach("n", first, second)
            await router.serving()
            ballast = fill(disk)
            router.offer(second, 2)
            while (await client.route(TEXT)).view_version != 2:
                await asyncio.sleep(0)
        assert "view-not-kept" in capfd.readouterr().err
        ballast.unlink()
        async with world.router() as router, router.client() as client:
            assert (await client.route(TEXT)).view_version == 1

    with small_disk(tmp_path / "router", 4) as disk:
        asyncio.run(asyncio.wait_for(scenario(disk), 60))
