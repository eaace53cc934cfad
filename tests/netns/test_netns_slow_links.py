"""A slow and lossy link: 10 Mbit/s, 200 ms there and back, 2% of the packets lost each way."""

from __future__ import annotations

import time
from concurrent.futures import wait
from pathlib import Path

import pytest

from coordinator.core.events import LeaseLapsed
from potluck.ids import Digest, digest_file
from potluck.net.blobs.client import BlobClient
from potluck.net.blobs.store import BlobStore
from potluck.net.identity import Identity
from tests.chaos.world import Job, Outcome, begin, outcome
from tests.netns.fleet import HUB, Fleet, say
from tests.netns.spaces import Shape

SLOW = Shape(mbit=10, rtt_ms=200, loss=0.02)
LARGE_BYTES = 24 << 20
BESIDE_S = 12.0
"""More than twice the silence that makes a suspect: a transfer that starved the heartbeats would show."""


def large_blob(folder: Path, name: str) -> tuple[Digest, Path]:
    path = folder / name
    path.write_bytes(name.encode().ljust(16) * (LARGE_BYTES // 16))
    return digest_file(path), path


@pytest.mark.parametrize(("way", "by_loss"), [("get", True), ("put", False)])
def test_heartbeats_live_beside_a_large_transfer_on_a_slow_link(
    fleet: Fleet, tmp_path: Path, way: str, by_loss: bool
) -> None:
    fleet.add_machine("a", shape=SLOW)
    if by_loss:
        for name in (HUB, "a"):
            fleet.spaces.control_by_loss(name)
    coordinator = fleet.start_hub()
    began = time.monotonic()
    node = fleet.start_node("a")
    joined_s = time.monotonic() - began
    digest, path = large_blob(tmp_path, way)
    if way == "get":
        fleet.put_corpus({digest: path})
    identity = Identity.load(node.home / "identity")
    store = BlobStore(tmp_path / "beside")
    before = sum(fleet.spaces.bytes_on("a"))
    blobs = fleet.spaces.inside("a", lambda: BlobClient(identity, store))
    states: set[str] = set()
    longest_ms = 0
    with blobs, fleet.client() as client:
        moving = blobs.get(digest, "corpus") if way == "get" else blobs.put(digest, path, "corpus")
        until = time.monotonic() + BESIDE_S
        while time.monotonic() < until and not moving.done():
            (seen,) = [each for each in client.list_nodes().nodes if each.name == "a"]
            states.add(seen.state)
            longest_ms = max(longest_ms, seen.silent_ms)
            wait([moving], timeout=0.05)
        rate = (sum(fleet.spaces.bytes_on("a")) - before) / (BESIDE_S + time.monotonic() - until)
    say(
        f"{way} beside heartbeats",
        joined_s=joined_s,
        longest_silence_s=longest_ms / 1e3,
        megabytes_per_s=rate / 1e6,
        congestion=fleet.spaces.congestion_control("a"),
        **fleet.made,
    )
    assert states == {"live"}
    assert "session-closed" not in coordinator.tail()
    assert "coordinator-lost" not in node.tail()
    assert rate > 0


@pytest.mark.long
def test_a_run_on_slow_links_ends_as_on_fast_ones_and_nobody_is_suspected(
    fleet: Fleet, job: Job, undisturbed: Outcome
) -> None:
    for name in ("a", "b"):
        fleet.add_machine(name, shape=SLOW)
    coordinator = fleet.start_hub()
    nodes = [fleet.start_node(name) for name in ("a", "b")]
    began = time.monotonic()
    assert outcome(fleet, begin(fleet, job)) == undisturbed
    say(
        "a run on slow links",
        seconds=time.monotonic() - began,
        congestion=fleet.spaces.congestion_control("a"),
        **fleet.made,
    )
    assert all(node.stop() == 0 for node in nodes)
    assert coordinator.stop() == 0
    assert not [event for event in fleet.events() if isinstance(event, LeaseLapsed) and event.reason != "left"]
    assert "coordinator-lost" not in "".join(node.tail() for node in nodes)
