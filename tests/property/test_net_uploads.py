"""Uploads and gets against a lossy, lying wire: a blob that appears is right, and a healed wire brings it through."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections import deque
from dataclasses import replace
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from potluck.clock import ManualClock
from potluck.errors import DataError
from potluck.ids import digest_bytes
from potluck.net.blobs import wire
from potluck.net.blobs.store import BlobStore
from potluck.net.blobs.transfers import GetTransfer
from potluck.net.blobs.uploads import TAKE_OVER_MS, Uploads
from potluck.net.blobs.window import SMALL_CHUNK
from potluck.net.counters import ByteCounter, Plane

DATA = bytes(range(251)) * 1_500  # six chunks
DIGEST = digest_bytes(DATA)
ROUTES = (b"one", b"two")
FATES = ("deliver", "deliver", "deliver", "drop", "twice", "damage", "renew", "forget", "pause")


def chunk_of(transfer: int, offset: int, length: int) -> wire.Chunk:
    payload = DATA[offset : offset + length]
    return wire.Chunk(
        transfer=transfer,
        offset=offset,
        size=len(DATA),
        sha256=hashlib.sha256(payload).digest(),
        payload=payload,
    )


class World:
    """Two clients that put the same blob, and the messages between them and the hub."""

    def __init__(self, folder: Path) -> None:
        self.store = BlobStore(folder)
        self.clock = ManualClock()
        self.wire: deque[tuple[bytes, wire.Message]] = deque()
        self.done: set[bytes] = set()
        self.numbers = dict.fromkeys(ROUTES, 0)
        self.renamed = 0
        self.uploads = Uploads(
            self.store, send=self.down, before_commit=self.count, counter=ByteCounter(), clock=self.clock
        )

    def count(self, _: object) -> None:
        self.renamed += 1

    def down(self, route: bytes, message: wire.Message, _: Plane) -> bool:
        self.wire.append((route, message))
        return True

    def renew(self, route: bytes) -> None:
        """The client's timer fires: it offers again under a new number."""
        self.numbers[route] += 1
        self.up(route, wire.Put(transfer=self.numbers[route], digest=DIGEST, size=len(DATA), plane="weights"))

    def up(self, route: bytes, message: wire.Message) -> None:
        with contextlib.suppress(DataError):  # damaged twice; nothing else is to be refused here
            if isinstance(message, wire.Put):
                self.uploads.offer(route, "", message)
            elif isinstance(message, wire.Chunk):
                self.uploads.take_chunk(route, message, len(message.payload))

    def step(self, fate: str) -> None:
        route, message = self.wire.popleft() if self.wire else (ROUTES[self.clock.now_ms % 2], None)
        if fate == "renew":
            self.renew(route)
        elif fate == "forget":
            self.uploads.forget(route, self.numbers[route])
        elif fate == "pause":
            self.clock.advance(700)
            self.uploads.sweep(self.clock.monotonic_ms())
        elif isinstance(message, wire.Done):
            if fate != "drop" and message.transfer == self.numbers[route]:
                self.done.add(route)
        elif isinstance(message, wire.Want) and fate != "drop":
            chunk = chunk_of(self.numbers[route], message.offset, message.length)
            if fate == "damage":
                chunk = replace(chunk, payload=b"\xff" + bytes(chunk.payload)[1:])
            for _ in range(2 if fate == "twice" else 1):
                self.up(route, chunk)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(FATES), max_size=60))
def test_whatever_the_wire_does_each_client_hears_done_once_it_heals_and_the_blob_is_right(fates: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        for route in ROUTES:
            world.renew(route)
        for fate in fates:
            world.step(fate)
            assert not world.store.has(DIGEST) or world.store.verify(DIGEST)
            assert all(DATA.startswith(part.read_bytes()) for part in (Path(folder) / "partial").iterdir())
        for _ in range(4):
            for route in ROUTES:
                if route not in world.done:
                    world.clock.advance(TAKE_OVER_MS)
                    world.renew(route)
            while world.wire:
                world.step("deliver")
        assert world.done == set(ROUTES)
        assert world.store.verify(DIGEST)
        assert world.renamed == 1
        assert not list((Path(folder) / "partial").iterdir())
        world.uploads.close()


def test_one_damaged_piece_is_asked_for_again_without_the_clients_timer_and_who_waited_hears_done(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    for route in ROUTES:
        world.renew(route)
    world.step("damage")
    while world.wire:
        world.step("deliver")
    assert world.done == set(ROUTES)
    assert world.numbers == dict.fromkeys(ROUTES, 1)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["deliver", "deliver", "drop", "twice", "last", "damage", "renew"]), max_size=40))
def test_a_get_takes_chunks_in_any_order_and_ends_with_the_blob_or_with_two_damages(fates: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        transfer = GetTransfer(digest=DIGEST, plane="weights", store=BlobStore(Path(folder)))
        transfer.open()
        transfer.number = 1
        asked: deque[wire.Get] = deque()
        for fate in [*fates, "renew", *["deliver"] * 20]:
            while transfer.wants_more and transfer.in_flight < 3 * SMALL_CHUNK:
                asked.append(transfer.ask(SMALL_CHUNK, 0))
            if fate == "renew":
                asked.clear()
                transfer.ask_again()
            if not asked or fate in ("drop", "renew"):
                if asked:
                    asked.popleft()
                continue
            get = asked.pop() if fate == "last" else asked.popleft()
            chunk = chunk_of(get.transfer, get.offset, get.length)
            if fate == "damage":
                chunk = replace(chunk, payload=b"\xff" + bytes(chunk.payload)[1:])
            for _ in range(2 if fate == "twice" else 1):
                if not transfer.accept(chunk):
                    asked.clear()
                    transfer.ask_again()
            if transfer.damages > 1 or transfer.complete:
                break
        if transfer.complete:
            path = transfer.finish()
            assert path is not None
            assert path.read_bytes() == DATA
        else:
            assert transfer.damages > 1
        transfer.close()
