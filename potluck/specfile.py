"""Writes spec files: TOML with literal numbers and the call that made them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from potluck.config import to_mapping
from potluck.specs.smalltalk import SmallTalkSpec

CALL_PREFIX = "# call: "
KEPT_OUT = ("corpus", "spec_version")
"""The digest comes from the data; the version is this release's."""


def spec_text(spec: SmallTalkSpec, *, data: str, name: str, call: Mapping[str, Any], remarks: list[str]) -> str:
    """The TOML of a spec; `call` is what `same_call` later compares."""
    head = [f"# {remark}" for remark in remarks]
    head.append(CALL_PREFIX + json.dumps(call, sort_keys=True))
    body = {key: value for key, value in to_mapping(spec).items() if key not in KEPT_OUT}
    return "\n".join([*head, "", *_table({"data": data, "name": name, **body}, ())]) + "\n"


def same_call(path: Path, call: Mapping[str, Any]) -> bool:
    """Whether the file exists and was written by this very call."""
    if not path.is_file():
        return False
    wanted = CALL_PREFIX + json.dumps(call, sort_keys=True)
    return wanted in path.read_text(encoding="utf-8").splitlines()


def _table(values: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    plain = {key: value for key, value in values.items() if not isinstance(value, Mapping)}
    nested = {key: value for key, value in values.items() if isinstance(value, Mapping)}
    lines = [f"{key} = {_scalar(value)}" for key, value in plain.items() if value not in ("", None, [])]
    for key, value in nested.items():
        inner = _table(value, (*path, key))
        if inner:
            lines += ["", f"[{'.'.join((*path, key))}]", *inner] if inner[0] != "" else inner
    return lines


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        return "[" + ", ".join(_scalar(item) for item in value) + "]"
    return repr(value)
