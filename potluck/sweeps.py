"""Sweeps: a grid over keys of one spec, every cell of it an ordinary run, and the table of what came of them.

Nothing here does I/O. A sweep has no state of its own: a cell's spec names its run, so equal cells are equal runs.
"""

from __future__ import annotations

import itertools
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from potluck.errors import SpecError, UsageError
from potluck.specs.run import DEFAULT_METHOD, MAX_NAME, UNKNOWN_DIGEST, RunFile, RunSpec
from potluck.specs.single import SingleSpec
from potluck.specs.smalltalk import DenseSpec, ExpertSpec, SmallTalkSpec

Value = int | float | str | bool

MAX_CELLS = 256
"""Every cell is a run of its own, whose state the coordinator keeps."""
RATE, BATCH, OPTIMIZER, SEED = "learning_rate", "batch", "optimizer", "seed"
OPTIONS = {RATE: "--learning-rate", BATCH: "--batch", OPTIMIZER: "--optimizer"}
SHORT = {RATE: "lr"}
SWEPT: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "single": {RATE: ("training.learning_rate",), BATCH: ("training.batch_size",), OPTIMIZER: ("optimizer",)},
    "smalltalk": {
        RATE: ("experts.learning_rate", "dense.learning_rate"),
        BATCH: ("experts.batch_size", "dense.batch_size"),
        OPTIMIZER: ("optimizer",),
    },
}
"""By method, the keys that an option replaces. Both sides of a SmallTalk run get the same value: in step."""
FIXED = ("corpus", "method", "spec_version", "data", "name", "priority")
SHARED_BY_OPTIMIZERS = ("epsilon", "weight_decay", "grad_clip")
"""What another optimizer takes over from the file; its averages have defaults of their own."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    name: str
    """`learning_rate`, `batch`, `optimizer`, or the dotted key of a --set."""
    option: str
    """As it is typed."""
    keys: tuple[str, ...]
    """Dotted keys of the spec that get the value."""
    values: tuple[Value, ...]

    @property
    def short(self) -> str:
        return SHORT.get(self.name, self.name)


@dataclass(frozen=True, kw_only=True)
class Cell:
    values: Mapping[str, Value]
    """By axis."""
    label: str
    file: RunFile
    """The spec file with the keys replaced; its name is the run's."""

    @property
    def draft(self) -> RunSpec:
        """The spec but for its corpus."""
        return self.file.canonical(UNKNOWN_DIGEST)


def axes_of(
    file: RunFile, *, learning_rate: str = "", batch: str = "", optimizer: str = "", sets: Sequence[str] = ()
) -> tuple[Axis, ...]:
    """The grid that the options ask for, in the order of the table's columns.

    Raises:
        UsageError: ``usage.empty-grid``, ``usage.bad-value`` naming the option.
        SpecError: ``spec.bad-value``, the method is not swept.
    """
    name = str(file.body.get("method", DEFAULT_METHOD))
    if name not in SWEPT:
        raise SpecError("spec.bad-value", f'a sweep of method = "{name}"', f"allowed: {', '.join(SWEPT)}")
    texts = {RATE: learning_rate, BATCH: batch, OPTIMIZER: optimizer}
    axes = [
        Axis(name=key, option=OPTIONS[key], keys=SWEPT[name][key], values=_option_values(key, text))
        for key, text in texts.items()
        if text
    ]
    axes += [_set_axis(text) for text in sets]
    if not axes:
        fix = "give --learning-rate, --batch, --optimizer or --set, each with the values to try: --batch 8,16"
        raise UsageError("usage.empty-grid", "there is nothing to vary", fix)
    keys = [key for axis in axes for key in axis.keys]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise UsageError("usage.bad-value", f"{twice} is varied twice", "give all its values to one option")
    return tuple(axes)


def cells_of(file: RunFile, axes: Sequence[Axis]) -> tuple[Cell, ...]:
    """Every combination, the last axis fastest; equal ones once. All are checked before any is run.

    Raises:
        UsageError: ``usage.grid-too-large``.
        SpecError: a key or value that the spec refuses, told with its option.
    """
    count = math.prod(len(axis.values) for axis in axes)
    if count > MAX_CELLS:
        fix = f"give at most {MAX_CELLS} combinations"
        raise UsageError("usage.grid-too-large", f"the grid has {count} cells", fix)
    cells: dict[str, Cell] = {}
    for index, values in enumerate(itertools.product(*(axis.values for axis in axes))):
        by_axis = dict(zip((axis.name for axis in axes), values, strict=True))
        label = ",".join(f"{axis.short}={shown(by_axis[axis.name])}" for axis in axes)
        name = f"{file.name}/{label}"
        name = name if len(name) <= MAX_NAME else f"{file.name[: MAX_NAME - 4]}/{index}"
        try:
            body = _replaced(file, axes, by_axis)
            cell = Cell(values=by_axis, label=label, file=replace(file, name=name, body=body))
            cells.setdefault(cell.draft.id, cell)
        except SpecError as error:
            blamed = next((axis for axis in axes if any(key in error.message for key in axis.keys)), None)
            where = f"cell {label}" if blamed is None else f"{blamed.option} {shown(by_axis[blamed.name])}"
            raise SpecError(error.error_id, f"{where}: {error.message}", error.fix) from None
    return tuple(cells.values())


