"""The spec of a run that trains nothing: models that other runs made, on the same held-out rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from potluck.ids import Digest, is_digest
from potluck.lm.config import ModelConfig
from potluck.specs.sections import CommonSpec, require


@dataclass(frozen=True, kw_only=True)
class Contestant:
    name: str
    weights: Digest
    model: ModelConfig
    """As the finished run's `made` has both."""

    def __post_init__(self) -> None:
        require(bool(self.name), "models.name", self.name, "a name")
        require(is_digest(self.weights), f"models.{self.name}.weights", self.weights, "a digest")


@dataclass(frozen=True, kw_only=True)
class ContestSpec(CommonSpec):
    """With the text and evaluation settings of the runs that made the models, it scores as they did."""

    method: Literal["contest"]
    tokens: Digest
    """The rows' manifest, as the runs' `made` has it: all models were trained on rows of one tokenizer."""
    split: Literal["valid", "test"] = "test"
    models: tuple[Contestant, ...]
    pairs: tuple[tuple[str, ...], ...] = ()
    """Names to compare, the first minus the second."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(is_digest(self.tokens), "tokens", self.tokens, "a digest")
        names = [each.name for each in self.models]
        require(bool(names) and len(set(names)) == len(names), "models", names, "one or more, each name once")
        for pair in self.pairs:
            require(len(pair) == 2 and set(pair) <= set(names), "pairs", list(pair), f"two of {', '.join(names)}")
        for each in self.models:
            fits = (each.model.context, each.model.vocab) == (self.text.sequence_length + 1, self.text.vocab_size)
            allowed = "models of text.vocab_size and text.sequence_length"
            require(fits, f"models.{each.name}.model", (each.model.vocab, each.model.context), allowed)

    @property
    def digests(self) -> tuple[Digest, ...]:
        """Every blob that it names."""
        return (self.tokens, *(each.weights for each in self.models))

    def resolved(self) -> ContestSpec:
        return self
