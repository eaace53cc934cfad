"""Any run's spec: what a person writes in TOML, what the canonical form adds, and its digest.

The canonical spec holds the digest of the corpus manifest and every default; name and priority stay
outside. Starting the same canonical spec again resumes the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from potluck.config import from_mapping
from potluck.errors import SpecError
from potluck.ids import Digest
from potluck.jsontext import read_json
from potluck.specs.choices import ChoicesSpec
from potluck.specs.cluster import ClusterSpec
from potluck.specs.contest import ContestSpec
from potluck.specs.crisp import CrispSpec
from potluck.specs.instantiate import InstantiateSpec
from potluck.specs.sections import require
from potluck.specs.single import SingleSpec
from potluck.specs.smalltalk import SmallTalkSpec
from potluck.specs.soup import SoupSpec

RunSpec = SmallTalkSpec | SingleSpec | CrispSpec | ClusterSpec | SoupSpec | InstantiateSpec | ContestSpec | ChoicesSpec
SpecClass = (
    type[SmallTalkSpec]
    | type[SingleSpec]
    | type[CrispSpec]
    | type[ClusterSpec]
    | type[SoupSpec]
    | type[InstantiateSpec]
    | type[ContestSpec]
    | type[ChoicesSpec]
)
METHODS: Mapping[str, SpecClass] = {
    "smalltalk": SmallTalkSpec,
    "single": SingleSpec,
    "crisp": CrispSpec,
    "cluster": ClusterSpec,
    "soup": SoupSpec,
    "instantiate": InstantiateSpec,
    "contest": ContestSpec,
    "choices": ChoicesSpec,
}
DEFAULT_METHOD = "smalltalk"
UNKNOWN_DIGEST = Digest("0" * 64)
MAX_NAME = 64
"""Characters of a run's name."""


def method_of(body: Mapping[str, Any]) -> SpecClass:
    """The spec class of a mapping's method.

    Raises:
        SpecError: ``spec.bad-value``, there is no such method.
    """
    method = body.get("method", DEFAULT_METHOD)
    require(isinstance(method, str) and method in METHODS, "method", method, ", ".join(METHODS))
    return METHODS[method]


def spec_from_mapping(body: Mapping[str, Any]) -> RunSpec:
    return from_mapping(method_of(body), body)


def spec_from_json(text: str) -> RunSpec:
    """Raises:
    SpecError: ``spec.not-json``, or naming the key and what is allowed.
    """
    try:
        body = read_json(text)
    except ValueError as error:
        raise SpecError("spec.not-json", f"the spec is no JSON: {error}", "send the canonical spec") from None
    if not isinstance(body, dict):
        raise SpecError("spec.not-json", "the spec is no JSON object", "send the canonical spec")
    return spec_from_mapping(body)


@dataclass(frozen=True, kw_only=True)
class RunFile:
    """A spec file: the spec proper, and what stays outside its digest."""

    data: str
    """Folder or file of text, relative to the spec file; or `demo`."""
    target: tuple[str, ...]
    """The target's, where the method has one; several are read as a folder that holds them."""
    encoder: str
    """A sentence-transformers folder; empty for LSI."""
    name: str
    priority: int
    body: Mapping[str, Any]

    def canonical(
        self, corpus: Digest, *, target: Digest = UNKNOWN_DIGEST, encoder: Digest = UNKNOWN_DIGEST
    ) -> RunSpec:
        """The canonical spec, once the text has digests. Presets become numbers."""
        body = {**self.body, "corpus": corpus}
        if self.target:
            body["target"] = target
        if self.encoder:
            body["partition"] = {**body["partition"], "encoder": encoder}
        return spec_from_mapping(body).resolved()


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
    require(isinstance(name, str) and 0 < len(name) <= MAX_NAME, "name", name, f"1 to {MAX_NAME} characters")
    require(isinstance(priority, int), "priority", priority, "an integer")
    if method_of(body) is InstantiateSpec:
        fix = "`potluck soup RUN` makes a specialist of a soup"
        raise SpecError("spec.no-file", 'method = "instantiate" has no spec file: it names blobs of a run', fix)
    if method_of(body) is ChoicesSpec:
        fix = "`potluck eval RUN --choices FILE` asks a run's models"
        raise SpecError("spec.no-file", 'method = "choices" has no spec file: it names blobs of a run', fix)
    if "corpus" in body:
        raise SpecError("spec.unknown-key", "unknown key corpus", 'write data = "folder"; the digest is computed')
    allowed = {item.name for item in fields(method_of(body))} - {"corpus"}
    for key in body:
        if key not in allowed:
            fix = f"allowed here: {', '.join(sorted(allowed | {'data', 'name', 'priority'}))}"
            raise SpecError("spec.unknown-key", f"unknown key {key}", fix)
    target, encoder = _paths(body)
    file = RunFile(data=data, target=target, encoder=encoder, name=name, priority=priority, body=body)
    file.canonical(UNKNOWN_DIGEST)
    return file


def _paths(body: dict[str, Any]) -> tuple[tuple[str, ...], str]:
    """Takes the paths out whose digests are computed: the target's and the encoder's."""
    target: tuple[str, ...] = ()
    encoder = ""
    if method_of(body) is CrispSpec:
        named = body.pop("target", "")
        paths = named if isinstance(named, list) else [named]
        ok = bool(paths) and all(isinstance(path, str) and path for path in paths)
        require(ok, "target", named, "a folder or file with text like what the specialist is for, or a list of them")
        target = tuple(paths)
    partition = body.get("partition")
    if isinstance(partition, Mapping) and partition.get("encoder"):
        encoder = partition["encoder"]
        require(isinstance(encoder, str), "partition.encoder", encoder, "a sentence-transformers folder")
        body["partition"] = {key: value for key, value in partition.items() if key != "encoder"}
    return target, encoder
