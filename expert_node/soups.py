"""Soups in the serving child (2502.01804): the banks, and the models made of them on request, kept for the next."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potluck.config import from_mapping
from potluck.errors import PotluckError, Refused, ResourceError
from potluck.formatting import human_bytes
from potluck.ids import Digest, digest_bytes, digest_json
from potluck.lm.config import ModelConfig
from potluck.lm.memory import FLOAT_BYTES
from potluck.lm.soup_config import SoupConfig
from potluck.lm.soup_memory import making_bytes, soup_serving_bytes
from potluck.soup_names import SUM_TOLERANCE, Shares

if TYPE_CHECKING:
    from potluck.lm.model import Decoder
    from potluck.lm.soup import Soup

NO_MEMORY = "resource.memory"
MAX_MADE = 16
"""Models of soups kept at a time: texts of different models share no forward, so more would each get a small part of
the child's one thread."""
MAX_MADE_BYTES = 1 << 30
"""Of their weights together, unless a single one is larger: they lie beside banks, experts, and what is trained."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Made:
    """One model of a soup."""

    key: str
    """Digest of the soup's weights and of the mixture."""
    decoder: Decoder
    coefficients: tuple[float, ...]
    """phi(h), one for each of the soup's experts."""
    build_ms: float

    @property
    def size(self) -> int:
        """Bytes of its weights."""
        return FLOAT_BYTES * self.decoder.config.num_parameters

    @cached_property
    def digest(self) -> Digest:
        """Of the safetensors file of its weights, which the task `fit`/`instantiate` writes."""
        from safetensors.torch import save

        return digest_bytes(save({name: p.detach() for name, p in self.decoder.named_parameters()}))


class Soups:
    """Banks by the digest of their weights; of the models made of them the least recently used goes first."""

    def __init__(
        self,
        *,
        available_bytes: Callable[[], int],
        max_made: int = MAX_MADE,
        max_made_bytes: int = MAX_MADE_BYTES,
    ) -> None:
        """
        Args:
            available_bytes: of this machine's memory, now.
        """
        self._available_bytes = available_bytes
        self._max_made = max_made
        self._max_made_bytes = max_made_bytes
        self._banks: dict[str, Soup] = {}
        self._made: dict[str, Made] = {}
        """By use, the latest last."""

    def load(self, weights: str, shape: Mapping[str, Any], path: Path) -> None:
        """Takes a soup into memory.

        Args:
            shape: `model` and `soup`, their configs.

        Raises:
            ResourceError: ``resource.memory``: there is no room for the bank and one model made of it.
            DataError: ``data.wrong-weights``, ``data.bad-tensors``.
        """
        model, config = from_mapping(ModelConfig, shape["model"]), from_mapping(SoupConfig, shape["soup"])
        self._check_memory(f"a soup of {config.experts} experts", soup_serving_bytes(model, config))
        from potluck.lm.soup import load_soup

        self._banks[weights] = load_soup(model, config, path)

    def unload(self, weights: str) -> None:
        """Lets a bank go, and what was made of it; texts under way end with the model they began with."""
        if self._banks.pop(weights, None) is not None:
            self._made = {key: made for key, made in self._made.items() if not key.startswith(weights)}

    def __contains__(self, weights: str) -> bool:
        return weights in self._banks

    def mixture(self, weights: str, listed: list[list[float]]) -> Shares:
        """A request's mixture in the one form that it has.

        Raises:
            Refused: ``refused.not-served``: the bank is not here; ``refused.bad-mixture``: it is none of this soup.
        """
        num_domains = self._bank(weights).config.domains
        shares = {int(domain): float(weight) for domain, weight in listed if weight != 0}
        sound = all(0 <= domain < num_domains and 0 < weight <= 1 for domain, weight in shares.items())
        total = math.fsum(shares.values()) if sound else math.nan
        if len({domain for domain, _ in listed}) < len(listed) or not abs(total - 1) <= SUM_TOLERANCE:
            what = f"{len(listed)} weights that sum to {total} over {num_domains} domains are no mixture of this soup"
            raise Refused("refused.bad-mixture", what, "give each domain once, and weights that sum to one")
        return tuple(sorted(shares.items()))

    def find(self, weights: str, mixture: Shares) -> Made | None:
        """What was made before, and is now the latest used."""
        key = _key(weights, mixture)
        if (made := self._made.pop(key, None)) is not None:
            self._made[key] = made
        return made

    def make(self, weights: str, mixture: Shares, *, in_use: Collection[str]) -> Made:
        """theta(h), as a model to decode with. Blocks for a pass over the bank.

        Args:
            in_use: keys of models that texts are being worked with; they stay.

        Raises:
            Refused: ``refused.not-served``.
            ResourceError: ``resource.busy``: all the room is in use; ``resource.memory``.
        """
        import torch

        from potluck.lm.model import Decoder

        soup = self._bank(weights)
        self._make_room(soup.model, in_use)
        began = time.perf_counter()
        h = torch.zeros(soup.config.domains)
        for domain, weight in mixture:
            h[domain] = weight
        decoder = Decoder(soup.model)
        # Copied to the model's own, aligned memory, as the weights of any other model are.
        decoder.load_state_dict(soup.instantiate(h))
        with torch.no_grad():
            coefficients = tuple(soup.phi(h.unsqueeze(0))[0].tolist())
        made = Made(
            key=_key(weights, mixture),
            decoder=decoder.eval(),
            coefficients=coefficients,
            build_ms=(time.perf_counter() - began) * 1e3,
        )
        self._made[made.key] = made
        return made

    def _bank(self, weights: str) -> Soup:
        if (soup := self._banks.get(weights)) is None:
            raise Refused("refused.not-served", f"soup {weights[:12]} is not served here", "try another replica")
        return soup

    def _make_room(self, model: ModelConfig, in_use: Collection[str]) -> None:
        size = FLOAT_BYTES * model.num_parameters
        idle = [key for key in self._made if key not in in_use]
        while (lacking := self._lacking(size, model)) is not None and self._made:
            if not idle:
                raise lacking
            del self._made[idle.pop(0)]
        if lacking is not None:
            raise lacking

    def _lacking(self, size: int, model: ModelConfig) -> PotluckError | None:
        """Why one more model of that many bytes cannot be kept; a first one always may if there is memory."""
        full = len(self._made) >= self._max_made
        full = full or (bool(self._made) and size + sum(m.size for m in self._made.values()) > self._max_made_bytes)
        if full:
            what = f"the {len(self._made)} models of soups that this node keeps are all in use"
            return ResourceError("resource.busy", what, "try again shortly, or have more nodes serve the soup")
        try:
            self._check_memory("one more model of the soup", making_bytes(model))
        except ResourceError as error:
            return error
        return None

    def _check_memory(self, what: str, needed: int) -> None:
        if needed > (available := self._available_bytes()):
            message = f"{what} takes {human_bytes(needed)} of memory, and {human_bytes(available)} are available"
            raise ResourceError(NO_MEMORY, message, "have a node with more memory serve it")


def _key(weights: str, mixture: Shares) -> str:
    return f"{weights}/{digest_json(mixture)}"
