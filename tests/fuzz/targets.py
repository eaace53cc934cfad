"""Every reader of bytes that a stranger, or a peer that has joined, can send: one function each.

A target takes any bytes. It passes if they give a value, or an error of `potluck.errors` with a stable id that is not a
mistake of ours; everything else is a finding. `tests/property/test_fuzz_*.py` and `python -m tests.fuzz` share them.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from google.protobuf.message import DecodeError, Message

from coordinator import wire as coordinator_wire
from coordinator.corpus import corpus_facts_json
from coordinator.mixtures import completed, from_traffic, read_labels, read_mixture
from expert_node import fetch, frames
from expert_node import wire as node_wire
from expert_node.values import parse_profile, parse_segments
from potluck.choices import items_text, read_items
from potluck.config import load_toml
from potluck.errors import PotluckError
from potluck.ids import NodeId, digest_bytes
from potluck.lm.checkpoint import CheckpointManifest
from potluck.lm.config import ModelConfig
from potluck.net.blobs import wire as data_wire
from potluck.net.blobs.store import BlobStore
from potluck.net.join import JoinString
from potluck.recipe import Recipe
from potluck.soup_names import parse_soup_name
from potluck.specs.run import parse_run_file, spec_from_json
from potluck.v1 import node_pb2
from router.view import View
from sampling.embed_sentence import read_encoder_manifest, unpack_encoder_folder
from sampling.partition import read_partition
from sampling.records import read_records
from sampling.records_folders import list_files

Target = Callable[[bytes], None]
STABLE_ID = re.compile(r"[a-z]+(\.[a-z0-9]+(-[a-z0-9]+)*)+")
NODE = NodeId("n1-fuzz")
TINY = ModelConfig(vocab=16, hidden=4, layers=1, heads=1, ffn=8, context=5)


def survives(read: Callable[[], object]) -> None:
    """Runs a reader; an error that says what is wrong with the input is as good as a value."""
    error_id = "ours.none"
    try:
        read()
    except PotluckError as error:
        error_id = error.error_id
    assert STABLE_ID.fullmatch(error_id), error_id
    assert not error_id.startswith("bug."), error_id


def _with_file(read: Callable[[Path], object]) -> Target:
    def target(data: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "blob"
            path.write_bytes(data)
            survives(lambda: read(path))

    return target


def _with_store(read: Callable[[BlobStore, str], object]) -> Target:
    """Puts the bytes into a store and gives it with their digest."""

    def target(data: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            store, digest = BlobStore(Path(folder)), digest_bytes(data)
            place = Path(folder) / digest[:2] / digest
            place.parent.mkdir()
            place.write_bytes(data)  # as `put_bytes` would, without waiting for the disk
            survives(lambda: read(store, digest))

    return target


def _with_text(read: Callable[[str], object], errors: str = "replace") -> Target:
    """Text of a protobuf message is sound UTF-8; that of a command line may hold halves of surrogate pairs."""

    def target(data: bytes) -> None:
        text = data.decode("utf-8", errors)
        survives(lambda: read(text))

    return target


def _with_message(make: Callable[[], Message], read: Callable[[Message], object]) -> Target:
    def target(data: bytes) -> None:
        message = make()
        try:
            message.ParseFromString(data)
        except DecodeError:
            return  # gRPC refuses it before anybody of ours sees it
        survives(lambda: read(message))

    return target


def _data_plane(data: bytes) -> None:
    """The codec's own contract: a message, or a ValueError that the server logs and drops."""
    header, _, payload = data.partition(b"\xc1")  # a byte that msgpack never uses
    for parts in ([header], [header, payload], [data]):
        try:
            message = data_wire.decode(parts)
        except ValueError:
            continue
        assert data_wire.decode(data_wire.encode(message)) == message


def _frame(data: bytes) -> None:
    try:
        assert isinstance(frames.decode(data), dict)
    except ValueError:
        pass


def _text_file(suffix: str) -> Target:
    """What a person gives as text is read to its end, as `ingest` reads it."""

    def read(path: Path) -> None:
        named = path.rename(path.with_suffix(suffix))
        files, _ = list_files(named)
        for record in read_records(named, files):
            assert record.text.strip()

    return _with_file(read)


def _soup_name(text: str) -> None:
    soup = parse_soup_name(text)
    assert parse_soup_name(str(soup)) == soup
    survives(lambda: soup.shares(("code:c", "law = 2", "news")))


def _tokens(path: Path) -> None:
    manifest = fetch.read_manifest(path)
    survives(lambda: fetch.listed_blobs(manifest))
    survives(lambda: fetch.train_rows(manifest))


def _labels(store: BlobStore, digest: str) -> None:
    labels = read_labels(digest, store)  # type: ignore[arg-type]
    survives(lambda: completed({labels.domains[0]: 1.0}, labels, others_zero=True))
    survives(lambda: from_traffic({labels.domains[0]: 100}, labels, prior_requests=None))