def shown(value: Value) -> str:
    """As a person would type it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def _option_values(name: str, text: str) -> tuple[Value, ...]:
    if name == OPTIMIZER:
        return _split(OPTIONS[name], text)
    kind, allowed = (int, "whole numbers of 1 or more") if name == BATCH else (float, "numbers above 0")
    values: dict[Value, None] = {}
    for part in _split(OPTIONS[name], text):
        try:
            value = kind(part)
            ok = 0 < value < math.inf
        except ValueError:
            ok = False
        if not ok:
            raise UsageError("usage.bad-value", f"{OPTIONS[name]} {part}", f"give {allowed}, with commas between")
        values[value] = None
    return tuple(values)


def _set_axis(text: str) -> Axis:
    key, equals, values = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise UsageError("usage.bad-value", f"--set {text}", "write --set KEY=V1,V2 with a dotted key of the spec")
    if key.split(".")[0] in FIXED:
        raise UsageError("usage.bad-value", f"--set {key}", "a sweep is over one text and one method")
    if key == "text.vocab_size":
        fix = "a nat per token of one tokenizer is not that of another; sweep within one vocabulary"
        raise UsageError("usage.bad-value", f"--set {key}", fix)
    option = f"--set {key}"
    typed = dict.fromkeys(_typed(part) for part in _split(option, values))
    return Axis(name=key, option=option, keys=(key,), values=tuple(typed))


def _split(option: str, text: str) -> tuple[str, ...]:
    parts = tuple(part.strip() for part in text.split(","))
    if not all(parts):
        raise UsageError("usage.empty-grid", f"{option} {text!r} has an empty value", "give values with commas between")
    return tuple(dict.fromkeys(parts))


def _typed(text: str) -> Value:
    """A number or truth value as TOML writes it; anything else is text."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    return value if isinstance(value, int | float | str | bool) else text


def _replaced(file: RunFile, axes: Sequence[Axis], values: Mapping[str, Value]) -> dict[str, Any]:
    """The file's body with a cell's values in it, outer keys before the keys inside them."""
    body = dict(file.body)
    for axis in sorted(axes, key=lambda axis: axis.keys[0].count(".")):
        for key in axis.keys:
            _put(body, key, key.split("."), values[axis.name])
    spec = replace(file, body=body).canonical(UNKNOWN_DIGEST)
    if isinstance(spec, SmallTalkSpec):
        body["search"] = _grid_of_one(spec)
    base = file.canonical(UNKNOWN_DIGEST)
    if isinstance(spec, SingleSpec) and isinstance(base, SingleSpec):
        body["training"] = {**body.get("training", {}), "steps": _same_rows(base, spec)}
    return body


def _put(body: dict[str, Any], key: str, path: Sequence[str], value: Value) -> None:
    if key == "optimizer":
        before = body.get("optimizer", {})
        if before.get("name", "adamw") != value:
            before = {name: before[name] for name in SHARED_BY_OPTIMIZERS if name in before}
        body["optimizer"] = {**before, "name": value}
        return
    for part in path[:-1]:
        inner = body.get(part, {})
        if not isinstance(inner, Mapping):
            raise SpecError("spec.unknown-key", f"unknown key {key}", f"{part} has no keys inside")
        body[part] = dict(inner)
        body = body[part]
    body[path[-1]] = value


def _grid_of_one(spec: SmallTalkSpec) -> dict[str, Any]:
    """The search that tables the valid NLL of both sides at the cell's own values. Equal tokens need nothing: the
    experts' are counted in rows, and the twin's follow from FLOPs.

    Raises:
        SpecError: ``spec.bad-value``, the file has a search of its own.
    """
    if spec.search.mode == "grid":
        fix = "set search.mode to none: the sweep is the search, and each cell would make one more"
        raise SpecError("spec.bad-value", 'search.mode = "grid" in a sweep', fix)
    sides: dict[str, ExpertSpec | DenseSpec] = {"expert": spec.experts, "dense": spec.dense}
    batches = {f"{side}_batch": [how.batch_size] for side, how in sides.items()}
    rates = {f"{side}_learning_rate": [how.learning_rate] for side, how in sides.items()}
    return {"mode": "grid", **batches, **rates}


def _same_rows(base: SingleSpec, spec: SingleSpec) -> int:
    """Steps in which a cell's batch size reads the rows that as many steps of the file's batch size would.

    Raises:
        SpecError: ``spec.bad-value``, no whole number of steps does.
    """
    rows, batch = spec.training.steps * base.training.batch_size, spec.training.batch_size
    if rows % batch:
        what = f"training.batch_size = {batch} does not divide {rows} rows, {spec.training.steps} steps of the file's"
        grain = batch // math.gcd(batch, base.training.batch_size)
        raise SpecError("spec.bad-value", what, f"make training.steps a multiple of {grain}, or take another batch")
    return rows // batch
