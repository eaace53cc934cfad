"""One sound input for each target of text and of arrays: what hostile ones are bent from."""

from __future__ import annotations

import gzip
import io
import json
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from potluck.ids import digest_bytes
from potluck.net.blobs import wire
from potluck.v1 import common_pb2, node_pb2
from tests.fuzz.targets import TINY

D = [digest_bytes(bytes([number])) for number in range(6)]
MODEL = {"vocab": 16, "hidden": 4, "layers": 1, "heads": 1, "ffn": 8, "context": 5}
PROFILE = {"device": "cpu", "dtype": "float32", "threads": 1, "compile": False}
JSON: Mapping[str, Any] = {
    "run-spec": {
        "method": "crisp",
        "corpus": D[0],
        "target": D[1],
        "seed": 3,
        "target_weights": [{"name": "a", "weight": 1.0}],
        "text": {"vocab_size": 512, "sequence_length": 16, "prefix_length": 8},
        "model": {"hidden": 16, "layers": 1, "heads": 2, "ffn": 32},
        "training": {"batch_size": 8, "learning_rate": 0.01},
        "partition": {"by": "clusters", "branch": 4, "depth": 2},
        "profile": PROFILE,
    },
    "recipe": {
        "role": "expert",
        "index": 0,
        "model": MODEL,
        "optimizer": {"name": "adamw", "beta1": 0.9},
        "schedule": {"kind": "cosine", "learning_rate": 0.01, "warmup_steps": 1, "total_steps": 9},
        "batch_size": 2,
        "columns": 5,
        "init_seed": 7,
        "data_rule": "{}",
        "commit_every": 3,
        "origin": {"weights": D[0], "optimizer": D[1], "step": 2},
    },
    "segments": [
        {
            "index": 0,
            "start_step": 0,
            "end_step": 3,
            "mixture_version": 0,
            "data": {
                "kind": "assigned",
                "tokens": D[0],
                "key": 1,
                "start": 0,
                "count": 9,
                "assignment": D[1],
                "share": 1,
            },
        }
    ],
    "profile": PROFILE,
    "checkpoint": {
        "lineage": D[0],
        "step": 3,
        "parent": "",
        "profile": PROFILE,
        "segments": [D[1]],
        "data_position": 4,
        "rng": {"init": 7},
        "weights": D[2],
        "optimizer": D[3],
    },
    "figures": {"loss": 1.5, "rows": 3, "counts": [1, 2, {"a": None}]},
    "view": {
        "run": D[0],
        "name": "first",
        "method": "smalltalk",
        "tokenizer": D[1],
        "sequence_length": 16,
        "prefix_length": 8,
        "expert_model": MODEL,
        "router_model": MODEL,
        "routers": [D[2], D[3]],
        "slots": {"expert-0": D[4], "expert-1": D[5]},
    },
    "soup-view": {
        "run": D[0],
        "name": "first",
        "method": "soup",
        "route_by": "one",
        "default_slot": "soup",
        "tokenizer": D[1],
        "sequence_length": 16,
        "prefix_length": 8,
        "expert_model": MODEL,
        "slots": {"soup": D[2], "bank": D[3]},
        "soup": {"slot": "bank", "labels": D[4], "config": {"domains": 2, "experts": 3, "hidden": 4}},
    },
    "mixture": {"version": 1, "partition": D[0], "weights": {"a": 0.25, "b": 0.75}},
    "labels": {
        "kind": "labels",
        "version": 1,
        "partition": D[0],
        "tokens": D[1],
        "sequence_length": 16,
        "domains": ["a", "b"],
        "sizes": [3, 4],
        "rows": 8,
        "excluded": 1,
        "labels": D[2],
        "blobs": {"labels": D[2]},
    },
    "partition": {
        "version": 1,
        "kind": "clusters",
        "tokenizer": D[0],
        "sequence_length": 16,
        "domains": ["a", "b"],
        "sizes": [3, 4],
        "blobs": {"tokenizer": D[0], "encoder": D[1], "tree": D[2], "encoder-000": D[3]},
        "encoder": {"kind": "sentence", "digest": D[1]},
        "tree": D[2],
        "leaves": [0, 2],
    },
    "corpus": {"kind": "corpus", "version": 1, "shards": [], "sources": {"a": {"splits": {"train": 3}}}},
    "tokens": {
        "kind": "tokens",
        "splits": {"train": {"rows": 3, "parts": [{"rows": D[0], "meta": D[1], "count": 3, "pack_offset": 0}]}},
        "blobs": {"tokenizer": D[2], "train-rows-00000": D[0]},
    },
    "encoder-manifest": {
        "kind": "sentence",
        "version": 1,
        "files": [{"path": "modules.json", "digest": D[0]}, {"path": "1_Pooling/config.json", "digest": D[1]}],
        "blobs": {"modules.json": D[0]},
    },
    "tokenizer": {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}},
}
TEXTS: Mapping[str, bytes] = {
    "join-string": f"potluck1:10.0.0.7:7471:{D[0]}:{'t' * 32}".encode(),
    "spec-file": b'data = "text"\nname = "first"\nmethod = "smalltalk"\n[text]\nvocab_size = 512\n[experts]\nnum = 2\n'
    b'batch_size = 4\nchunk_sequences = 64\n[search]\nmode = "none"\nexpert_batch = [1, 2]\n',
    "questions": b'{"id": "a", "context": "The sky is", "choices": [" blue.", " loud."], "answer": 0}\n'
    b'{"id": 2, "context": "", "choices": ["x", "y", "z"], "answer": 2, "group": "facts", "more": [1]}\n',
    "soup-name": b"soup:code:c=0.25,la%77 %3D 2=5e-1, news=.25",
}


