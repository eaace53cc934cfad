"""Text one token at a time, of one prompt or of many at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from potluck.errors import UsageError
from potluck.lm.config import ModelConfig
from potluck.lm.decoding import BatchDecoder, Window
from potluck.lm.documents import EOD
from potluck.lm.model import Decoder


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    max_tokens: int
    temperature: float = 0.0
    """0 takes the likeliest token; else logits are divided by it."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float = 1.0
    """Then keep the fewest likeliest tokens whose probabilities reach p."""
    seed: int = 0

    def __post_init__(self) -> None:
        checks = {
            "max_tokens": (self.max_tokens >= 1, "1 or more"),
            "temperature": (self.temperature >= 0, "0 or more"),
            "top_k": (self.top_k >= 0, "0 (all) or more"),
            "top_p": (0 < self.top_p <= 1, "above 0, at most 1"),
        }
        for name, (ok, allowed) in checks.items():
            if not ok:
                raise UsageError("usage.bad-sampling", f"{name} = {getattr(self, name)}", f"allowed: {allowed}")


def generate(model: Decoder, ids: Sequence[int], params: SamplingParams, *, eod: int = EOD) -> Iterator[int]:
    """Yields the continuation of a prompt, token by token, at most `params.max_tokens`.

    The model sees at most `config.context - 1` tokens, as many as in training. Whenever there would be
    more, prompt included, the window is cut to the last half of that and its keys and values are
    computed anew from position 0. Stops after `eod`, which is yielded too.

    Raises:
        UsageError: ``usage.empty-prompt``.
    """
    text = Continuation(model.config, ids, params, eod=eod)
    return _tokens(BatchDecoder(model, slots=1), text)


def generate_batch(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams | Sequence[SamplingParams],
    *,
    eod: int = EOD,
    slots: int = 0,
) -> list[list[int]]:
    """The continuations that `generate` yields, of many prompts, by one forward a step for all that go on.

    Args:
        params: for all prompts, or one for each.
        slots: prompts worked at once, `BatchDecoder`'s default if 0; the next starts when one has ended.

    Raises:
        UsageError: ``usage.empty-prompt``.
        ValueError: there are not as many params as prompts.
    """
    each = [params] * len(prompts) if isinstance(params, SamplingParams) else params
    texts = [Continuation(model.config, ids, p, eod=eod) for ids, p in zip(prompts, each, strict=True)]
    found: list[list[int]] = [[] for _ in texts]
    decoder = BatchDecoder(model, slots)
    waiting = deque(enumerate(texts))
    active: list[tuple[int, Continuation]] = []
    while waiting or active:
        while waiting and len(active) < decoder.slots:
            active.append(waiting.popleft())
        for (i, text), logits in zip(active, decoder.logits([text.window for _, text in active]), strict=True):
            found[i].append(text.take(logits))
            if text.finish:
                decoder.leave(text.window)
        active = [(i, text) for i, text in active if not text.finish]
    return found


class Continuation:
    """One text being continued; its tokens are drawn by a generator of its own."""

    def __init__(self, config: ModelConfig, ids: Sequence[int], params: SamplingParams, *, eod: int = EOD) -> None:
        """
        Raises:
            UsageError: ``usage.empty-prompt``.
        """
        self.window = Window(config, ids)
        self.finish = ""
        """`eod` or `length` once the last token is taken."""
        self._params = params
        self._eod = eod
        self._generator = torch.Generator().manual_seed(params.seed)
        self._num_left = params.max_tokens

    def take(self, logits: Tensor) -> int:
        """The next token, from the [vocab] logits of what follows the window; the window then ends with it."""
        token = choose_token(logits, self._params, self._generator)
        self._num_left -= 1
        if token == self._eod:
            self.finish = "eod"
        elif not self._num_left:
            self.finish = "length"
        else:
            self.window.append(token)
        return token


def choose_token(logits: Tensor, params: SamplingParams, generator: torch.Generator) -> int:
    """Picks a token from [vocab] logits; ties of the likeliest go to the lower token.

    Chance falls on tokens in the order of the vocabulary, not of their likelihood, so that rounding which swaps two
    equally likely tokens changes no draw.
    """
    if params.temperature == 0:
        return int(logits.argmax())
    scaled = logits.float() / params.temperature
    if not params.top_k and params.top_p == 1:
        return int(torch.multinomial(torch.softmax(scaled, 0), 1, generator=generator))
    ordered, tokens = torch.sort(scaled, descending=True, stable=True)
    if params.top_k:
        ordered, tokens = ordered[: params.top_k], tokens[: params.top_k]
    probabilities = torch.softmax(ordered, 0)
    before = probabilities.cumsum(0) - probabilities
    chances = torch.zeros_like(scaled).index_copy_(0, tokens, probabilities * (before < params.top_p))
    return int(torch.multinomial(chances, 1, generator=generator))


def _tokens(decoder: BatchDecoder, text: Continuation) -> Iterator[int]:
    while not text.finish:
        yield text.take(decoder.logits([text.window])[0])
