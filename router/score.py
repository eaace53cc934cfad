"""What a router holds in memory of one view: the tokenizer, and what decides, such as all router LMs in one forward.

Everything here blocks and belongs into an executor thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from potluck.errors import DataError, UsageError
from potluck.ids import Digest
from router.choose import Decision, choose
from router.detokenise import TextStream, token_bytes
from router.view import View

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from potluck.lm.score import StackedDecoders

EOD = 0
"""`<eod>` ends each document; there is no BOS."""


class Judge(Protocol):
    """Decides for a prefix of one token or more."""

    def decide(self, prefix: list[int]) -> Decision: ...


class Scorer:
    """One view's tokenizer and judge, in memory."""

    def __init__(self, view: View, tokenizer: Tokenizer, judge: Judge) -> None:
        self._view = view
        self._tokenizer = tokenizer
        self._judge = judge
        vocab = view.expert_model.vocab
        tokens = [tokenizer.id_to_token(i) or "" for i in range(min(vocab, tokenizer.get_vocab_size()))]
        special = frozenset(tokenizer.get_added_tokens_decoder()) | {EOD}
        try:
            table = token_bytes(tokens, special)
        except (KeyError, TypeError) as error:
            what = f"tokenizer {view.tokenizer[:12]} has token {error} outside the byte alphabet"
            raise DataError("data.bad-tokenizer", what, "use a byte-level BPE") from None
        self._bytes = table + (b"",) * (vocab - len(table))

    @staticmethod
    def load(view: View, path_of: Callable[[Digest], Path]) -> Scorer:
        """Loads what the view names; every blob is on disk already.

        Raises:
            DataError: a blob is no tokenizer or no weights of the view's router model.
        """
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_file(str(path_of(view.tokenizer)))
        except Exception as error:  # the library raises bare Exception
            raise DataError("data.bad-tokenizer", f"tokenizer {view.tokenizer[:12]}: {error}", "") from error
        judge = OneModel() if view.route_by == "one" else RouterModels.load(view, path_of)
        return Scorer(view, tokenizer, judge)

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of a text, without any `<eod>`."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def check(self, ids: Sequence[int]) -> None:
        """Refuses ids outside the vocabulary.

        Raises:
            UsageError: ``usage.bad-token``.
        """
        vocab = self._view.expert_model.vocab
        if ids and (worst := max(ids)) >= vocab:
            fix = f"this run's tokenizer has ids 0 to {vocab - 1}"
            raise UsageError("usage.bad-token", f"token id {worst} is outside the vocabulary", fix)

    def decide(self, ids: Sequence[int]) -> Decision:
        """The expert by the first M tokens; a text shorter than that is judged on what there is."""
        return self._judge.decide(list(ids[: self._view.prefix_length]))

    def text_stream(self) -> TextStream:
        return TextStream(self._bytes)


class OneModel:
    """Nothing to decide."""

    def decide(self, prefix: list[int]) -> Decision:
        return Decision(expert=0)


class RouterModels:
    """The router LM of each expert; the least mean NLL wins."""

    def __init__(self, stacked: StackedDecoders, num_experts: int) -> None:
        self._stacked = stacked
        self._num_experts = num_experts

    @staticmethod
    def load(view: View, path_of: Callable[[Digest], Path]) -> RouterModels:
        """Raises:
        DataError: ``data.bad-weights``: a blob is no weights of the view's router model.
        """
        import torch

        from potluck.lm.score import StackedDecoders

        # As in the serving child: matrices this small gain nothing from a second thread, and on a machine that
        # trains too they wait for it (measured on two busy cores: 16 ms a decision with two threads, 1.5 with one).
        torch.set_num_threads(1)
        assert view.router_model is not None
        try:
            stacked = StackedDecoders(view.router_model, [path_of(digest) for digest in view.routers])
        except (KeyError, RuntimeError, ValueError) as error:
            raise DataError("data.bad-weights", f"routers of run {view.run[:12]}: {error}", "") from error
        return RouterModels(stacked, view.num_experts)

    def decide(self, prefix: list[int]) -> Decision:
        """One token has no target: all zeros, so that the tie goes to expert 0."""
        if len(prefix) < 2:
            return Decision(expert=0, prefix_nll=(0.0,) * self._num_experts)
        nll_E = np.asarray(self._stacked.prefix_nll(prefix), dtype=np.float32)
        return Decision(expert=choose(nll_E), prefix_nll=tuple(float(nll) for nll in nll_E))
