"""Frozen dataclasses from plain mappings: unknown keys are fatal, types are checked, errors name the key."""

from __future__ import annotations

import dataclasses
import functools
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from potluck.errors import SpecError

T = TypeVar("T")

MAX_INTEGER_BITS = 64
"""More than any field means; a float and an error message can hold what is below."""
MAX_SHOWN = 200
"""Characters of a value in a message."""


def load_toml(path: Path) -> dict[str, Any]:
    """Reads a TOML file.

    Raises:
        SpecError: ``spec.not-found``, ``spec.not-a-file`` or ``spec.not-toml``, with the line.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpecError("spec.not-found", f"no spec file at {path}", "check the path") from None
    except IsADirectoryError:
        raise SpecError("spec.not-a-file", f"{path} is a folder, not a spec file", "name the TOML file") from None
    except RecursionError:
        raise SpecError("spec.not-toml", f"{path}: it nests too deep", "write it as TOML (https://toml.io)") from None
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError are such, and so is a number too long
        raise SpecError("spec.not-toml", f"{path}: {error}", "write it as TOML (https://toml.io)") from None


def from_mapping(cls: type[T], mapping: Mapping[str, Any], where: str = "") -> T:
    """Builds a dataclass, nested ones too, from a mapping.

    Raises:
        SpecError: ``spec.unknown-key``, ``spec.missing-key``, ``spec.wrong-type`` or whatever the
            dataclass itself refuses; the message names the dotted key.
    """
    assert dataclasses.is_dataclass(cls)
    if not isinstance(mapping, Mapping):
        raise _wrong_type(where.rstrip(".") or "the whole", "a table", mapping)
    hints = _hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    for key in mapping:
        if key not in fields:
            allowed = ", ".join(sorted(fields))
            raise SpecError("spec.unknown-key", f"unknown key {where}{key}", f"allowed here: {allowed}")
    values = {k: _convert(hints[k], v, f"{where}{k}") for k, v in mapping.items()}
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise SpecError("spec.missing-key", f"{where}{name} is missing", f"add {where}{name}")
    return cls(**values)


def added(default: Any) -> Any:
    """A field that joined its class after a release: left out of the canonical form while it has its default.

    So what was digested before the field existed keeps its digest, and a lineage its id.
    """
    return dataclasses.field(default=default, metadata={"added": True})


def to_mapping(value: Any) -> Any:
    """The inverse of `from_mapping`: plain dicts, lists and scalars, `added` fields with their default left out."""
    if isinstance(value, str | int | float | None):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            name: to_mapping(item)
            for name, default in _written_fields(type(value))
            if (item := getattr(value, name)) != default
        }
    if isinstance(value, tuple | list):
        return [to_mapping(item) for item in value]
    if isinstance(value, Mapping):
        return {k: to_mapping(v) for k, v in value.items()}
    return value


@functools.cache
def _written_fields(cls: type) -> tuple[tuple[str, object], ...]:
    """Names, with the value that leaves a field out. Plans write the same classes out thousands of times a run."""
    assert dataclasses.is_dataclass(cls)
    always = object()
    fields = (field for field in dataclasses.fields(cls) if field.init)
    return tuple((field.name, field.default if "added" in field.metadata else always) for field in fields)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise _wrong_type(where, "a table", value)
        return from_mapping(hint, value, f"{where}.")
    if origin is tuple:
        item = typing.get_args(hint)[0]
        if not isinstance(value, list | tuple):
            raise _wrong_type(where, "a list", value)
        return tuple(_convert(item, v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin in (typing.Union, types.UnionType):
        inner = [a for a in typing.get_args(hint) if a is not type(None)]
        if value is None:
            return None
        return _convert(_chosen(inner, value, where), value, where)
    if type(value) is int and value.bit_length() > MAX_INTEGER_BITS:
        raise SpecError("spec.bad-value", f"{where} is a number of {value.bit_length()} bits", "give a smaller number")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (int, float, str, bool):
        if type(value) is not hint:
            raise _wrong_type(where, f"{hint.__name__}", value)
        return value
    if origin is typing.Literal:
        allowed = typing.get_args(hint)
        if value not in allowed:
            raise SpecError("spec.bad-value", f"{where} = {value!r}", f"allowed: {', '.join(map(str, allowed))}")
        return value
    supertype = getattr(hint, "__supertype__", None)
    if supertype is not None:
        return hint(_convert(supertype, value, where))
    raise TypeError(f"{where}: no conversion for {hint}")


def _chosen(options: list[Any], value: Any, where: str) -> Any:
    """Of several dataclasses the one whose tag, a Literal field of one value, the table has; else the first."""
    if len(options) == 1:
        return options[0]
    tag = next(name for name, hint in _hints(options[0]).items() if typing.get_origin(hint) is typing.Literal)
    by_tag = {typing.get_args(_hints(option)[tag])[0]: option for option in options}
    if not isinstance(value, Mapping) or tag not in value:
        return options[0]
    if not isinstance(value[tag], str) or value[tag] not in by_tag:
        allowed = ", ".join(map(str, by_tag))
        raise SpecError("spec.bad-value", f"{where}.{tag} = {str(value[tag])[:MAX_SHOWN]!r}", f"allowed: {allowed}")
    return by_tag[value[tag]]


def _wrong_type(where: str, wanted: str, value: Any) -> SpecError:
    shown = type(value).__name__ if type(value) is int and value.bit_length() > MAX_INTEGER_BITS else repr(value)
    return SpecError("spec.wrong-type", f"{where} = {shown[:MAX_SHOWN]} is not {wanted}", f"give {where} as {wanted}")
