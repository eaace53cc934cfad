"""Durable events to and from the JSON rows of the journal, generic over the closed union.

A row is `{"type": "RunSubmitted", ...fields}`; so is every member of a union inside an event, such
as an `Outcome`. A field that a row lacks takes its default, so that rows written before the field
existed can be read for ever; a field or type that today's code does not know is refused, for it
was written by a newer release.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from coordinator.core.events import DurableEvent
from potluck.errors import DataError
from potluck.ids import canonical_json

TYPE_KEY = "type"

_Decoder = Callable[[Any], Any]


def encode_event(event: DurableEvent) -> str:
    """The row of an event: canonical JSON, so that equal events are equal rows."""
    return canonical_json(_encode(event))


def decode_event(row: str) -> DurableEvent:
    """The event of a row.

    Raises:
        DataError: ``data.journal-row``: not JSON, or not an event that this release knows.
    """
    try:
        raw = json.loads(row)
    except json.JSONDecodeError as error:
        raise _unreadable(f"not JSON: {error}") from None
    event: DurableEvent = _decoder_of(DurableEvent)(raw)
    return event


def _encode(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        fields = {f.name: _encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {TYPE_KEY: type(value).__name__, **fields}
    if isinstance(value, tuple | list):
        return [_encode(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _encode(item) for key, item in value.items()}
    return value


@functools.cache
def _decoder_of(hint: Any) -> _Decoder:
    """Compiles a type into the function that reads it; once a type, for replay is long."""
    origin = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _member_decoder((hint,))
    if origin in (typing.Union, types.UnionType):
        return _union_decoder(typing.get_args(hint))
    if origin is tuple:
        return _tuple_decoder(typing.get_args(hint))
    if origin is typing.Literal:
        return _choice_decoder(typing.get_args(hint))
    if hint is Any or origin is not None:
        return _as_it_is
    scalar = getattr(hint, "__supertype__", hint)
    assert scalar in (int, float, str, bool), f"no journal form for {hint}"
    return _scalar_decoder(scalar)


def _union_decoder(members: tuple[Any, ...]) -> _Decoder:
    """A union of dataclasses, told apart by their tag; or an optional value."""
    plain = tuple(m for m in members if m is not type(None))
    if len(plain) == 1:
        inner = _decoder_of(plain[0])
        return lambda raw: None if raw is None else inner(raw)
    return _member_decoder(plain)


def _member_decoder(members: tuple[Any, ...]) -> _Decoder:
    by_tag = {member.__name__: member for member in members}
    decoders: dict[str, dict[str, _Decoder]] = {}

    def decode(raw: Any) -> Any:
        tag = raw.get(TYPE_KEY) if isinstance(raw, dict) else None
        if not isinstance(tag, str) or tag not in by_tag:
            raise _unreadable(f"{tag!r} is none of {', '.join(by_tag)}")
        if tag not in decoders:
            decoders[tag] = _field_decoders(by_tag[tag])
        fields = decoders[tag]
        try:
            values = {key: fields[key](item) for key, item in raw.items() if key != TYPE_KEY}
        except KeyError as error:
            raise _unreadable(f"{tag} has no field {error}") from None
        try:
            return by_tag[tag](**values)
        except TypeError as error:
            raise _unreadable(f"{tag}: {error}") from None

    return decode


def _field_decoders(cls: Any) -> dict[str, _Decoder]:
    # `Json` is recursive; inside it anything that JSON can say is right.
    hints = typing.get_type_hints(cls, localns={"Json": Any})
    return {field.name: _decoder_of(hints[field.name]) for field in dataclasses.fields(cls)}


def _tuple_decoder(items: tuple[Any, ...]) -> _Decoder:
    if len(items) == 2 and items[1] is Ellipsis:
        item = _decoder_of(items[0])
        return lambda raw: tuple(item(r) for r in _as_list(raw))
    parts = [_decoder_of(i) for i in items]
    return lambda raw: tuple(part(r) for part, r in zip(parts, _as_list(raw), strict=True))


def _choice_decoder(choices: tuple[Any, ...]) -> _Decoder:
    def decode(raw: Any) -> Any:
        if raw not in choices:
            raise _unreadable(f"{raw!r} is none of {choices}")
        return raw

    return decode


def _scalar_decoder(scalar: type) -> _Decoder:
    def decode(raw: Any) -> Any:
        if type(raw) is scalar:
            return raw
        if scalar is float and type(raw) is int:
            return float(raw)
        raise _unreadable(f"{raw!r} is not {scalar.__name__}")

    return decode


def _as_it_is(raw: Any) -> Any:
    return raw


def _as_list(raw: Any) -> list[Any]:
    if not isinstance(raw, list):
        raise _unreadable(f"{raw!r} is not a list")
    return raw


def _unreadable(what: str) -> DataError:
    return DataError(
        "data.journal-row",
        f"a row of the journal cannot be read: {what}",
        "run the release that wrote this journal, or a newer one",
    )
