"""Links that are slow and lose packets, and one whose deep queue would hold heartbeats up for seconds."""

from __future__ import annotations

import time
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import pytest

from coordinator.core.events import LeaseLapsed
from potluck.ids import Digest, digest_file
from potluck.net.blobs.client import BlobClient
from potluck.net.blobs.store import BlobStore
from potluck.net.identity import Identity
from tests.chaos.world import Job, Outcome, begin, outcome
from tests.netns.fleet import HUB, Fleet, say
from tests.netns.spaces import Shape

HEARTBEATS_BYTES_PER_S = 5_000
"""Ten times what a session without work sends: the transfers did move."""
SLOW = Shape(mbit=10, rtt_ms=200, loss=0.02)
DEEP = Shape(mbit=2, rtt_ms=50, loss=0.0, queue_bytes=1_000_000)
"""Four seconds of queue: who fills it is not heard for as long."""
LARGE_BYTES = 24 << 20
BESIDE_S = 8.0
"""More than the silence that makes a suspect: a transfer that starved the heartbeats would show."""


def large_blob(folder: Path, name: str) -> tuple[Digest, Path]:
    path = folder / name
    path.write_bytes(name.encode().ljust(16) * (LARGE_BYTES // 16))
    return digest_file(path), path


@pytest.mark.parametrize(
    ("shape", "by_loss"),
    [(SLOW, False), pytest.param(SLOW, True, marks=pytest.mark.long), pytest.param(DEEP, True, marks=pytest.mark.long)],
    ids=["slow", "slow-by-loss", "deep-by-loss"],
)
def test_heartbeats_live_beside_large_transfers_both_ways_on_a_slow_link(
    fleet: Fleet, tmp_path: Path, shape: Shape, by_loss: bool
) -> None:
    fleet.add_machine("a", shape=shape)
    if by_loss:
        for name in (HUB, "a"):
            fleet.spaces.control_by_loss(name)
    coordinator = fleet.start_hub()
    began = time.monotonic()
    node = fleet.start_node("a")
    joined_s = time.monotonic() - began
    down, up = large_blob(tmp_path, "down"), large_blob(tmp_path, "up")
    fleet.put_corpus(dict([down]))
    identity = Identity.load(node.home / "identity")
    store = BlobStore(tmp_path / "beside")
    states: set[str] = set()
    longest_ms = 0
    before = fleet.spaces.bytes_on("a")
    with fleet.spaces.inside("a", lambda: BlobClient(identity, store)) as blobs, fleet.client() as client:
        began = time.monotonic()
        moving: list[Future[Any]] = [blobs.get(down[0], "corpus"), blobs.put(*up, "corpus")]
        while time.monotonic() - began < BESIDE_S:
            (seen,) = [each for each in client.list_nodes().nodes if each.name == "a"]
            states.add(seen.state)
            longest_ms = max(longest_ms, seen.silent_ms)
            wait(moving, timeout=0.05)
        moved = [now - then for now, then in zip(fleet.spaces.bytes_on("a"), before, strict=True)]
    say(
        "large transfers beside heartbeats",
        joined_s=joined_s,
        longest_silence_s=longest_ms / 1e3,
        megabytes_per_s=[round(each / BESIDE_S / 1e6, 2) for each in moved],
        congestion=fleet.spaces.congestion_control("a"),
        **fleet.made,
    )
    assert states == {"live"}
    assert "session-closed" not in coordinator.tail()
    assert "coordinator-lost" not in node.tail()
    assert min(moved) > BESIDE_S * HEARTBEATS_BYTES_PER_S


@pytest.mark.long
@pytest.mark.timeout(300)
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
