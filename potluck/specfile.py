"""Writes spec files: TOML with literal numbers and the call that made them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from potluck.config import to_mapping
from potluck.specs.run import RunSpec

CALL_PREFIX = "# call: "
KEPT_OUT = ("corpus", "target", "spec_version")
"""Digests come from the texts; the version is this release's."""


def spec_text(
    spec: RunSpec,
    *,
    data: str,
    name: str,
    call: Mapping[str, Any],
    remarks: list[str],
    target: Sequence[str] = (),
    encoder: str = "",
) -> str:
    """The TOML of a spec; `call` is what `same_call` later compares.

    Args:
        data: path of the text, relative to where the file will lie; so are `target` and `encoder`, if there are any.
    """
    head = [f"# {remark}" for remark in remarks]
    head.append(CALL_PREFIX + json.dumps(call, sort_keys=True))
    body = {key: value for key, value in to_mapping(spec).items() if key not in KEPT_OUT}
    paths: dict[str, Any] = {"data": data}
    if target:
        paths["target"] = target[0] if len(target) == 1 else list(target)
    if encoder:
        body["partition"]["encoder"] = encoder
    return "\n".join([*head, "", *_table({**paths, "name": name, **body}, ())]) + "\n"


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
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {_scalar(item)}" for key, item in value.items()) + "}"
    return repr(value)