def _encoder(path: Path) -> None:
    class Blobs:
        def path(self, _: str) -> Path:
            return path

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "encoder"
        unpack_encoder_folder(read_encoder_manifest(path), Blobs(), folder)
        assert set(Path(scratch).iterdir()) <= {folder}


def _weights(path: Path) -> None:
    from potluck.lm.model import load_decoder

    load_decoder(TINY, path)


def _optimizer(path: Path) -> None:
    from potluck.lm.model import init_decoder
    from potluck.lm.optim.build import build_optimizer
    from potluck.lm.tensors import load_tensors
    from potluck.recipe import AdamWConfig

    model = init_decoder(TINY, seed=0)
    build_optimizer(dict(model.named_parameters()), AdamWConfig(), 10).load_state_tensors(load_tensors(path), step=1)


def _lsi(path: Path) -> None:
    from sampling.embed import load_encoder

    load_encoder(path)


def _tree(path: Path) -> None:
    from sampling.cluster_tree import Tree

    Tree.load(path)


def _array(path: Path) -> None:
    from sampling.taskio import load_array

    load_array(path)


def _tokenizer(path: Path) -> None:
    from sampling.bpe import load_tokenizer

    load_tokenizer(path)


def _questions(path: Path) -> None:
    with path.open("rb") as lines:
        items_text(read_items(lines, path.name))


TEXTS: Mapping[str, Target] = {
    "join-string": _with_text(JoinString.parse, "surrogateescape"),
    "spec-file": _with_file(lambda path: parse_run_file(load_toml(path))),
    "run-spec": _with_text(lambda text: spec_from_json(text).resolved().to_json()),
    "recipe": _with_text(lambda text: Recipe.from_json(text).id),
    "segments": _with_text(lambda text: [one.digest for one in parse_segments(text)]),
    "profile": _with_text(parse_profile),
    "checkpoint": _with_text(lambda text: CheckpointManifest.from_json(text).digest),
    "figures": _with_text(coordinator_wire.figures),
    "view": _with_text(lambda text: View.from_json(text).to_json()),
    "soup-view": _with_text(lambda text: View.from_json(text).to_json()),
    "soup-name": _with_text(_soup_name, "surrogateescape"),
    "mixture": _with_store(lambda store, digest: read_mixture(digest, store)),  # type: ignore[arg-type]
    "labels": _with_store(_labels),
    "partition": _with_file(lambda path: read_partition(path).to_json()),
    "corpus": _with_store(lambda store, digest: corpus_facts_json(digest, store)),  # type: ignore[arg-type]
    "tokens": _with_file(_tokens),
    "encoder-manifest": _with_file(_encoder),
    "tokenizer": _with_file(_tokenizer),
    "questions": _with_file(_questions),
}
"""Text: JSON, TOML, join strings."""

BINARIES: Mapping[str, Target] = {
    "data-plane": _data_plane,
    "worker-frame": _frame,
    "weights": _with_file(_weights),
    "optimizer": _with_file(_optimizer),
    "lsi-encoder": _with_file(_lsi),
    "tree": _with_file(_tree),
    "array": _with_file(_array),
    "parquet": _text_file(".parquet"),
    "arrow": _text_file(".arrow"),
    "gzip": _text_file(".jsonl.gz"),
    "zstd": _text_file(".jsonl.zst"),
}

MESSAGES: Mapping[str, Target] = {
    "acquire-lease": _with_message(
        node_pb2.AcquireLeaseRequest, lambda message: coordinator_wire.lease_requested(message, NODE, 0)
    ),
    "return-lease": _with_message(
        node_pb2.ReturnLeaseRequest, lambda message: coordinator_wire.lease_returned(message, NODE, 0)
    ),
    "commit": _with_message(
        node_pb2.CommitRequest, lambda message: coordinator_wire.checkpoint_committed(message, NODE, 0)
    ),
    "complete-task": _with_message(
        node_pb2.CompleteTaskRequest, lambda message: coordinator_wire.task_completed(message, NODE, 0)
    ),
    "session-hello": _with_message(
        node_pb2.SessionHello, lambda message: coordinator_wire.session_opened(message, NODE, "router", 0)
    ),
    "heartbeat": _with_message(
        node_pb2.Heartbeat, lambda message: coordinator_wire.heartbeat_received(message, NODE, 0)
    ),
    "serving": _with_message(
        node_pb2.ServingState, lambda message: coordinator_wire.serving_reported(message, NODE, 0)
    ),
    "lease": _with_message(node_pb2.Lease, node_wire.lease_of),
    "grant": _with_message(node_pb2.AcquireLeaseResponse, lambda message: node_wire.grant_of(1, message)),
}
"""Protobuf messages, through the functions that turn them into events."""

TARGETS: Mapping[str, Target] = {**TEXTS, **BINARIES, **MESSAGES}
