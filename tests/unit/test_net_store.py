"""The blob store, the window and the counters."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from potluck.errors import DataError, InvariantViolation, Refused, ResourceError
from potluck.ids import Digest, digest_bytes
from potluck.net.blobs import window
from potluck.net.blobs.store import BlobStore
from potluck.net.blobs.window import Window
from potluck.net.counters import PLANES, ByteCounter

SOUP = digest_bytes(b"soup")


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


def test_a_blob_lies_under_its_digest(store: BlobStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"soup")
    assert store.put_file(tmp_path / "file") == SOUP
    assert store.path(SOUP) == tmp_path / "blobs" / SOUP[:2] / SOUP
    assert (tmp_path / "file").exists()
    assert (store.has(SOUP), store.size(SOUP), store.total_bytes) == (True, 4, 4)
    assert list(store.blobs()) == [(SOUP, 4)]


def test_a_moved_file_is_gone_from_where_it_was_also_when_the_store_had_it(store: BlobStore, tmp_path: Path) -> None:
    for _ in range(2):
        (tmp_path / "file").write_bytes(b"soup")
        assert store.put_file(tmp_path / "file", move=True) == SOUP
        assert not (tmp_path / "file").exists()
    assert store.path(SOUP).read_bytes() == b"soup"
    assert store.total_bytes == 4


def test_nothing_is_left_in_the_antechamber(store: BlobStore, tmp_path: Path) -> None:
    store.put_bytes(b"soup")
    store.put_bytes(b"soup")
    assert not list((tmp_path / "blobs" / "partial").iterdir())


def test_a_missing_blob_is_said_so_and_a_wrong_name_is_our_mistake(store: BlobStore) -> None:
    with pytest.raises(DataError) as caught:
        store.path(SOUP)
    assert caught.value.error_id == "data.missing-blob"
    with pytest.raises(InvariantViolation):
        store.has(Digest("../../etc/passwd"))


def test_verify_hashes_and_path_does_not(store: BlobStore) -> None:
    store.put_bytes(b"soup")
    assert store.verify(SOUP)
    store.path(SOUP).write_bytes(b"soap")
    assert store.path(SOUP).read_bytes() == b"soap"
    assert not store.verify(SOUP)
    assert not store.verify(digest_bytes(b"none"))


def test_a_blob_that_rotted_on_the_disk_is_dropped_by_the_next_process_that_wants_it(store: BlobStore) -> None:
    store.put_bytes(b"soup")
    assert not store.drop_if_damaged(SOUP)  # hashed as it came in
    store.path(SOUP).write_bytes(b"s0up")
    again = BlobStore(store.path(SOUP).parents[1])
    assert again.drop_if_damaged(SOUP)
    assert (again.has(SOUP), again.total_bytes) == (False, 0)
    assert not again.drop_if_damaged(SOUP)
    again.put_bytes(b"soup")
    assert not again.drop_if_damaged(SOUP)


def test_a_reopened_store_knows_what_it_holds(store: BlobStore, tmp_path: Path) -> None:
    store.put_bytes(b"soup")
    assert BlobStore(tmp_path / "blobs").total_bytes == 4


def test_deleting_frees_bytes_once(store: BlobStore) -> None:
    store.put_bytes(b"soup")
    assert [store.delete(SOUP), store.delete(SOUP)] == [4, 0]
    assert store.total_bytes == 0


def test_eviction_takes_the_oldest_and_spares_what_is_kept(store: BlobStore) -> None:
    digests = [store.put_bytes(bytes([n]) * 10) for n in range(4)]
    for age, digest in enumerate(digests):
        os.utime(store.path(digest), ns=(age, age))
    assert store.evict(20, keep={digests[0]}) == digests[1:3]
    assert store.total_bytes == 20


def test_a_partial_goes_on_where_it_was_closed(store: BlobStore) -> None:
    first = store.begin(SOUP, 4)
    first.append(b"so")
    first.close()
    second = store.begin(SOUP, 4)
    assert second.offset == 2
    second.append(b"up")
    assert second.finish().read_bytes() == b"soup"


def test_a_partial_longer_than_its_blob_starts_over(store: BlobStore) -> None:
    first = store.begin(SOUP)
    first.append(b"too much soup")
    first.close()
    second = store.begin(SOUP, 4)
    assert second.offset == 0
    second.close()
    third = store.begin(SOUP)
    third.append(b"too much soup")
    third.set_size(4)
    assert third.offset == 0
    third.discard()


def test_wrong_bytes_are_thrown_away_and_the_partial_may_start_again(store: BlobStore) -> None:
    partial = store.begin(SOUP, 4)
    partial.append(b"soap")
    with pytest.raises(DataError) as caught:
        partial.finish()
    assert caught.value.error_id == "data.digest-mismatch"
    assert not store.has(SOUP)
    partial.append(b"soup")
    partial.finish()
    assert store.has(SOUP)


def test_one_blob_comes_in_once_at_a_time(store: BlobStore, tmp_path: Path) -> None:
    partial = store.begin(SOUP, 4)
    with pytest.raises(Refused) as caught:
        BlobStore(tmp_path / "blobs").begin(SOUP, 4)
    assert caught.value.error_id == "refused.partial-busy"
    partial.close()
    store.begin(SOUP, 4).discard()


def test_the_hook_runs_when_the_bytes_are_there_and_the_name_is_not(store: BlobStore) -> None:
    seen: list[bool] = []
    partial = store.begin(SOUP, 4)
    partial.append(b"soup")
    partial.finish(lambda digest: seen.append(store.has(digest)))
    assert seen == [False]
    assert store.has(SOUP)


def test_the_quota_counts_whole_blobs_and_announced_ones(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "blobs", 10)
    store.put_bytes(b"soup")
    partial = store.begin(digest_bytes(b"123456"), 6)
    with pytest.raises(ResourceError) as caught:
        store.put_bytes(b"1")
    assert caught.value.error_id == "resource.quota"
    partial.close()
    store.put_bytes(b"1")
    with pytest.raises(ResourceError):
        store.begin(digest_bytes(b"1234567"), 7)
    late = store.begin(digest_bytes(b"1234567"))
    with pytest.raises(ResourceError):
        late.set_size(7)
    late.discard()
    assert store.total_bytes == 5


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("this machine does not let us mount a tmpfs")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_has_a_stable_id_and_is_empty_again_afterwards(tiny_disk: Path, tmp_path: Path) -> None:
    store = BlobStore(tiny_disk / "blobs")
    data = bytes(2_000_000)
    (tmp_path / "file").write_bytes(data)
    for move in (False, True):
        with pytest.raises(ResourceError) as caught:
            store.put_file(tmp_path / "file", move=move)
        assert caught.value.error_id == "resource.disk-full"
        assert (tmp_path / "file").exists()
    partial = store.begin(digest_bytes(data), len(data))
    with pytest.raises(ResourceError) as caught:
        partial.append(data)
    assert caught.value.error_id == "resource.disk-full"
    assert store.put_bytes(bytes(900_000))


def test_a_slow_link_gets_small_chunks_and_two_in_flight() -> None:
    slow = Window()
    for now_ms in range(0, 10_000, 262):  # 2 Mbit/s
        slow.received(window.SMALL_CHUNK, now_ms)
    assert slow.chunk_bytes == window.SMALL_CHUNK
    assert slow.limit_bytes <= 2 * window.SMALL_CHUNK


def test_a_fast_link_gets_large_chunks_and_the_cap() -> None:
    fast = Window()
    for now_ms in range(1_000):
        fast.received(window.LARGE_CHUNK, now_ms)
    assert fast.chunk_bytes == window.LARGE_CHUNK
    assert fast.limit_bytes == window.MAX_IN_FLIGHT


def test_the_window_grows_by_a_chunk_for_a_chunk_and_shrinks_with_the_rate() -> None:
    ramp = Window()
    before = ramp.limit_bytes
    for now_ms in range(4):
        ramp.received(window.SMALL_CHUNK, now_ms)
        assert ramp.limit_bytes - before <= window.SMALL_CHUNK
        before = ramp.limit_bytes
    for now_ms in range(300):
        ramp.received(window.LARGE_CHUNK, now_ms)
    high = ramp.limit_bytes
    ramp.received(window.SMALL_CHUNK, 5_000)
    assert ramp.limit_bytes == 2 * window.SMALL_CHUNK < high


def test_counters_keep_planes_and_directions_apart() -> None:
    counter = ByteCounter()
    counter.add("weights", "in", 3)
    counter.add("weights", "in", 4)
    counter.add("control", "out", 5)
    assert counter.snapshot()["weights"] == {"in": 7, "out": 0}
    assert (counter.total("in"), counter.total("out")) == (7, 5)
    assert tuple(counter.snapshot()) == PLANES
