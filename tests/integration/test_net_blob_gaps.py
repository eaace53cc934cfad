"""A chunk that is lost while others come: what is behind it is of no use."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import zmq

from potluck.clock import ManualClock
from potluck.ids import digest_bytes, digest_file
from potluck.net.blobs import wire
from potluck.net.blobs.client import BlobClient
from potluck.net.blobs.store import BlobStore
from potluck.net.blobs.window import SMALL_CHUNK
from tests.integration.test_net_blobs import LOOPBACK, WAIT_S, identity_for, some_bytes

SIZE = 8_000_000
LOST = 4 * SMALL_CHUNK
"""Offset of the chunk that is lost the first time."""


class LossyHub:
    """Answers as a hub does, but for one chunk."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._lost = False
        self.asks: list[wire.Get] = []
        self._context = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.linger = 0
        self.port = self._router.bind_to_random_port(f"tcp://{LOOPBACK}")
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._stopped.set()
        self._thread.join()
        self._context.destroy(linger=0)

    def _serve(self) -> None:
        while not self._stopped.is_set():
            if not self._router.poll(50):
                continue
            route, *frames = self._router.recv_multipart()
            ask = wire.decode(frames)
            assert isinstance(ask, wire.Get)
            self.asks.append(ask)
            if ask.offset == LOST and not self._lost:
                self._lost = True
                continue
            payload = self._data[ask.offset : ask.offset + ask.length]
            chunk = wire.Chunk(
                transfer=ask.transfer,
                offset=ask.offset,
                size=len(self._data),
                sha256=hashlib.sha256(payload).digest(),
                payload=payload,
            )
            self._router.send_multipart([route, *wire.encode(chunk)])


def test_a_get_goes_on_at_a_lost_chunk_as_soon_as_one_behind_it_comes(tmp_path: Path) -> None:
    """The clock stands still: no silence ever tells of the loss."""
    data = some_bytes(SIZE)
    hub = LossyHub(data)
    try:
        with BlobClient(identity_for(None, hub.port), BlobStore(tmp_path), clock=ManualClock()) as client:
            path = client.get(digest_bytes(data), "weights").result(WAIT_S)
    finally:
        hub.close()
    assert digest_file(path) == digest_bytes(data)
    assert [ask.offset for ask in hub.asks].count(LOST) == 2, "asked for again, once"
    assert next(ask for ask in hub.asks if ask.transfer != hub.asks[0].transfer).offset == LOST
