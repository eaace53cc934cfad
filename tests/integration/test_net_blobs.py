"""Blobs between a real server and real clients over ZeroMQ on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from potluck.errors import DataError, NotReachable, PotluckError, Refused, ResourceError, UsageError
from potluck.ids import Digest, NodeId, digest_bytes, digest_file
from potluck.net.blobs.client import BlobClient
from potluck.net.blobs.curve import CurveKeys, new_curve_keys
from potluck.net.blobs.server import BlobServer
from potluck.net.blobs.store import BlobStore
from potluck.net.counters import ByteCounter
from potluck.net.identity import Identity

LOOPBACK = "127.0.0.1"
WAIT_S = 20


def some_bytes(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


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


class Hub:
    """A server, its store, and clients with stores of their own."""

    def __init__(self, folder: Path, *, quota_bytes: int | None = None, insecure: bool = False) -> None:
        self.folder = folder
        self.store = BlobStore(folder / "hub", quota_bytes)
        self.keys = None if insecure else new_curve_keys()
        self.allowed: set[str] = set()
        self.putters: set[str] | None = None
        self.counter = ByteCounter()
        self.committed: list[Digest] = []
        self.damaged: list[Digest] = []
        self.port = 0
        self.stack = contextlib.ExitStack()

    def serve(self) -> BlobServer:
        server = BlobServer(
            self.store,
            host=LOOPBACK,
            port=self.port,
            keys=self.keys,
            is_allowed=lambda key: key in self.allowed,
            may_put=lambda key: self.putters is None or key in self.putters,
            before_commit=self.committed.append,
            on_damaged=self.damaged.append,
            counter=self.counter,
        )
        self.port = server.start()
        self.stack.callback(server.close)
        return server

    def client(self, name: str = "a", *, allowed: bool = True, **options: Any) -> BlobClient:
        own = new_curve_keys()
        if allowed:
            self.allowed.add(own.public)
        store = BlobStore(self.folder / name, options.pop("quota_bytes", None))
        identity = options.pop("identity", None) or identity_for(self.keys, self.port, own)
        client = BlobClient(identity, store, **options)
        self.stack.callback(client.close)
        return client

    def file(self, data: bytes, name: str = "file") -> tuple[Digest, Path]:
        path = self.folder / name
        path.write_bytes(data)
        return digest_bytes(data), path


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    house = Hub(tmp_path)
    house.serve()
    with house.stack:
        yield house


def error_of(future: Future[Any]) -> PotluckError:
    error = future.exception(WAIT_S)
    assert isinstance(error, PotluckError), error
    return error


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, 3_000_001])
@pytest.mark.parametrize("insecure", [False, True])
def test_what_one_client_puts_another_gets(tmp_path: Path, size: int, insecure: bool) -> None:
    house = Hub(tmp_path, insecure=insecure)
    house.serve()
    with house.stack:
        digest, path = house.file(some_bytes(size))
        assert house.client("a").put(digest, path, "weights").result(WAIT_S) == digest
        assert house.committed == [digest]
        got = house.client("b").get(digest, "weights").result(WAIT_S)
        assert digest_file(got) == digest
        assert got == tmp_path / "b" / digest[:2] / digest


def test_bytes_are_counted_by_plane_at_both_ends_alike(hub: Hub) -> None:
    counter = ByteCounter()
    client = hub.client(counter=counter)
    digest, path = hub.file(some_bytes(500_000))
    client.put(digest, path, "scores").result(WAIT_S)
    other = ByteCounter()
    hub.client("b", counter=other).get(digest, "corpus").result(WAIT_S)
    scores, corpus = counter.snapshot()["scores"], other.snapshot()["corpus"]
    assert 500_000 < scores["out"] < 505_000
    assert 500_000 < corpus["in"] < 505_000
    served = hub.counter.snapshot()
    assert served["scores"] == {"in": scores["out"], "out": scores["in"]}
    assert served["corpus"] == {"in": corpus["out"], "out": corpus["in"]}
    assert served["weights"] == {"in": 0, "out": 0}


def test_a_blob_that_is_there_moves_nothing(hub: Hub) -> None:
    data = some_bytes(400_000)
    digest, path = hub.file(data)
    hub.store.put_bytes(data)
    client = hub.client()
    client.put(digest, path, "weights").result(WAIT_S)
    assert hub.counter.snapshot()["weights"]["in"] < 500
    client.get(digest, "weights").result(WAIT_S)
    before = hub.counter.total("out")
    client.get(digest, "weights").result(WAIT_S)
    assert hub.counter.total("out") == before


def test_many_gets_and_puts_of_many_clients_run_side_by_side(hub: Hub) -> None:
    kept = [hub.store.put_bytes(some_bytes(200_000, seed)) for seed in range(6)]
    waiting: list[Future[Any]] = []
    for number in range(3):
        client = hub.client(f"c{number}")
        waiting += [client.get(digest, "corpus") for digest in kept]
        for seed in range(4):
            digest, path = hub.file(some_bytes(150_000 + seed, 100 * number + seed), f"{number}-{seed}")
            waiting.append(client.put(digest, path, "weights"))
    for future in waiting:
        future.result(WAIT_S)
    assert len(hub.committed) == 12


def test_two_clients_that_put_the_same_blob_both_hear_done(hub: Hub) -> None:
    digest, path = hub.file(some_bytes(4_000_000))
    futures = [hub.client(name).put(digest, path, "weights") for name in "ab"]
    assert [future.result(WAIT_S) for future in futures] == [digest, digest]
    assert hub.committed == [digest]


def test_two_gets_of_one_blob_in_one_client_fetch_it_once(hub: Hub) -> None:
    digest = hub.store.put_bytes(some_bytes(1_000_000))
    client = hub.client()
    first, second = client.get(digest, "weights"), client.get(digest, "weights")
    assert first.result(WAIT_S) == second.result(WAIT_S)
    assert hub.counter.snapshot()["weights"]["out"] < 1_100_000


def test_asyncio_waits_without_blocking(hub: Hub) -> None:
    digest = hub.store.put_bytes(b"soup")
    client = hub.client()

    async def story() -> bytes:
        path = await asyncio.wrap_future(client.get(digest, "weights"))
        return path.read_bytes()

    assert asyncio.run(story()) == b"soup"


def test_a_missing_blob_is_said_so(hub: Hub) -> None:
    error = error_of(hub.client().get(digest_bytes(b"never"), "weights"))
    assert isinstance(error, DataError)
    assert error.error_id == "data.missing-blob"


def test_a_missing_file_fails_its_put_and_no_other(hub: Hub) -> None:
    client = hub.client()
    assert error_of(client.put(digest_bytes(b"x"), hub.folder / "none", "weights")).error_id == "resource.file"
    digest, path = hub.file(b"there")
    client.put(digest, path, "weights").result(WAIT_S)


def test_a_key_not_on_the_list_is_refused_at_once_and_let_in_later(hub: Hub) -> None:
    own = new_curve_keys()
    client = hub.client(allowed=False, identity=identity_for(hub.keys, hub.port, own))
    digest = hub.store.put_bytes(b"soup")
    error = error_of(client.get(digest, "weights"))
    assert isinstance(error, Refused)
    assert error.error_id == "refused.data-key"
    hub.allowed.add(own.public)
    assert client.get(digest, "weights").result(WAIT_S).read_bytes() == b"soup"


def test_a_key_put_out_is_refused_on_its_open_connection(hub: Hub) -> None:
    client = hub.client()
    first, second = hub.store.put_bytes(b"one"), hub.store.put_bytes(b"two")
    client.get(first, "weights").result(WAIT_S)
    hub.allowed.clear()
    assert error_of(client.get(second, "weights")).error_id == "refused.data-key"


def test_another_server_key_than_at_the_join_is_noticed(hub: Hub) -> None:
    client = hub.client(identity=identity_for(new_curve_keys(), hub.port), give_up_after_ms=500)
    error = error_of(client.get(digest_bytes(b"x"), "weights"))
    assert isinstance(error, NotReachable)
    assert error.error_id == "net.data-handshake"


def test_one_who_may_not_put_may_still_get(hub: Hub) -> None:
    hub.putters = set()
    client = hub.client()
    digest, path = hub.file(b"mine")
    assert error_of(client.put(digest, path, "weights")).error_id == "refused.may-not-put"
    assert client.get(hub.store.put_bytes(b"soup"), "weights").result(WAIT_S)


def test_a_put_beyond_the_quota_is_refused_before_a_byte_moves(tmp_path: Path) -> None:
    house = Hub(tmp_path, quota_bytes=100_000)
    house.serve()
    with house.stack:
        digest, path = house.file(some_bytes(100_001))
        error = error_of(house.client().put(digest, path, "weights"))
        assert isinstance(error, ResourceError)
        assert error.error_id == "resource.quota"
        assert "--quota-bytes" in error.fix
        assert house.counter.total("in") < 500
        digest, path = house.file(some_bytes(100_000))
        house.client("b").put(digest, path, "weights").result(WAIT_S)


def test_a_get_beyond_the_own_quota_fails(hub: Hub) -> None:
    digest = hub.store.put_bytes(some_bytes(200_000))
    assert error_of(hub.client(quota_bytes=100_000).get(digest, "weights")).error_id == "resource.quota"


def test_a_get_goes_on_from_its_offset_when_the_server_comes_back(hub: Hub) -> None:
    data = some_bytes(2_000_000)
    digest = hub.store.put_bytes(data)
    partial = BlobStore(hub.folder / "a").begin(digest)
    partial.append(data[:1_900_000])
    partial.close()
    hub.client().get(digest, "weights").result(WAIT_S)
    assert 100_000 <= hub.counter.snapshot()["weights"]["out"] < 110_000


def test_a_put_goes_on_from_its_offset(hub: Hub) -> None:
    data = some_bytes(2_000_000)
    digest, path = hub.file(data)
    partial = hub.store.begin(digest, len(data))
    partial.append(data[:1_900_000])
    partial.close()
    hub.client().put(digest, path, "weights").result(WAIT_S)
    assert 100_000 <= hub.counter.snapshot()["weights"]["in"] < 110_000


def test_damaged_bytes_of_an_earlier_get_are_thrown_away_and_fetched_again(hub: Hub) -> None:
    data = some_bytes(300_000)
    digest = hub.store.put_bytes(data)
    partial = BlobStore(hub.folder / "a").begin(digest)
    partial.append(b"?" * 200_000)
    partial.close()
    assert digest_file(hub.client().get(digest, "weights").result(WAIT_S)) == digest


def test_a_blob_damaged_at_the_server_is_fetched_twice_then_refused_and_removed_there(hub: Hub) -> None:
    digest = hub.store.put_bytes(some_bytes(300_000))
    hub.store.path(digest).write_bytes(some_bytes(300_000, 1))
    client = hub.client()
    error = error_of(client.get(digest, "weights"))
    assert isinstance(error, DataError)
    assert error.error_id == "data.digest-mismatch"
    assert 600_000 < hub.counter.snapshot()["weights"]["out"] < 610_000
    data = some_bytes(300_000)
    # The server works in order, so its answer to a put comes after it has looked at the damaged copy.
    client.put(digest, hub.file(data)[1], "weights").result(WAIT_S)
    assert hub.damaged == [digest]
    assert hub.store.verify(digest)
    assert client.get(digest, "weights").result(WAIT_S).read_bytes() == data


def test_a_put_whose_file_is_another_blob_is_tried_twice_then_refused(hub: Hub) -> None:
    _, path = hub.file(some_bytes(300_000))
    error = error_of(hub.client().put(digest_bytes(b"other"), path, "weights"))
    assert error.error_id == "data.digest-mismatch"
    assert 600_000 < hub.counter.snapshot()["weights"]["in"] < 610_000
    assert not hub.committed


def test_a_crash_before_the_rename_leaves_no_blob(hub: Hub) -> None:
    seen = []
    digest, path = hub.file(some_bytes(100_000))
    partial = hub.store.begin(digest, 100_000)
    partial.append(path.read_bytes())

    def die(which: Digest) -> None:
        seen.append(which)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        partial.finish(die)
    assert seen == [digest]
    assert not hub.store.has(digest)
    partial.close()
    hub.client().put(digest, path, "weights").result(WAIT_S)
    assert hub.counter.total("in") < 500


def test_silence_without_end_is_net_no_progress(hub: Hub) -> None:
    client = hub.client(identity=identity_for(hub.keys, 1), give_up_after_ms=300)
    error = error_of(client.get(digest_bytes(b"x"), "weights"))
    assert isinstance(error, NotReachable)
    assert error.error_id == "net.no-progress"


def test_a_cancelled_get_ends_and_another_waiter_still_gets_the_blob(hub: Hub) -> None:
    digest = hub.store.put_bytes(some_bytes(2_000_000))
    client = hub.client()
    first, second = client.get(digest, "weights"), client.get(digest, "weights")
    first.cancel()
    assert digest_file(second.result(WAIT_S)) == digest


def test_closing_the_client_cancels_what_is_under_way(hub: Hub) -> None:
    client = hub.client(identity=identity_for(hub.keys, 1))
    future = client.get(digest_bytes(b"x"), "weights")
    client.close()
    assert error_of(future).error_id == "net.cancelled"
    assert error_of(client.get(digest_bytes(b"x"), "weights")).error_id == "net.cancelled"
    assert not any(thread.name == "blob-client" for thread in threading.enumerate())


def test_a_taken_port_is_said_so(hub: Hub) -> None:
    second = BlobServer(hub.store, host=LOOPBACK, port=hub.port, keys=hub.keys)
    with pytest.raises(ResourceError) as caught:
        second.start()
    assert caught.value.error_id == "resource.port-taken"


@pytest.mark.parametrize("host", ["localhost", "::1", "0.0.0.0"])
def test_a_server_listens_where_it_is_told(hub: Hub, host: str) -> None:
    keys = new_curve_keys()
    digest = hub.store.put_bytes(b"soup")
    if host == "::1":
        try:
            socket.create_server((host, 0), family=socket.AF_INET6).close()
        except OSError as error:
            pytest.skip(f"no IPv6 here: {error}")
    target = {"0.0.0.0": "127.0.0.1", "localhost": "localhost", "::1": "[::1]"}[host]
    with BlobServer(hub.store, host=host, keys=keys, is_allowed=lambda _: True) as server:
        client = hub.client(identity=identity_for(keys, server.port), target=f"{target}:{server.port}")
        assert client.get(digest, "weights").result(WAIT_S).read_bytes() == b"soup"


def test_without_keys_only_loopback_is_served(hub: Hub) -> None:
    with pytest.raises(UsageError) as caught:
        BlobServer(hub.store, host="0.0.0.0", keys=None)
    assert caught.value.error_id == "usage.insecure-not-loopback"


def test_hashes_agree_with_hashlib(hub: Hub) -> None:
    data = some_bytes(10)
    assert hub.store.put_bytes(data) == hashlib.sha256(data).hexdigest()
