"""Blobs when something breaks: servers killed, wires cut, stalled or lying, clients that vanish, disks that fill."""

from __future__ import annotations

import contextlib
import resource
import selectors
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import pytest

from potluck.clock import ManualClock
from potluck.errors import PotluckError, Refused
from potluck.ids import Digest, NodeId, digest_bytes, digest_file
from potluck.net.blobs.client import BlobClient
from potluck.net.blobs.curve import CurveKeys, new_curve_keys
from potluck.net.blobs.server import BlobServer
from potluck.net.blobs.store import BlobStore
from potluck.net.identity import Identity

LOOPBACK = "127.0.0.1"
WAIT_S = 20

SERVER = """
import sys
from pathlib import Path
from potluck.net.blobs.curve import CurveKeys
from potluck.net.blobs.server import BlobServer
from potluck.net.blobs.store import BlobStore
folder, port, public, secret = sys.argv[1:]
server = BlobServer(
    BlobStore(Path(folder)), host="127.0.0.1", port=int(port),
    keys=CurveKeys(public=public, secret=secret), is_allowed=lambda key: True,
)
print(server.start(), flush=True)
sys.stdin.read()
server.close()
"""


class Relay:
    """A TCP relay that can hold, cut and change what comes down from the server, or what goes up to it."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._listener = socket.create_server((LOOPBACK, 0))
        self._listener.setblocking(False)
        self.port = int(self._listener.getsockname()[1])
        self._wake, self._waker = socket.socketpair()
        self._lock = threading.Condition()
        self._hold_after: dict[str, int | None] = {"down": None, "up": None}
        self._passed = {"down": 0, "up": 0}
        self.change: Callable[[str, int, bytes], bytes] = lambda way, offset, data: data
        """Called with the way, the bytes that went before, and the data."""
        self._cut = self._stop = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def hold(self, way: str, after: int) -> None:
        """Lets `after` more bytes pass that way, then none, while the connection stays."""
        with self._lock:
            self._hold_after[way] = self._passed[way] + after

    def release(self) -> None:
        with self._lock:
            self._hold_after = {"down": None, "up": None}
        self._waker.send(b"x")

    def cut(self) -> None:
        """Closes the connections there are; new ones may come."""
        with self._lock:
            self._cut = True
        self._waker.send(b"x")

    def wait_held(self, way: str) -> None:
        with self._lock:
            assert self._lock.wait_for(lambda: self._passed[way] == self._hold_after[way], WAIT_S), self._passed

    def passed(self, way: str) -> int:
        """Bytes that have gone that way so far."""
        with self._lock:
            return self._passed[way]

    def wait_passed(self, way: str, more: int) -> None:
        """Waits until that many more bytes have gone that way."""
        with self._lock:
            goal = self._passed[way] + more
            assert self._lock.wait_for(lambda: self._passed[way] >= goal, WAIT_S), self._passed

    def close(self) -> None:
        self._stop = True
        self._waker.send(b"x")
        self._thread.join()

    def _run(self) -> None:
        peers: dict[socket.socket, tuple[socket.socket, str]] = {}
        with selectors.DefaultSelector() as selector, self._listener, self._wake, self._waker:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._wake, selectors.EVENT_READ)
            while not self._stop:
                for end, (_, way) in peers.items():
                    watched = end in selector.get_map()
                    if watched and self._room(way) == 0:
                        selector.unregister(end)
                    elif not watched and self._room(way) > 0:
                        selector.register(end, selectors.EVENT_READ)
                for key, _ in selector.select():
                    self._serve(key.fileobj, selector, peers)
                if self._cut:
                    self._cut = False
                    self._drop(list(peers), selector, peers)
            self._drop(list(peers), selector, peers)

    def _serve(self, end: Any, selector: selectors.BaseSelector, peers: dict[Any, Any]) -> None:
        if end is self._wake:
            self._wake.recv(100)
        elif end is self._listener:
            client, _ = self._listener.accept()
            try:
                server = socket.create_connection((LOOPBACK, self._target_port))
            except ConnectionRefusedError:
                client.close()
                return
            peers[client], peers[server] = (server, "up"), (client, "down")
        elif end in peers:
            other, way = peers[end]
            if self._room(way) == 0:
                return  # Held since it was looked at; to receive nothing would look like the end.
            try:
                data = end.recv(min(65_536, self._room(way)))
                if data:
                    other.sendall(self.change(way, self._passed[way], data))
            except OSError:
                data = b""
            if not data:
                self._drop([end, other], selector, peers)
                return
            with self._lock:
                self._passed[way] += len(data)
                self._lock.notify_all()

    def _room(self, way: str) -> int:
        most = self._hold_after[way]
        return 1 << 30 if most is None else most - self._passed[way]

    @staticmethod
    def _drop(ends: list[Any], selector: selectors.BaseSelector, peers: dict[Any, Any]) -> None:
        for end in ends:
            if end in selector.get_map():
                selector.unregister(end)
            peers.pop(end, None)
            end.close()


class Hall:
    """A server behind a relay."""

    def __init__(self, folder: Path, *, insecure: bool = False) -> None:
        self.folder = folder
        self.stack = contextlib.ExitStack()
        self.keys = None if insecure else new_curve_keys()
        self.store = BlobStore(folder / "hub")
        self.clock = ManualClock()
        self.server = BlobServer(self.store, host=LOOPBACK, keys=self.keys, is_allowed=lambda _: True, clock=self.clock)
        self.port = self.server.start()
        self.stack.callback(self.server.close)
        self.relay = Relay(self.port)
        self.stack.callback(self.relay.close)

    def client(self, name: str = "a", *, port: int = 0, own: CurveKeys | None = None, **options: Any) -> BlobClient:
        identity = identity_for(self.keys, port or self.relay.port, own)
        client = BlobClient(identity, BlobStore(self.folder / name), **options)
        self.stack.callback(client.close)
        return client

    def file(self, data: bytes, name: str = "file") -> tuple[Digest, Path]:
        path = self.folder / name
        path.write_bytes(data)
        return digest_bytes(data), path


@contextlib.contextmanager
def hall(folder: Path, **options: Any) -> Iterator[Hall]:
    built = Hall(folder, **options)
    with built.stack:
        yield built


def identity_for(server: CurveKeys | None, port: int, own: CurveKeys | None = None) -> Identity:
    own = own or new_curve_keys()
    return Identity(
        node_id=NodeId("n"),
        role="node",
        key_pem=b"",
        certificate_pem=b"",
        ca_pem=b"",
        curve_public=own.public,
        curve_secret=own.secret,
        curve_server_key=server.public if server else "",
        host=LOOPBACK,
        control_port=1,
        data_port=port,
        insecure=server is None,
    )


def pattern(size: int) -> bytes:
    return (b"potluck-%08d" * (size // 16 + 1) % tuple(range(size // 16 + 1)))[:size]


def error_of(future: Future[Any]) -> PotluckError:
    error = future.exception(WAIT_S)
    assert isinstance(error, PotluckError), error
    return error


@contextlib.contextmanager
def server_process(folder: Path, port: int, keys: CurveKeys) -> Iterator[tuple[subprocess.Popen[str], int]]:
    arguments = [sys.executable, "-c", SERVER, str(folder), str(port), keys.public, keys.secret]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, int(process.stdout.readline())
        finally:
            process.send_signal(signal.SIGKILL)


def test_stale_chunks_of_a_stalled_get_do_no_harm(tmp_path: Path) -> None:
    with hall(tmp_path) as house:
        data = pattern(2_000_000)
        digest = house.store.put_bytes(data)
        clock = ManualClock()
        client = house.client(clock=clock)
        house.relay.hold("down", 300_000)
        future = client.get(digest, "weights")
        house.relay.wait_held("down")
        for _ in range(2):
            clock.advance(2_500)  # beyond any patience: the client asks under a new number
            house.relay.wait_passed("up", 1)
        house.relay.release()
        assert future.result(WAIT_S).read_bytes() == data


def test_a_chunk_changed_on_the_wire_is_fetched_again_and_twice_changed_is_an_error(tmp_path: Path) -> None:
    for changes, name in [(1, "a"), (1_000_000, "b")]:
        with hall(tmp_path / name, insecure=True) as house:
            digest = house.store.put_bytes(pattern(500_000))
            house.relay.change = lying(changes)
            future = house.client().get(digest, "weights")
            if changes == 1:
                assert digest_file(future.result(WAIT_S)) == digest
            else:
                assert error_of(future).error_id == "data.digest-mismatch"


def test_a_put_chunk_changed_on_the_wire_is_asked_again_and_twice_changed_is_an_error(tmp_path: Path) -> None:
    for changes, name in [(1, "a"), (1_000_000, "b")]:
        with hall(tmp_path / name, insecure=True) as house:
            digest, path = house.file(pattern(500_000))
            house.relay.change = lying(changes, way="up")
            future = house.client().put(digest, path, "weights")
            if changes == 1:
                future.result(WAIT_S)
                assert house.store.verify(digest)
            else:
                assert error_of(future).error_id == "data.digest-mismatch"
                assert not house.store.has(digest)


def lying(times: int, way: str = "down") -> Callable[[str, int, bytes], bytes]:
    """Changes one byte of a payload, so many times: payloads, unlike headers, hold this word."""
    left = [times]

    def change(which: str, offset: int, data: bytes) -> bytes:
        place = data.find(b"potluck-", 0)
        if which != way or place < 0 or left[0] == 0:
            return data
        left[0] -= 1
        return data[:place] + b"P" + data[place + 1 :]

    return change


def test_an_upload_whose_client_vanished_is_taken_over_where_it_stood(tmp_path: Path) -> None:
    with hall(tmp_path) as house:
        digest, path = house.file(pattern(2_000_000))
        house.relay.hold("up", 1_000_000)
        gone = house.client("a")
        lost = gone.put(digest, path, "weights")
        house.relay.wait_held("up")
        gone.close()
        assert error_of(lost).error_id == "net.cancelled"
        other = house.client("b", port=house.port)
        future = other.put(digest, path, "weights")
        for _ in range(200):
            if wait([future], 0.1).done:  # what the ghost had sent may still be on its way to the server
                break
            house.clock.advance(2_000)
        assert future.result(0) == digest
        assert other.counter.snapshot()["weights"]["out"] < 1_500_000


def test_the_same_client_come_back_need_not_wait_for_its_own_ghost(tmp_path: Path) -> None:
    with hall(tmp_path) as house:
        digest, path = house.file(pattern(2_000_000))
        house.relay.hold("up", 1_000_000)
        own = new_curve_keys()
        gone = house.client("a", own=own)
        gone.put(digest, path, "weights")
        house.relay.wait_held("up")
        gone.close()
        house.client("a", port=house.port, own=own).put(digest, path, "weights").result(WAIT_S)


def test_an_abandoned_upload_gives_its_file_back(tmp_path: Path) -> None:
    with hall(tmp_path) as house:
        digest, path = house.file(pattern(2_000_000))
        house.relay.hold("up", 1_000_000)
        gone = house.client("a")
        gone.put(digest, path, "weights")
        house.relay.wait_held("up")
        gone.close()
        other = house.client("b", port=house.port)
        for number in range(100):
            house.clock.advance(61_000)
            small, small_path = house.file(b"soup%d" % number, "small")
            other.put(small, small_path, "weights").result(WAIT_S)
            try:
                house.store.begin(digest).close()
                return
            except Refused:  # what the ghost had sent is still on its way to the server
                continue
        pytest.fail("the upload is still open")


@contextlib.contextmanager
def file_size_limit(most_bytes: int) -> Iterator[None]:
    """A disk that is full from this file size on: writes beyond fail with EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_at_the_server_refuses_the_put_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with hall(tmp_path) as house:
        digest, path = house.file(pattern(2_000_000))
        client = house.client()
        with file_size_limit(1_000_000):
            assert error_of(client.put(digest, path, "weights")).error_id == "resource.disk-full"
            assert not list((tmp_path / "hub" / "partial").iterdir())
            small, small_path = house.file(b"soup", "small")
            client.put(small, small_path, "weights").result(WAIT_S)
        client.put(digest, path, "weights").result(WAIT_S)


def test_a_full_disk_at_the_client_fails_the_get_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with hall(tmp_path) as house:
        digest = house.store.put_bytes(pattern(2_000_000))
        client = house.client()
        with file_size_limit(1_000_000):
            assert error_of(client.get(digest, "weights")).error_id == "resource.disk-full"
            assert not list((tmp_path / "a" / "partial").iterdir())
        client.get(digest, "weights").result(WAIT_S)


def test_foreign_bytes_on_the_data_port_harm_nobody(tmp_path: Path) -> None:
    with hall(tmp_path) as house:
        with socket.create_connection((LOOPBACK, house.port)) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n" * 100)
        digest = house.store.put_bytes(b"soup")
        house.client().get(digest, "weights").result(WAIT_S)
