"""JSON that others wrote: any text gives a value or a ValueError, never another exception."""

from __future__ import annotations

import json
from typing import Any

MAX_DEPTH = 64
"""No format of ours nests deeper than eight; what walks over a value must not run out of stack."""
MAX_CONTAINERS = 1 << 20
"""Lists and objects: each takes 20 times the memory of its two characters, and the parser lets nobody else run."""
MAX_DIGITS = 20
"""Of a whole number and its sign: every one of 64 bits; each fits into a float."""


def read_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is not JSON, nests deeper than `MAX_DEPTH`, has too many parts, holds a NaN or an infinity, a
            number too large, or half of a surrogate pair, which UTF-8 cannot say.
    """
    # Brackets in strings count too: a text of so many is none that people send.
    if len(text) > MAX_CONTAINERS and _num_brackets(text) > MAX_CONTAINERS:
        raise ValueError(f"it has more than {MAX_CONTAINERS} lists and objects")
    try:
        value = json.loads(text, parse_constant=_not_finite, parse_float=_finite, parse_int=_whole)
    except RecursionError:
        raise ValueError(f"it nests deeper than {MAX_DEPTH}") from None
    _check(value)
    return value


def _num_brackets(text: str | bytes) -> int:
    if isinstance(text, str):
        return text.count("{") + text.count("[")
    return text.count(b"{") + text.count(b"[")


def _check(value: Any) -> None:
    """Level by level, so that this walk needs no stack itself."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                for key in item:
                    _check_text(key)
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
            elif isinstance(item, str):
                _check_text(item)
        if not inner:
            return
        level = inner
    raise ValueError(f"it nests deeper than {MAX_DEPTH}")


def _check_text(text: str) -> None:
    if not text.isascii():
        text.encode()  # UnicodeEncodeError is a ValueError


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{text[:32]} is no number that a float can hold")
    return number


def _whole(text: str) -> int:
    if len(text) > MAX_DIGITS + 1:
        raise ValueError(f"{text[:32]}... has more than {MAX_DIGITS} digits")
    return int(text)


def _not_finite(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON")
