"""Hypothesis strategies for hostile input: sound values with something bent, and bytes of no shape at all."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st

from potluck.ids import digest_bytes

DEEP: Any = None
for _ in range(80):
    DEEP = [DEEP]
RAW = [
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "9" * 5000,
    "-" + "9" * 21,
    "[" * 100_000,
    '"\\ud800"',
    '{"a":1,"a":[]}',
]
"""Texts that no value of ours is written as."""
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**19, 0.0, -0.5, 1e308, 5e-324, "", "x", "a/../b",
    "\0", "é" * 300, "x" * 5000, "0" * 64, "g" * 64, digest_bytes(b"odd"), [], [[]], {}, {"": {}}, {"kind": "stream"},
    DEEP, ["a", 1, None], {"a": float(2**70)},
]  # fmt: skip
MARK = "<raw>"


@st.composite
def bent(draw: st.DrawFn, sound: Any) -> bytes:
    """The JSON of a sound value after one to three changes somewhere inside it."""
    value = json.loads(json.dumps(sound))
    raw = ""
    for _ in range(draw(st.integers(1, 3))):
        places = _places(value)
        holder, key = places[draw(st.integers(0, len(places) - 1))] if places else (None, None)
        what = draw(st.sampled_from(["odd", "odd", "raw", "drop", "add", "twice"]))
        if holder is None:
            value = _odd(draw)
        elif what == "odd":
            holder[key] = _odd(draw)
        elif what == "raw":
            holder[key], raw = MARK, draw(st.sampled_from(RAW))
        elif what == "drop":
            del holder[key]
        elif what == "add" and isinstance(holder, dict):
            holder[draw(st.sampled_from(["odd", "kind", "blobs", "preset", ""]))] = _odd(draw)
        elif isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
    return json.dumps(value).replace(json.dumps(MARK), raw or "null").encode()


def _odd(draw: st.DrawFn) -> Any:
    """A copy, for what is bent once is bent again."""
    return copy.deepcopy(ODD[draw(st.integers(0, len(ODD) - 1))])


def _places(value: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    level = [value]
    for _ in range(12):
        inner: list[Any] = []
        for item in level:
            keys = list(item) if isinstance(item, dict) else list(range(len(item))) if isinstance(item, list) else []
            found += [(item, key) for key in keys]
            inner += [item[key] for key in keys]
        level = inner
    return found


@st.composite
def spoilt(draw: st.DrawFn, sound: bytes) -> bytes:
    """Sound bytes cut off, lengthened, or with some changed."""
    data = bytearray(sound)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        what = draw(st.sampled_from(["cut", "change", "insert", "repeat"]))
        if what == "cut":
            del data[at:]
        elif what == "change" and data:
            data[at] = draw(st.integers(0, 255))
        elif what == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=12))
        else:
            data += data[at : at + 40]
    return bytes(data)


def shapeless() -> st.SearchStrategy[bytes]:
    return st.binary(max_size=200) | st.text(max_size=80).map(str.encode) | st.sampled_from(RAW).map(str.encode)
