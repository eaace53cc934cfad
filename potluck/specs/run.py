"""Any run's spec: what a person writes in TOML, what the canonical form adds, and its digest.

The canonical spec holds the digest of the corpus manifest and every default; name and priority stay
outside. Starting the same canonical spec again resumes the run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from potluck.config import from_mapping
from potluck.errors import SpecError
from potluck.ids import Digest
from potluck.specs.sections import require
from potluck.specs.single import SingleSpec
from potluck.specs.smalltalk import SmallTalkSpec

RunSpec = SmallTalkSpec | SingleSpec
METHODS: Mapping[str, type[SmallTalkSpec] | type[SingleSpec]] = {"smalltalk": SmallTalkSpec, "single": SingleSpec}
DEFAULT_METHOD = "smalltalk"


def method_of(body: Mapping[str, Any]) -> type[SmallTalkSpec] | type[SingleSpec]:
    """The spec class of a mapping's method.

    Raises:
        SpecError: ``spec.bad-value``, there is no such method.
    """
    method = body.get("method", DEFAULT_METHOD)
    require(method in METHODS, "method", method, ", ".join(METHODS))
    return METHODS[method]


def spec_from_mapping(body: Mapping[str, Any]) -> RunSpec:
    return from_mapping(method_of(body), body)


def spec_from_json(text: str) -> RunSpec:
    return spec_from_mapping(json.loads(text))


@dataclass(frozen=True, kw_only=True)
class RunFile:
    """A spec file: the spec proper, and what stays outside its digest."""

    data: str
    """Folder or file of text, relative to the spec file; or `demo`."""
    name: str
    priority: int
    body: Mapping[str, Any]

    def canonical(self, corpus: Digest) -> RunSpec:
        """The canonical spec, once the corpus has a digest. Presets become numbers."""
        return spec_from_mapping({**self.body, "corpus": corpus}).resolved()


def parse_run_file(raw: Mapping[str, Any]) -> RunFile:
    """Splits a TOML mapping into what names the run and what defines it; checks all of it.

    Raises:
        SpecError: naming the key and what is allowed.
    """
    body = dict(raw)
    if isinstance(body.get("optimizer"), str):
        body["optimizer"] = {"name": body["optimizer"]}
    data = body.pop("data", "")
    name = body.pop("name", "run")
    priority = body.pop("priority", 0)
    require(isinstance(data, str) and bool(data), "data", data, 'a folder or file of text, or "demo"')
    require(isinstance(name, str) and 0 < len(name) <= 64, "name", name, "1 to 64 characters")
    require(isinstance(priority, int), "priority", priority, "an integer")
    if "corpus" in body:
        raise SpecError("spec.unknown-key", "unknown key corpus", 'write data = "folder"; the digest is computed')
    allowed = {item.name for item in fields(method_of(body))} - {"corpus"}
    for key in body:
        if key not in allowed:
            fix = f"allowed here: {', '.join(sorted(allowed | {'data', 'name', 'priority'}))}"
            raise SpecError("spec.unknown-key", f"unknown key {key}", fix)
    file = RunFile(data=data, name=name, priority=priority, body=body)
    file.canonical(Digest("0" * 64))
    return file