def safetensors(header: Mapping[str, Any] | bytes, body: bytes, *, length: int | None = None) -> bytes:
    """A file with any header over any body; `length` is what it says of the header's size."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def weight_file(prefixes: tuple[str, ...] = ("",)) -> tuple[dict[str, Any], bytes]:
    """Header and body of sound weights of `TINY`; with prefixes, of an optimizer's moments."""
    h, f = TINY.hidden, TINY.ffn
    shapes = {
        "norm": (h,), "embedding.weight": (TINY.vocab, h), "blocks.0.attention_norm": (h,), "blocks.0.qkv": (3 * h, h),
        "blocks.0.out": (h, h), "blocks.0.ffn_norm": (h,), "blocks.0.gate_up": (2 * f, h), "blocks.0.down": (h, f),
    }  # fmt: skip
    header: dict[str, Any] = {}
    end = 0
    for prefix in prefixes:
        for name, shape in shapes.items():
            count = shape[0] * (shape[1] if len(shape) == 2 else 1)
            header[prefix + name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [end, end + 4 * count]}
            end += 4 * count
    return header, bytes(end)


def encoder_file() -> bytes:
    """A fitted LSI encoder of four terms and two dimensions."""
    header = {"kind": "lsi", "version": 1, "features": 1024, "char_ngrams": [2, 3]}
    return _arrays(
        header,
        {
            "columns": np.arange(4, dtype=np.int32),
            "idf": np.ones(4, np.float32),
            "components": np.ones((4, 2), np.float32),
        },
    )


def tree_file() -> bytes:
    """A tree of two levels and three leaves."""
    header = {"kind": "tree", "version": 1, "branch": 2, "depth": 2, "spherical": False}
    return _arrays(
        header,
        {
            "codes-0": np.array([0, 1]),
            "centroids-0": np.ones((2, 3), np.float32),
            "codes-1": np.array([0, 1, 3]),
            "centroids-1": np.ones((3, 3), np.float32),
        },
    )


