"""Every durable event survives its way into the journal and back."""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.core.events import DurableEvent
from coordinator.wire_events import decode_event, encode_event
from potluck.errors import DataError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
# No subnormals: a test that trains leaves this process flushing them to zero, as a worker does.
NUMBER = st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | NUMBER | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


@functools.cache
def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Any value of a type that events are made of; written apart from the codec under test."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*(values_of(member) for member in arguments))
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        hints = typing.get_type_hints(hint, localns={"Json": Any})
        return st.builds(hint, **{field.name: values_of(hints[field.name]) for field in dataclasses.fields(hint)})
    if origin is tuple and arguments[-1] is Ellipsis:
        return st.lists(values_of(arguments[0]), max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*(values_of(argument) for argument in arguments))
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    if origin is not None and issubclass(origin, Mapping):
        return st.dictionaries(TEXT, JSON, max_size=3)
    if hint is type(None):
        return st.none()
    plain = getattr(hint, "__supertype__", hint)
    return {int: st.integers(-(2**63), 2**63), str: TEXT, float: NUMBER, bool: st.booleans()}[plain]


@given(values_of(DurableEvent))
def test_an_event_read_back_is_the_event_written(event: DurableEvent) -> None:
    row = encode_event(event)
    assert decode_event(row) == event
    assert encode_event(decode_event(row)) == row
    assert "\n" not in row


@pytest.mark.parametrize("kind", typing.get_args(DurableEvent), ids=lambda kind: kind.__name__)
def test_every_durable_event_can_be_written(kind: type) -> None:
    @given(values_of(kind))
    def survives(event: Any) -> None:
        assert decode_event(encode_event(event)) == event
        assert json.loads(encode_event(event))["type"] == kind.__name__

    survives()


@given(JSON)
def test_a_row_that_is_no_event_is_refused_and_never_crashes(value: Any) -> None:
    with pytest.raises(DataError) as caught:
        decode_event(json.dumps(value))
    assert caught.value.error_id == "data.journal-row"
