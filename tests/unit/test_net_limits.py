"""How much one peer may have coming in, and leave unclaimed, at the hub."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from potluck.clock import ManualClock
from potluck.errors import ResourceError
from potluck.ids import Digest, digest_bytes
from potluck.net.blobs import unclaimed as limits
from potluck.net.blobs import wire
from potluck.net.blobs.store import BlobStore
from potluck.net.blobs.unclaimed import Unclaimed
from potluck.net.blobs.uploads import IDLE_UPLOAD_MS, MAX_UPLOADS_OF_ONE, MAX_WAITERS, Uploads
from potluck.net.counters import ByteCounter

ONE, OTHER, ADMIN = "one", "other", "admin"
LIMIT = 1000


class Hub:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = ManualClock()
        self.store = BlobStore(folder)
        self.unclaimed = Unclaimed(LIMIT)
        self.said: list[wire.Message] = []
        self.uploads = Uploads(
            self.store,
            send=lambda _, message, __: self.said.append(message) is None,
            before_commit=lambda _: None,
            counter=ByteCounter(),
            clock=self.clock,
            unclaimed=self.unclaimed,
            is_bounded=lambda user: user != ADMIN,
        )

    def offer(self, user: str, data: bytes, *, transfer: int = 1, route: str = "") -> Digest:
        put = wire.Put(transfer=transfer, digest=digest_bytes(data), size=len(data), plane="weights")
        self.uploads.offer((route or user).encode(), user, put)
        return put.digest

    def send(self, user: str, data: bytes, *, transfer: int = 1, pieces: int = 1) -> None:
        """The next bytes of an upload that was offered: all of them, or the first of several pieces."""
        payload = data[: len(data) // pieces]
        sha256 = hashlib.sha256(payload).digest()
        chunk = wire.Chunk(transfer=transfer, offset=0, size=len(data), sha256=sha256, payload=payload)
        self.uploads.take_chunk(user.encode(), chunk, len(payload))

    def put(self, user: str, data: bytes) -> Digest:
        digest = self.offer(user, data)
        self.send(user, data)
        assert self.store.has(digest)
        return digest


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    house = Hub(tmp_path)
    yield house
    house.uploads.close()


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(ResourceError) as caught:
        call()
    return caught.value.error_id


def blob(number: int, size: int = 400) -> bytes:
    return bytes([number]) * size


def test_one_peer_has_so_many_uploads_open_and_another_still_gets_in(hub: Hub) -> None:
    for number in range(MAX_UPLOADS_OF_ONE):
        hub.offer(ONE, blob(number, 10), transfer=number)
    assert refused(lambda: hub.offer(ONE, blob(99, 10), transfer=99)) == "resource.uploads"
    hub.put(OTHER, blob(98, 10))


def test_so_many_connections_wait_for_one_blob_and_no_more(hub: Hub) -> None:
    hub.offer(ONE, blob(0))
    for number in range(MAX_WAITERS):
        hub.offer(OTHER, blob(0), route=f"r{number}")
    assert refused(lambda: hub.offer(OTHER, blob(0), route="late")) == "resource.uploads"


def test_what_a_peer_sends_and_nothing_names_is_bounded_and_a_claim_makes_room(hub: Hub) -> None:
    first = hub.put(ONE, blob(1))
    hub.put(ONE, blob(2))
    assert refused(lambda: hub.offer(ONE, blob(3))) == "resource.unclaimed"
    hub.put(OTHER, blob(4))
    hub.unclaimed.claim([first])
    hub.put(ONE, blob(3))


def test_what_is_announced_counts_before_it_has_come(hub: Hub) -> None:
    hub.offer(ONE, blob(1), transfer=1)
    hub.offer(ONE, blob(2), transfer=2)
    assert refused(lambda: hub.offer(ONE, blob(3), transfer=3)) == "resource.unclaimed"
    assert refused(lambda: hub.offer(OTHER, blob(3, LIMIT + 1))) == "resource.unclaimed"


def test_after_an_hour_an_unclaimed_blob_is_the_collectors_and_counts_no_more(hub: Hub) -> None:
    for number in (1, 2):
        hub.put(ONE, blob(number))
    hub.clock.advance(limits.WHOLE_COUNTS_MS)
    hub.uploads.sweep(hub.clock.monotonic_ms())
    assert hub.unclaimed.bytes_of(ONE) == 0
    hub.put(ONE, blob(3))


def test_pieces_that_nobody_continues_count_and_are_removed_in_the_end(hub: Hub) -> None:
    for number in range(4):
        hub.offer(ONE, blob(number), transfer=number)
        hub.send(ONE, blob(number), transfer=number, pieces=2)
        hub.uploads.forget(ONE.encode(), number)
    assert hub.unclaimed.bytes_of(ONE) == 800
    assert refused(lambda: hub.offer(ONE, blob(9))) == "resource.unclaimed"
    hub.offer(ONE, blob(0))  # what is here in part may be continued
    hub.clock.advance(limits.PIECE_KEPT_MS)
    hub.uploads.sweep(hub.clock.monotonic_ms())
    hub.uploads.sweep(hub.clock.monotonic_ms())
    left = [path.name for path in (hub.folder / "partial").iterdir()]
    assert left == [f"{digest_bytes(blob(0))}.part"]  # its sender was heard until now
    assert hub.unclaimed.bytes_of(ONE) == 200


def test_an_upload_that_falls_silent_is_let_go_and_its_piece_counts(hub: Hub) -> None:
    hub.offer(ONE, blob(1))
    hub.send(ONE, blob(1), pieces=4)
    hub.clock.advance(IDLE_UPLOAD_MS + 1)
    hub.uploads.sweep(hub.clock.monotonic_ms())
    assert hub.unclaimed.bytes_of(ONE) == 100


def test_damaged_bytes_are_removed_and_count_no_more(hub: Hub) -> None:
    hub.offer(ONE, blob(1))
    with pytest.raises(Exception, match="another digest"):
        hub.send(ONE, blob(2))
    assert hub.unclaimed.bytes_of(ONE) == 0
    assert not list((hub.folder / "partial").iterdir())


def test_an_administrators_text_is_not_bounded_and_neither_is_anybody_without_keys(hub: Hub) -> None:
    for user in (ADMIN, ""):
        for number in range(4):
            hub.put(user, blob(number + 10 * len(user)))
        assert hub.unclaimed.bytes_of(user) == 0
