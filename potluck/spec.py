"""The run spec: what a person writes in TOML, what the canonical form adds, and its digest.

The canonical spec holds the digest of the corpus manifest and every default; name and priority stay
outside. Starting the same canonical spec again resumes the run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from potluck.config import added, from_mapping, to_mapping
from potluck.errors import SpecError
from potluck.ids import Digest, RunId, canonical_json, digest_json
from potluck.lm.config import PRESETS, ModelConfig
from potluck.recipe import AdamWConfig, OptimizerConfig, Profile

SPEC_VERSION = 1
MAX_EXPERTS = 256


def _require(ok: bool, key: str, value: object, allowed: str) -> None:
    if not ok:
        raise SpecError("spec.bad-value", f"{key} = {value!r}", f"allowed: {allowed}")


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Either a preset's name or all four numbers; the canonical form has the numbers."""

    preset: str = ""
    hidden: int = 0
    layers: int = 0
    heads: int = 0
    ffn: int = 0

    def resolved(self, where: str) -> ModelShape:
        """Fills the numbers from the preset and forgets its name."""
        if self.preset:
            _require(self.preset in PRESETS, f"{where}.preset", self.preset, ", ".join(PRESETS))
            p = PRESETS[self.preset]
            return ModelShape(hidden=p.hidden, layers=p.layers, heads=p.heads, ffn=p.ffn)
        for name in ("hidden", "layers", "heads", "ffn"):
            _require(getattr(self, name) > 0, f"{where}.{name}", getattr(self, name), "1 or more, or give a preset")
        if self.hidden % (2 * self.heads):
            what = f"{where}.hidden = {self.hidden} with {where}.heads = {self.heads}"
            raise SpecError("spec.bad-value", what, "hidden must be a multiple of 2 x heads, for rotary pairs")
        return self

    def config(self, *, vocab: int, context: int, attention: Literal["row", "document"] = "row") -> ModelConfig:
        return ModelConfig(
            vocab=vocab,
            hidden=self.hidden,
            layers=self.layers,
            heads=self.heads,
            ffn=self.ffn,
            context=context,
            attention=attention,
        )


@dataclass(frozen=True, kw_only=True)
class TextSpec:
    vocab_size: int = 1024
    sequence_length: int = 128
    """S: a row has S+1 tokens and S targets."""
    prefix_length: int = 32
    """M: the tokens a routing decision sees."""
    packing: Literal["document", "shuffled"] = "document"
    attention: Literal["row", "document"] = added("row")
    """`document`: a token of a row sees only its own document."""

    def __post_init__(self) -> None:
        _require(260 <= self.vocab_size <= 65_536, "text.vocab_size", self.vocab_size, "260 to 65536")
        _require(8 <= self.sequence_length <= 8192, "text.sequence_length", self.sequence_length, "8 to 8192")
        ok = 2 <= self.prefix_length < self.sequence_length
        _require(ok, "text.prefix_length", self.prefix_length, "2 to sequence_length - 1")


@dataclass(frozen=True, kw_only=True)
class RouterSpec:
    """EM over tiny language models (2410.03529, algorithm 1)."""

    model: ModelShape = field(default_factory=lambda: ModelShape(preset="router-24"))
    rounds: int = 8
    chunk_sequences: int = 2048
    """N: fresh rows a round, over all routers."""
    batch_size: int = 16
    learning_rate: float = 3e-3
    warmup_fraction: float = 0.05
    score_batch: int = 16

    def __post_init__(self) -> None:
        _require(self.rounds >= 1, "routers.rounds", self.rounds, "1 or more")
        _require(0 < self.learning_rate < math.inf, "routers.learning_rate", self.learning_rate, "above 0, finite")
        _require(self.batch_size >= 1, "routers.batch_size", self.batch_size, "1 or more")
        _require(self.score_batch >= 1, "routers.score_batch", self.score_batch, "1 or more")
        _require(0 <= self.warmup_fraction < 1, "routers.warmup_fraction", self.warmup_fraction, "[0, 1)")


