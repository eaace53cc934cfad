"""The spec of a run that trains nothing: models of another run answer multiple-choice questions by likelihood."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from potluck.ids import Digest, is_digest
from potluck.lm.config import ModelConfig
from potluck.specs.contest import Contestant
from potluck.specs.sections import CommonSpec, require

MIXTURE = "mixture"


@dataclass(frozen=True, kw_only=True)
class RoutedExperts:
    """A SmallTalk mixture: the router that likes a context's prefix best names the expert that answers."""

    routers: tuple[Digest, ...]
    router_model: ModelConfig
    experts: tuple[Digest, ...]
    """Weights, in the routers' order."""
    expert_model: ModelConfig

    def __post_init__(self) -> None:
        count = len(self.routers)
        require(0 < count == len(self.experts), "mixture.experts", len(self.experts), f"{count}, one a router")
        named = [*self.routers, *self.experts]
        require(all(map(is_digest, named)), "mixture", named, "digests")


@dataclass(frozen=True, kw_only=True)
class ChoicesSpec(CommonSpec):
    """`corpus` is empty; text, profile and evaluation are those of the run that made the models."""

    method: Literal["choices"]
    items: Digest
    """The questions, as `potluck.choices.items_text` writes them."""
    tokenizer: Digest
    models: tuple[Contestant, ...] = ()
    """The first of all, or the mixture if there is one, is compared with each other."""
    mixture: RoutedExperts | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("items", "tokenizer"):
            require(is_digest(getattr(self, name)), name, getattr(self, name), "a digest")
        names = self.names
        require(0 < len(names) == len(set(names)), "models", names, "one or more, each name once")
        shapes = [(each.name, each.model) for each in self.models]
        shapes += [(MIXTURE, self.mixture.expert_model)] if self.mixture is not None else []
        for name, model in shapes:
            fits = (model.context, model.vocab) == (self.text.sequence_length + 1, self.text.vocab_size)
            allowed = "models of text.vocab_size and text.sequence_length"
            require(fits, f"models.{name}", (model.vocab, model.context), allowed)

    @property
    def names(self) -> list[str]:
        """Of all models, the mixture first."""
        return [*([MIXTURE] if self.mixture is not None else []), *(each.name for each in self.models)]

    @property
    def digests(self) -> tuple[Digest, ...]:
        """Every blob that it names."""
        routed = () if self.mixture is None else (*self.mixture.routers, *self.mixture.experts)
        return (self.items, self.tokenizer, *(each.weights for each in self.models), *routed)

    def resolved(self) -> ChoicesSpec:
        return self
