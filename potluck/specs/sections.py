"""Parts that every method's spec has: shapes, text, evaluation, and the fields common to all runs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from potluck.config import added, to_mapping
from potluck.errors import SpecError
from potluck.ids import Digest, RunId, canonical_json, digest_json
from potluck.lm.config import PRESETS, ModelConfig
from potluck.lm.memory import MIB, fit_to_memory, predict_lease_bytes
from potluck.recipe import AdamWConfig, OptimizerConfig, Profile

SPEC_VERSION = 1


def require(ok: bool, key: str, value: object, allowed: str) -> None:
    if not ok:
        raise SpecError("spec.bad-value", f"{key} = {value!r}", f"allowed: {allowed}")


def require_rates(
    section: str, *, batch_size: int, learning_rate: float, warmup_fraction: float = 0.0, final_fraction: float = 0.0
) -> None:
    """Refuses a batch and a schedule that train nothing; `section` is where a spec has them."""
    require(batch_size >= 1, f"{section}.batch_size", batch_size, "1 or more")
    require(0 < learning_rate < math.inf, f"{section}.learning_rate", learning_rate, "above 0, finite")
    require(0 <= warmup_fraction < 1, f"{section}.warmup_fraction", warmup_fraction, "[0, 1)")
    require(0 <= final_fraction <= 1, f"{section}.final_fraction", final_fraction, "[0, 1]")


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
            require(self.preset in PRESETS, f"{where}.preset", self.preset, ", ".join(PRESETS))
            p = PRESETS[self.preset]
            return ModelShape(hidden=p.hidden, layers=p.layers, heads=p.heads, ffn=p.ffn)
        for name in ("hidden", "layers", "heads", "ffn"):
            require(getattr(self, name) > 0, f"{where}.{name}", getattr(self, name), "1 or more, or give a preset")
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
        require(260 <= self.vocab_size <= 65_536, "text.vocab_size", self.vocab_size, "260 to 65536")
        require(8 <= self.sequence_length <= 8192, "text.sequence_length", self.sequence_length, "8 to 8192")
        ok = 2 <= self.prefix_length < self.sequence_length
        require(ok, "text.prefix_length", self.prefix_length, "2 to sequence_length - 1")


@dataclass(frozen=True, kw_only=True)
class EvalSpec:
    batch_size: int = 16
    bootstrap_samples: int = 2000
    confidence: float = 0.95
    probe_rows: int = 64
    publish_dense: bool = True

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, "evaluation.batch_size", self.batch_size, "1 or more")
        require(self.probe_rows >= 1, "evaluation.probe_rows", self.probe_rows, "1 or more")
        require(0.5 < self.confidence < 1, "evaluation.confidence", self.confidence, "between 0.5 and 1")
        require(self.bootstrap_samples >= 100, "evaluation.bootstrap_samples", self.bootstrap_samples, "100 or more")


@dataclass(frozen=True, kw_only=True)
class CommonSpec:
    """What a run of any method has."""

    corpus: Digest
    """Digest of the corpus manifest; `run start` fills it in."""
    seed: int = 0
    text: TextSpec = field(default_factory=TextSpec)
    optimizer: OptimizerConfig = field(default_factory=AdamWConfig)
    profile: Profile = field(default_factory=Profile)
    evaluation: EvalSpec = field(default_factory=EvalSpec)
    bytes_per_token: float = 64.0
    """Commit budget: checkpoint bytes per trained token (design, section 13)."""
    memory_mib: int = added(0)
    """Memory a training step may take: micro-batch and activation checkpointing are chosen to fit. 0: no bound."""
    spec_version: int = SPEC_VERSION

    def __post_init__(self) -> None:
        require(self.spec_version == SPEC_VERSION, "spec_version", self.spec_version, str(SPEC_VERSION))
        require(self.memory_mib >= 0, "memory_mib", self.memory_mib, "0 (no bound) or more")
        chosen = self.memory_mib and (self.profile.micro_batch or self.profile.activation_checkpointing)
        allowed = "0 beside profile.micro_batch or profile.activation_checkpointing, which it would choose"
        require(not chosen, "memory_mib", self.memory_mib, allowed)
        require(0 < self.bytes_per_token < math.inf, "bytes_per_token", self.bytes_per_token, "above 0, finite")

    @property
    def id(self) -> RunId:
        return RunId(digest_json(to_mapping(self)))

    def to_json(self) -> str:
        return canonical_json(to_mapping(self))

    def profile_for(self, model: ModelConfig, *, batch_size: int, sequence: int) -> Profile:
        """The profile of one lineage: the run's, whose micro-batch and checkpointing `memory_mib` chooses, if given.

        Raises:
            SpecError: ``spec.memory-too-small``, one row at a time does not fit.
        """
        if not self.memory_mib:
            return self.profile
        fit = fit_to_memory(
            model,
            batch_size=batch_size,
            sequence=sequence,
            budget_bytes=self.memory_mib * MIB,
            optimizer=self.optimizer,
            profile=self.profile,
        )
        return replace(self.profile, micro_batch=fit.micro_batch, activation_checkpointing=fit.activation_checkpointing)

    def memory_for(self, model: ModelConfig, *, batch_size: int, sequence: int) -> int:
        """Predicted peak bytes of one lineage on a node, beyond the program itself."""
        profile = self.profile_for(model, batch_size=batch_size, sequence=sequence)
        return predict_lease_bytes(
            model, batch_size=batch_size, sequence=sequence, profile=profile, optimizer=self.optimizer
        )