@dataclass(frozen=True, kw_only=True)
class ExpertSpec:
    model: ModelShape = field(default_factory=lambda: ModelShape(preset="0.08M"))
    num: int = 4
    chunks: int = 4
    """Segments of each expert; routers score one chunk at a time, so experts start after the first."""
    chunk_sequences: int = 16_384
    """Rows of a chunk, over all experts."""
    batch_size: int = 16
    learning_rate: float = 3e-3
    warmup_fraction: float = 0.05
    final_fraction: float = 0.1

    def __post_init__(self) -> None:
        _require(2 <= self.num <= MAX_EXPERTS, "experts.num", self.num, f"2 to {MAX_EXPERTS}")
        _require(self.chunks >= 1, "experts.chunks", self.chunks, "1 or more")
        _require(self.batch_size >= 1, "experts.batch_size", self.batch_size, "1 or more")
        _require(0 < self.learning_rate < math.inf, "experts.learning_rate", self.learning_rate, "above 0, finite")
        _require(0 <= self.warmup_fraction < 1, "experts.warmup_fraction", self.warmup_fraction, "[0, 1)")
        _require(0 <= self.final_fraction <= 1, "experts.final_fraction", self.final_fraction, "[0, 1]")
        per_step = self.num * self.batch_size
        ok = self.chunk_sequences > 0 and self.chunk_sequences % per_step == 0
        _require(ok, "experts.chunk_sequences", self.chunk_sequences, f"a multiple of num x batch_size = {per_step}")


@dataclass(frozen=True, kw_only=True)
class DenseSpec:
    """The opponent: one expert's size, all the mixture's FLOPs; its steps follow from them."""

    enabled: bool = True
    batch_size: int = 32
    learning_rate: float = 3e-3
    warmup_fraction: float = 0.05
    final_fraction: float = 0.1

    def __post_init__(self) -> None:
        _require(self.batch_size >= 1, "dense.batch_size", self.batch_size, "1 or more")
        _require(0 < self.learning_rate < math.inf, "dense.learning_rate", self.learning_rate, "above 0, finite")
        _require(0 <= self.warmup_fraction < 1, "dense.warmup_fraction", self.warmup_fraction, "[0, 1)")
        _require(0 <= self.final_fraction <= 1, "dense.final_fraction", self.final_fraction, "[0, 1]")


@dataclass(frozen=True, kw_only=True)
class ControlSpec:
    random_split: Literal["none", "one", "all"] = "one"
    """Experts on random equal shares: exchangeable, so one may stand for all."""


@dataclass(frozen=True, kw_only=True)
class SearchSpec:
    """How batch and learning rate were chosen, for both sides alike.

    `none`: they were not. `recorded`: `table` names a committed table that chose them.
    `grid`: every (batch, rate) cell of both sides is trained as ordinary lineages, the best by
    validation NLL is taken, and tables report test.
    """

    mode: Literal["none", "recorded", "grid"] = "none"
    table: str = ""
    dense_batch: tuple[int, ...] = ()
    dense_learning_rate: tuple[float, ...] = ()
    expert_batch: tuple[int, ...] = ()
    expert_learning_rate: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        lists = ("dense_batch", "dense_learning_rate", "expert_batch", "expert_learning_rate")
        if self.mode == "grid":
            for name in lists:
                values = getattr(self, name)
                ok = bool(values) and all(0 < value < math.inf for value in values)
                _require(ok, f"search.{name}", list(values), "a list of positive, finite numbers")
        if self.mode == "recorded":
            _require(bool(self.table), "search.table", self.table, "the path of a committed search table")


