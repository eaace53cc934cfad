"""Weights, optimizer states, encoders, trees, arrays and frames that a peer made: sound, or refused by a stable id."""

from __future__ import annotations

import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potluck.errors import DataError
from potluck.ids import RunId, digest_bytes
from potluck.lm.model import load_decoder
from potluck.lm.tensors import load_tensors
from router.placing import Files
from router.score import RouterModels
from router.view import View
from sampling.cluster_tree import Tree
from sampling.embed_lsi import LsiEncoder
from sampling.taskio import load_array
from tests.fuzz.bending import shapeless, spoilt
from tests.fuzz.seeds import array_file, safetensors, seeds_of, weight_file
from tests.fuzz.targets import BINARIES, TINY

NUMBERS = st.sampled_from([-1, 0, 1, 3, 4, 16, 2**31, 2**53, 2**63, 2**64, 10**30, 1.5, None, "4", []])
DTYPES = st.sampled_from(["F32", "F64", "BF16", "I64", "U8", "BOOL", "C64", "F8_E4M3", "F4", "X", "", 3, None])


@pytest.fixture(scope="module")
def sound() -> dict[str, bytes]:
    return {name: seeds_of(name)[0] for name in BINARIES}


@pytest.mark.parametrize("name", sorted(BINARIES))
@settings(max_examples=60)
@given(data=st.data())
def test_a_sound_file_with_bytes_changed_is_taken_or_refused_with_a_stable_id(
    name: str, data: st.DataObject, sound: dict[str, bytes]
) -> None:
    BINARIES[name](data.draw(spoilt(sound[name]) | shapeless()))


@pytest.mark.parametrize("name", ["weights", "optimizer", "lsi-encoder", "tree"])
@settings(max_examples=80)
@given(data=st.data())
def test_a_safetensors_header_that_lies_is_refused_with_a_stable_id(
    name: str, data: st.DataObject, sound: dict[str, bytes]
) -> None:
    (length,) = struct.unpack_from("<Q", sound[name])
    header = json.loads(sound[name][8 : 8 + length])
    body = sound[name][8 + length :]
    for _ in range(data.draw(st.integers(1, 3))):
        bend_header(header, data)
    said = data.draw(st.sampled_from([None, None, None, 0, 2**20, 2**40, 2**63, 2**64 - 1]))
    BINARIES[name](safetensors(header, body, length=said))


def bend_header(header: dict[str, Any], data: st.DataObject) -> None:
    if not header:
        return
    key = data.draw(st.sampled_from(sorted(header)))
    match data.draw(st.sampled_from(["offsets", "shape", "dtype", "drop", "copy", "rename", "metadata"])):
        case "drop":
            del header[key]
        case "copy":  # overlapping tensors
            header[f"{key}.copy"] = header[key]
        case "rename":
            header[data.draw(st.text(max_size=4))] = header.pop(key)
        case "metadata":
            inner = data.draw(st.sampled_from(["{}", "[]", "1e999", '{"kind":"lsi","version":1}', "[" * 9000]))
            header["__metadata__"] = data.draw(st.sampled_from([{"header": inner}, {}, None, 3, {"header": 3}]))
        case "dtype" if isinstance(header[key], dict):
            header[key]["dtype"] = data.draw(DTYPES)
        case "shape" if isinstance(header[key], dict):
            header[key]["shape"] = data.draw(st.lists(NUMBERS, max_size=3))
        case "offsets" if isinstance(header[key], dict):
            header[key]["data_offsets"] = data.draw(st.lists(NUMBERS, max_size=3))


def test_sound_files_are_taken(sound: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(sound["weights"])
    load_decoder(TINY, path)
    path.write_bytes(sound["lsi-encoder"])
    assert LsiEncoder.load(path).dim == 2
    path.write_bytes(sound["tree"])
    assert Tree.load(path).leaves.tolist() == [0, 1, 3]


@pytest.mark.parametrize(
    "bend",
    [
        {"data_offsets": [0, 2**40]},
        {"data_offsets": [4, 20]},
        {"shape": [2**40]},
        {"shape": [2**32, 2**32]},
        {"dtype": "C64"},
    ],
)
def test_sizes_that_lie_are_no_tensors_of_ours(bend: dict[str, Any], tmp_path: Path) -> None:
    header, body = weight_file()
    header["norm"] |= bend
    (tmp_path / "f").write_bytes(safetensors(header, body))
    with pytest.raises(DataError) as caught:
        load_decoder(TINY, tmp_path / "f")
    assert caught.value.error_id in ("data.bad-tensors", "data.wrong-weights")


@pytest.mark.parametrize("spoilt", ["%'descr'", "(" * 100, "{'descr': '|O'", "'" * 3, "{" * 100, "1" * 100])
def test_an_arrays_header_that_is_no_python_is_refused(spoilt: str, tmp_path: Path) -> None:
    data = bytearray(array_file())
    data[10 : 10 + len(spoilt)] = spoilt.encode()
    (tmp_path / "f").write_bytes(data)
    with pytest.raises(DataError) as caught:
        load_array(tmp_path / "f")
    assert caught.value.error_id == "data.bad-array"


def test_a_header_of_a_terabyte_is_refused_without_room_for_it(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(safetensors({}, b"", length=2**40))
    with pytest.raises(DataError):
        load_tensors(tmp_path / "f")


def test_weights_of_another_model_are_refused_by_their_header_without_reading_them(tmp_path: Path) -> None:
    path, size = tmp_path / "f", 1 << 33
    header = {"norm": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}
    with path.open("wb") as file:
        file.write(safetensors(header, b""))
        file.truncate(file.tell() + size)  # eight GiB that the disk does not hold
    tracemalloc.start()
    with pytest.raises(DataError) as caught:
        load_decoder(TINY, path)
    assert caught.value.error_id == "data.wrong-weights"
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("weights", [b"", b"garbage", safetensors({}, b""), safetensors(b"[" * 9000, b"")])
def test_no_weights_that_a_node_committed_end_a_router(weights: bytes, tmp_path: Path) -> None:
    digest = digest_bytes(weights)
    (tmp_path / digest).write_bytes(weights)
    view = View(
        run=RunId(digest),
        name="first",
        method="smalltalk",
        tokenizer=digest,
        sequence_length=16,
        prefix_length=4,
        expert_model=TINY,
        router_model=TINY,
        routers=(digest, digest),
        slots={},
    )
    with pytest.raises(DataError) as caught:
        RouterModels.load(view, Files(paths={digest: tmp_path / digest}, scratch=tmp_path))
    assert caught.value.error_id.startswith("data.")