def array_file() -> bytes:
    """Two rows of three tokens as `.npy`."""
    file = io.BytesIO()
    np.save(file, np.arange(6, dtype=np.uint16).reshape(2, 3), allow_pickle=False)
    return file.getvalue()


def parquet_file() -> bytes:
    """Three rows in two row groups, columns of several types."""
    import pyarrow.parquet as pq

    file = io.BytesIO()
    pq.write_table(_table(), file, row_group_size=2)
    return file.getvalue()


def arrow_file() -> bytes:
    """The same rows as a stream of two batches."""
    import pyarrow as pa

    file, table = io.BytesIO(), _table()
    with pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return file.getvalue()


def _table() -> Any:
    import pyarrow as pa

    text = pa.array(["one text", None, "zwölf Boxkämpfer"])
    return pa.table({"text": text, "id": [1, 2, 3], "source": pa.array(["a", "b", "a"]).dictionary_encode()})


def json_lines() -> bytes:
    return b'{"text": "one text", "id": 1}\n{"text": "another", "source": "a"}\n'


def zstd_file() -> bytes:
    """Two frames."""
    import zstandard

    return b"".join(zstandard.ZstdCompressor().compress(part) for part in (json_lines(), json_lines()))


def data_messages() -> list[bytes]:
    """Frames of the data plane, a byte that msgpack never uses between header and payload."""
    chunk = wire.Chunk(transfer=1, offset=0, size=9, sha256=bytes(32), payload=b"payload")
    said: list[wire.Message] = [
        wire.Get(transfer=1, digest=D[0], offset=0, length=9, plane="weights"),
        wire.Put(transfer=1, digest=D[0], size=9, plane="corpus"),
        wire.No(transfer=1, error_id="data.missing-blob", message="m", fix="f"),
        wire.Doubt(transfer=0, digest=D[0]),
        chunk,
    ]
    return [b"\xc1".join(bytes(frame) for frame in wire.encode(message)) for message in said]


def _arrays(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    from safetensors.numpy import save

    return save(dict(arrays), metadata={"header": json.dumps(header)})


_FILES: Mapping[str, Callable[[], bytes]] = {
    "weights": lambda: safetensors(*weight_file()),
    "optimizer": lambda: safetensors(*weight_file(("exp_avg.", "exp_avg_sq."))),
    "lsi-encoder": encoder_file,
    "tree": tree_file,
    "array": array_file,
    "parquet": parquet_file,
    "arrow": arrow_file,
    "gzip": lambda: gzip.compress(json_lines(), mtime=0),
    "zstd": zstd_file,
    "worker-frame": lambda: b"\x82\xa4type\xa5ready\xa5fence\x00",
    "commit": lambda: node_pb2.CommitRequest(
        lineage=D[0], end_step=3, child=D[1], weights=D[2], optimizer=D[3]
    ).SerializeToString(),
    "complete-task": lambda: node_pb2.CompleteTaskRequest(
        task=D[0], blobs=[common_pb2.NamedDigest(name="a", digest=D[1])], figures_json='{"a": 1}'
    ).SerializeToString(),
    "heartbeat": lambda: node_pb2.Heartbeat(fence=1, step=2, loss=1.5, activity="training").SerializeToString(),
    "serving": lambda: node_pb2.ServingState(
        slots=[node_pb2.ServingSlot(run=D[0], slot="expert-0", weights=D[1], state="ready")]
    ).SerializeToString(),
    "lease": lambda: node_pb2.Lease(
        fence=1, task=node_pb2.TaskWork(task=D[0], kind="score", params_json="{}")
    ).SerializeToString(),
}


def seeds_of(target: str) -> list[bytes]:
    """Sound inputs of a target, to begin from; none for the few that need none."""
    if target in JSON:
        return [json.dumps(JSON[target]).encode()]
    if target in TEXTS:
        return [TEXTS[target]]
    if target == "data-plane":
        return data_messages()
    return [_FILES[target]()] if target in _FILES else []
