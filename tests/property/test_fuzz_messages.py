"""Messages of any values, through the functions that turn them into events: an event, or a refusal with a stable id."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import example, given, settings
from hypothesis import strategies as st

from coordinator import wire
from coordinator.mixtures import completed, from_traffic
from coordinator.traffic import MAX_REQUESTS, Counter
from coordinator.wire_events import decode_event, encode_event
from potluck.errors import PotluckError
from potluck.ids import digest_bytes
from potluck.v1 import node_pb2
from sampling.labels import parse_labels
from tests.fuzz.seeds import JSON
from tests.fuzz.targets import MESSAGES, NODE, survives

NUMBERS: dict[int, tuple[int, int]] = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
FLOATS = st.sampled_from([0.0, -0.0, 1.5, -1.0, 1e308, 5e-324, float("nan"), float("inf"), float("-inf")])
STRINGS = st.sampled_from(
    ["", "x", "\0", "\n", "é" * 200, "x" * 70_000, "ready", "{}", "[]", '{"loss": 1e999}', '{"a":' * 900, "0" * 64]
) | st.binary(max_size=2).map(digest_bytes)
TYPES = {
    "acquire-lease": node_pb2.AcquireLeaseRequest,
    "return-lease": node_pb2.ReturnLeaseRequest,
    "commit": node_pb2.CommitRequest,
    "complete-task": node_pb2.CompleteTaskRequest,
    "session-hello": node_pb2.SessionHello,
    "heartbeat": node_pb2.Heartbeat,
    "serving": node_pb2.ServingState,
    "lease": node_pb2.Lease,
    "grant": node_pb2.AcquireLeaseResponse,
}


def fill(message: Message, draw: Any, depth: int = 0) -> None:
    descriptor: Descriptor = message.DESCRIPTOR
    for field in descriptor.fields:
        if not draw(st.booleans()):
            continue
        if field.message_type is not None:
            if depth < 3 and field.is_repeated:
                for _ in range(draw(st.integers(0, 3))):
                    fill(getattr(message, field.name).add(), draw, depth + 1)
            elif depth < 3:
                getattr(message, field.name).SetInParent()
                fill(getattr(message, field.name), draw, depth + 1)
        elif field.is_repeated:
            getattr(message, field.name).extend(draw(st.lists(value_of(field), max_size=3)))
        else:
            setattr(message, field.name, draw(value_of(field)))


def value_of(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.cpp_type in NUMBERS:
        low, high = NUMBERS[field.cpp_type]
        return st.sampled_from([low, high, 0, 1]) | st.integers(low, high)
    if field.cpp_type in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return FLOATS
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    return STRINGS


@pytest.mark.parametrize("name", sorted(MESSAGES))
@settings(max_examples=120)
@given(data=st.data())
def test_a_message_of_edge_values_is_an_event_or_refused_with_a_stable_id(name: str, data: st.DataObject) -> None:
    message = TYPES[name]()
    fill(message, data.draw)
    MESSAGES[name](message.SerializeToString())


@pytest.mark.parametrize("name", sorted(MESSAGES))
@settings(max_examples=40)
@given(data=st.binary(max_size=120))
def test_shapeless_bytes_are_no_message_or_refused_with_a_stable_id(name: str, data: bytes) -> None:
    MESSAGES[name](data)


@settings(max_examples=100)
@given(data=st.data())
def test_what_a_hostile_message_becomes_can_be_journalled_and_read_back(data: st.DataObject) -> None:
    request = node_pb2.CompleteTaskRequest(task=digest_bytes(b"t"))
    fill(request, data.draw)
    try:
        event = wire.task_completed(request, NODE, 0)
    except PotluckError:
        return
    assert decode_event(encode_event(event)) == event


@given(st.dictionaries(STRINGS, st.integers(-(2**63), 2**63 - 1), max_size=5))
def test_counts_that_a_router_makes_up_stay_within_the_partition_and_the_bound(told: dict[str, int]) -> None:
    counter = Counter(domains=frozenset({"x"}), since_unix_ms=0)
    counter.add(told)
    assert counter.counts.keys() <= {"x"}
    assert all(0 < count <= MAX_REQUESTS for count in counter.counts.values())
    assert 0 <= counter.unknown <= MAX_REQUESTS * len(told)


LABELS = parse_labels(JSON["labels"])


@example(named={"a": 1e308, "b": 1e308}, others_zero=False)  # a sum of finite numbers that is not
@given(named=st.dictionaries(st.sampled_from(["a", "b", "c", "", "\0"]), FLOATS, max_size=4), others_zero=st.booleans())
def test_weights_of_any_numbers_are_a_mixture_or_refused_with_a_stable_id(
    named: dict[str, float], others_zero: bool
) -> None:
    survives(lambda: completed(named, LABELS, others_zero=others_zero))


@given(st.dictionaries(st.sampled_from(["a", "b"]), st.integers(0, 2**62), max_size=2), FLOATS | st.none())
def test_counts_and_a_prior_of_any_numbers_are_a_mixture_or_refused_with_a_stable_id(
    counts: dict[str, int], prior: float | None
) -> None:
    survives(lambda: from_traffic(counts, LABELS, prior_requests=prior))
