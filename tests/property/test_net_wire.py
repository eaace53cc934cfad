"""The data plane's codec, join strings and the store, under arbitrary input."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potluck.errors import DataError, JoinError
from potluck.ids import Digest, digest_bytes
from potluck.net.address import join_host_port, split_host_port
from potluck.net.blobs import wire
from potluck.net.blobs.store import BlobStore
from potluck.net.blobs.window import MAX_IN_FLIGHT, SMALL_CHUNK, Window
from potluck.net.counters import DATA_PLANES
from potluck.net.join import JoinString

numbers = st.integers(0, wire.MAX_SIZE_BYTES)
digests = st.binary(max_size=8).map(digest_bytes)
planes = st.sampled_from(DATA_PLANES)
messages = st.one_of(
    st.builds(wire.Get, transfer=numbers, digest=digests, offset=numbers, length=numbers, plane=planes),
    st.builds(wire.Put, transfer=numbers, digest=digests, size=numbers, plane=planes),
    st.builds(
        wire.Chunk,
        transfer=numbers,
        offset=numbers,
        size=numbers,
        sha256=st.binary(min_size=32, max_size=32),
        payload=st.binary(max_size=100),
    ),
    st.builds(wire.Want, transfer=numbers, offset=numbers, length=numbers),
    st.builds(wire.Done, transfer=numbers),
    st.builds(wire.Wait, transfer=numbers),
    st.builds(
        wire.No, transfer=numbers, error_id=st.text(max_size=9), message=st.text(max_size=9), fix=st.text(max_size=9)
    ),
    st.builds(wire.Forget, transfer=numbers),
    st.builds(wire.Doubt, transfer=numbers, digest=digests),
)


@given(messages)
def test_a_message_comes_back_as_it_was(message: wire.Message) -> None:
    assert wire.decode(wire.encode(message)) == message


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=5) | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@given(st.lists(st.binary(max_size=200) | plain.map(msgpack.packb), max_size=3))
def test_foreign_bytes_are_a_value_error_and_nothing_else(frames: list[bytes]) -> None:
    with pytest.raises(ValueError):
        wire.decode(frames)


@given(messages, st.data())
def test_a_message_with_one_field_bent_is_refused(message: wire.Message, data: st.DataObject) -> None:
    header, *rest = wire.encode(message)
    fields = msgpack.unpackb(header)
    name = data.draw(st.sampled_from(sorted(fields)))
    bent = data.draw(st.sampled_from([None, -1, True, 1.5, [], {}]))
    with pytest.raises(ValueError):
        wire.decode([msgpack.packb({**fields, name: bent}), *rest])
    with pytest.raises(ValueError):
        wire.decode([msgpack.packb({k: v for k, v in fields.items() if k != name}), *rest])


hosts = st.sampled_from(["10.1.2.3", "kitchen.example.org", "localhost", "::1", "fe80::1%eth0", "2001:db8::7"])


@given(hosts, st.integers(1, 65_535), st.binary(max_size=3), st.from_regex(r"[A-Za-z0-9_-]{8,40}", fullmatch=True))
def test_a_join_string_comes_back_as_it_was(host: str, port: int, seed: bytes, token: str) -> None:
    string = JoinString(host=host, port=port, fingerprint=digest_bytes(seed), token=token)
    assert JoinString.parse(f"  {string.format()}\n") == string
    assert split_host_port(join_host_port(host, port)) == (host, port)


@given(st.text(max_size=60) | st.text(max_size=60).map("potluck1:".__add__))
def test_any_text_is_a_join_string_or_a_join_error(text: str) -> None:
    with contextlib.suppress(JoinError):
        assert JoinString.parse(text).format() == text.strip()


@given(st.lists(st.tuples(st.integers(0, 3_000), st.integers(1, 512 << 10)), max_size=60))
def test_a_window_always_lets_two_chunks_through_and_never_more_than_the_cap(steps: list[tuple[int, int]]) -> None:
    window, now_ms = Window(), 0
    for pause_ms, num_bytes in steps:
        now_ms += pause_ms
        window.received(num_bytes, now_ms)
        assert 2 * SMALL_CHUNK <= 2 * window.chunk_bytes <= window.limit_bytes <= MAX_IN_FLIGHT


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.binary(min_size=1, max_size=20), st.booleans()), max_size=12), st.booleans())
def test_a_partial_of_any_pieces_and_any_interruptions_is_the_blob_or_nothing(
    pieces: list[tuple[bytes, bool]], spoil: bool
) -> None:
    data = b"".join(piece for piece, _ in pieces)
    digest = Digest(digest_bytes(data))
    with tempfile.TemporaryDirectory() as folder:
        store = BlobStore(Path(folder))
        partial = store.begin(digest, len(data))
        for piece, interrupted in pieces:
            partial.append(piece)
            if interrupted:
                partial.close()
                partial = BlobStore(Path(folder)).begin(digest, len(data))
        if spoil and data:
            partial.append(b"!")
            with pytest.raises(DataError):
                partial.finish()
            assert not store.has(digest)
            partial.discard()
        else:
            assert partial.offset == len(data)
            assert partial.finish().read_bytes() == data
            assert store.verify(digest)
