"""Values of the core to and from what JSON can say, generic over their types; pure.

A dataclass is `{"type": "RunSubmitted", ...fields}`, so that members of a union can be told apart. A field that
is lacking takes its default; a field or type that today's code does not know is refused. The order of a
dict's keys is kept, for ties break by it.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

TYPE_KEY = "type"

Reader = Callable[[Any], Any]
T = TypeVar("T")


def to_plain(value: Any) -> Any:
    """Dicts, lists and scalars; keys stay what they are, and JSON makes text of numbers."""
    kind: Any = type(value)
    if kind is str or kind is int or value is None:
        return value
    names = _field_names(kind)
    if names is not None:
        plain = {name: to_plain(getattr(value, name)) for name in names}
        plain[TYPE_KEY] = kind.__name__
        return plain
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    return value


def copied(value: T) -> T:
    """A copy that shares only what never changes: frozen dataclasses with all they hold, tuples, scalars."""
    return typing.cast(T, _copied(value))


@functools.cache
def reader_of(hint: Any) -> Reader:
    """Compiles a type into the function that reads what `json.loads` made of it; once a type, for replay is long.

    The reader raises ValueError: what was read is not of the type.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _member_reader((hint,))
    if origin in (typing.Union, types.UnionType):
        return _union_reader(arguments)
    if origin is tuple:
        return _tuple_reader(arguments)
    if origin is list:
        item = reader_of(arguments[0])
        return lambda raw: [item(one) for one in _as_list(raw)]
    if origin is dict:
        return _dict_reader(*arguments)
    if origin is typing.Literal:
        return _choice_reader(arguments)
    if hint is Any or origin is not None:
        return _as_it_is  # a Mapping, which holds anything that JSON can say
    if hint is None or hint is type(None):
        return _choice_reader((None,))
    scalar = getattr(hint, "__supertype__", hint)
    assert scalar in (int, float, str, bool), f"no plain form for {hint}"
    return _scalar_reader(scalar)


def field_readers(cls: Any) -> dict[str, Reader]:
    """By field of a dataclass."""
    # `Json` is recursive; inside it anything that JSON can say is right.
    hints = typing.get_type_hints(cls, localns={"Json": Any})
    return {field.name: reader_of(hints[field.name]) for field in dataclasses.fields(cls)}


@functools.cache
def _field_names(kind: type) -> tuple[str, ...] | None:
    """None if it is no dataclass."""
    return tuple(field.name for field in dataclasses.fields(kind)) if dataclasses.is_dataclass(kind) else None


@functools.cache
def _changing_fields(kind: type) -> tuple[str, ...] | None:
    """None if it is no dataclass that may change."""
    if not dataclasses.is_dataclass(kind) or kind.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        return None
    return _field_names(kind)


def _copied(value: Any) -> Any:
    kind: Any = type(value)
    if kind is dict:
        return {key: _copied(item) for key, item in value.items()}
    if kind is list:
        return [_copied(item) for item in value]
    names = _changing_fields(kind)
    return value if names is None else kind(**{name: _copied(getattr(value, name)) for name in names})


def _union_reader(members: tuple[Any, ...]) -> Reader:
    """A union of dataclasses, told apart by their type; or an optional value."""
    plain = tuple(m for m in members if m is not type(None))
    if len(plain) == 1:
        inner = reader_of(plain[0])
        return lambda raw: None if raw is None else inner(raw)
    return _member_reader(plain)


def _member_reader(members: tuple[Any, ...]) -> Reader:
    by_type = {member.__name__: member for member in members}
    readers: dict[str, dict[str, Reader]] = {}

    def read(raw: Any) -> Any:
        name = raw.get(TYPE_KEY) if isinstance(raw, dict) else None
        if not isinstance(name, str) or name not in by_type:
            raise ValueError(f"{name!r} is none of {', '.join(by_type)}")
        if name not in readers:
            readers[name] = field_readers(by_type[name])
        fields = readers[name]
        try:
            values = {key: fields[key](item) for key, item in raw.items() if key != TYPE_KEY}
        except KeyError as error:
            raise ValueError(f"{name} has no field {error}") from None
        try:
            return by_type[name](**values)
        except TypeError as error:
            raise ValueError(f"{name}: {error}") from None

    return read


def _tuple_reader(items: tuple[Any, ...]) -> Reader:
    if len(items) == 2 and items[1] is Ellipsis:
        item = reader_of(items[0])
        return lambda raw: tuple([item(one) for one in _as_list(raw)])
    parts = [reader_of(item) for item in items]
    return lambda raw: tuple(part(one) for part, one in zip(parts, _as_list(raw), strict=True))


def _dict_reader(key_hint: Any, item_hint: Any) -> Reader:
    key, item = _key_reader(key_hint), reader_of(item_hint)

    def read(raw: Any) -> Any:
        if not isinstance(raw, dict):
            raise ValueError(f"{raw!r} is not a table")
        return {key(name): item(one) for name, one in raw.items()}

    return read


def _key_reader(hint: Any) -> Reader:
    """JSON has made a text of the key."""
    if getattr(hint, "__supertype__", hint) is int:
        return int
    return reader_of(hint)


def _choice_reader(choices: tuple[Any, ...]) -> Reader:
    def read(raw: Any) -> Any:
        if raw not in choices:
            raise ValueError(f"{raw!r} is none of {choices}")
        return raw

    return read


def _scalar_reader(scalar: type) -> Reader:
    def read(raw: Any) -> Any:
        if type(raw) is scalar:
            return raw
        if scalar is float and type(raw) is int:
            return float(raw)
        raise ValueError(f"{raw!r} is not {scalar.__name__}")

    return read


def _as_it_is(raw: Any) -> Any:
    return raw


def _as_list(raw: Any) -> list[Any]:
    if not isinstance(raw, list):
        raise ValueError(f"{raw!r} is not a list")
    return raw