@dataclass(frozen=True, kw_only=True)
class EvalSpec:
    batch_size: int = 16
    bootstrap_samples: int = 2000
    confidence: float = 0.95
    probe_rows: int = 64
    publish_dense: bool = True

    def __post_init__(self) -> None:
        _require(self.batch_size >= 1, "evaluation.batch_size", self.batch_size, "1 or more")
        _require(self.probe_rows >= 1, "evaluation.probe_rows", self.probe_rows, "1 or more")
        _require(0.5 < self.confidence < 1, "evaluation.confidence", self.confidence, "between 0.5 and 1")
        _require(self.bootstrap_samples >= 100, "evaluation.bootstrap_samples", self.bootstrap_samples, "100 or more")


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    corpus: Digest
    """Digest of the corpus manifest; `run start` fills it in."""
    method: Literal["smalltalk"] = "smalltalk"
    seed: int = 0
    text: TextSpec = field(default_factory=TextSpec)
    routers: RouterSpec = field(default_factory=RouterSpec)
    experts: ExpertSpec = field(default_factory=ExpertSpec)
    dense: DenseSpec = field(default_factory=DenseSpec)
    controls: ControlSpec = field(default_factory=ControlSpec)
    search: SearchSpec = field(default_factory=SearchSpec)
    optimizer: OptimizerConfig = field(default_factory=AdamWConfig)
    profile: Profile = field(default_factory=Profile)
    evaluation: EvalSpec = field(default_factory=EvalSpec)
    bytes_per_token: float = 64.0
    """Commit budget: checkpoint bytes per trained token (design, section 13)."""
    memory_mib: int = added(0)
    """Memory a training step may take: micro-batch and activation checkpointing are chosen to fit. 0: no bound."""
    spec_version: int = SPEC_VERSION

    def __post_init__(self) -> None:
        _require(self.spec_version == SPEC_VERSION, "spec_version", self.spec_version, str(SPEC_VERSION))
        _require(self.memory_mib >= 0, "memory_mib", self.memory_mib, "0 (no bound) or more")
        _require(0 < self.bytes_per_token < math.inf, "bytes_per_token", self.bytes_per_token, "above 0, finite")
        per_round = self.experts.num * self.routers.batch_size
        ok = self.routers.chunk_sequences > 0 and self.routers.chunk_sequences % per_round == 0
        allowed = f"a multiple of experts.num x routers.batch_size = {per_round}"
        _require(ok, "routers.chunk_sequences", self.routers.chunk_sequences, allowed)
        for batch in self.search.expert_batch if self.search.mode == "grid" else ():
            step = self.experts.num * batch
            ok = self.experts.chunk_sequences % step == 0
            _require(ok, "search.expert_batch", batch, f"{step} must divide experts.chunk_sequences")

    @property
    def id(self) -> RunId:
        return RunId(digest_json(to_mapping(self)))

    def to_json(self) -> str:
        return canonical_json(to_mapping(self))

    @staticmethod
    def from_json(text: str) -> RunSpec:
        return from_mapping(RunSpec, json.loads(text))

    def expert_model(self) -> ModelConfig:
        return self.experts.model.config(
            vocab=self.text.vocab_size, context=self.text.sequence_length + 1, attention=self.text.attention
        )

    def router_model(self) -> ModelConfig:
        return self.routers.model.config(
            vocab=self.text.vocab_size, context=self.text.prefix_length, attention=self.text.attention
        )


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
        spec = from_mapping(RunSpec, {**self.body, "corpus": corpus})
        return replace(
            spec,
            routers=replace(spec.routers, model=spec.routers.model.resolved("routers.model")),
            experts=replace(spec.experts, model=spec.experts.model.resolved("experts.model")),
        )


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
    _require(isinstance(data, str) and bool(data), "data", data, 'a folder or file of text, or "demo"')
    _require(isinstance(name, str) and 0 < len(name) <= 64, "name", name, "1 to 64 characters")
    _require(isinstance(priority, int), "priority", priority, "an integer")
    if "corpus" in body:
        raise SpecError("spec.unknown-key", "unknown key corpus", 'write data = "folder"; the digest is computed')
    allowed = {item.name for item in fields(RunSpec)} - {"corpus"}
    for key in body:
        if key not in allowed:
            fix = f"allowed here: {', '.join(sorted(allowed | {'data', 'name', 'priority'}))}"
            raise SpecError("spec.unknown-key", f"unknown key {key}", fix)
    file = RunFile(data=data, name=name, priority=priority, body=body)
    file.canonical(Digest("0" * 64))
    return file
