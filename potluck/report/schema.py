"""The shape of report.json, and a check of it that needs no library.

A schema is a nested value: a type (or a tuple of types) for a leaf, a dict for an object whose keys
must all be there (a key ending in ``?`` may be missing or null), ``Each(x)`` for an object of
any keys, ``Many(x)`` for a list. Unknown keys are allowed: readers must ignore what they do not know.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from potluck.errors import DataError

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Each:
    """An object with any keys, every value of one shape."""

    of: Any


@dataclass(frozen=True)
class Many:
    """A list with items of one shape."""

    of: Any


NUMBER = (int, float)
_LEVELS = {"nll_all": NUMBER, "nll_suffix": NUMBER, "perplexity_all": NUMBER, "perplexity_suffix": NUMBER}
_BITS = {"bits_per_byte_all?": NUMBER, "bits_per_byte_suffix?": NUMBER}
"""Reports that were made before them have none."""
_SIDE = {**_LEVELS, **_BITS}
_PART = {**{f"{key}?": shape for key, shape in _LEVELS.items()}, **_BITS}
"""A source's share of the text may be so small that it has no target after the prefix."""
_INTERVAL = {"mean": NUMBER, "low?": NUMBER, "high?": NUMBER}
"""Text of a single pack has a mean and no interval."""
_DIFFERENCES = {"mixture_minus_dense?": _INTERVAL, "random_minus_dense?": _INTERVAL, "mixture_minus_random?": _INTERVAL}
_CELL = {"batch_size": int, "learning_rate": NUMBER, "steps": int, "valid_nll_suffix?": NUMBER}
_PLANES = {"control": NUMBER, "corpus": NUMBER, "scores": NUMBER, "weights": NUMBER}

REPORT: dict[str, Any] = {
    "schema_version": int,
    "run": str,
    "name": str,
    "spec_digest": str,
    "spec": dict,
    "profile": {"device": str, "dtype": str, "threads": int, "compile": bool},
    "tokens": Each(NUMBER),
    "flops": Each(NUMBER),
    "epochs": Each(NUMBER),
    "search": {"mode": str, "table": str, "experts": Many(_CELL), "dense": Many(_CELL)},
    "parameters": {"expert": int, "router": int},
    "targets": dict,
    "target_bytes?": dict,
    "mixture": _SIDE,
    "dense?": _SIDE,
    "random_split?": _SIDE,
    "oracle": _SIDE,
    **_DIFFERENCES,
    "verdict": {"better": str, "text": str},
    "by_source": Each(
        {"mixture": _PART, "dense?": _PART, "random_split?": _PART, "oracle": _PART, "rows": int, **_DIFFERENCES}
    ),
    "routing": {"table": Many(Many(NUMBER)), "sources": Many(str), "loads": Many(NUMBER)},
    "curves": {"lineages": Each(Many(Many(NUMBER))), "purity": Many(NUMBER)},
    "bytes": _PLANES,
    "bytes_per_trained_token": _PLANES,
    "paper_bytes": {"scores": NUMBER, "scores_per_trained_token": NUMBER, "formula": str},
    "tokens_per_second": Each(NUMBER),
    "ledger": {"ok": bool, "problems": Many(str)},
}


def check_report(report: Mapping[str, Any]) -> None:
    """Passes a well-formed report.

    Raises:
        DataError: ``data.bad-report``, naming every key that is missing or of another type.
    """
    problems = list(_problems(REPORT, report, ""))
    if not problems and report["schema_version"] != SCHEMA_VERSION:
        problems = [f"schema_version is {report['schema_version']}, this program reads {SCHEMA_VERSION}"]
    if problems:
        raise DataError("data.bad-report", "the report is not well-formed: " + "; ".join(problems[:8]))


def _problems(schema: Any, value: Any, where: str) -> list[str]:
    if isinstance(schema, Each):
        if not isinstance(value, Mapping):
            return [f"{where} is not an object"]
        return [p for key, item in value.items() for p in _problems(schema.of, item, f"{where}.{key}")]
    if isinstance(schema, Many):
        if not isinstance(value, Sequence) or isinstance(value, str):
            return [f"{where} is not a list"]
        return [p for i, item in enumerate(value) for p in _problems(schema.of, item, f"{where}[{i}]")]
    if isinstance(schema, Mapping):
        if not isinstance(value, Mapping):
            return [f"{where or 'the report'} is not an object"]
        return [p for key, inner in schema.items() for p in _field_problems(key, inner, value, where)]
    if isinstance(value, bool) and schema is not bool:
        return [f"{where} is a truth value"]
    if not isinstance(value, schema):
        return [f"{where} is {type(value).__name__}"]
    if isinstance(value, float) and not math.isfinite(value):
        return [f"{where} is {value}"]
    return []


def _field_problems(key: str, inner: Any, value: Mapping[str, Any], where: str) -> list[str]:
    name = key.removesuffix("?")
    path = f"{where}.{name}" if where else name
    if value.get(name) is None:
        return [] if key.endswith("?") else [f"{path} is missing"]
    return _problems(inner, value[name], path)
