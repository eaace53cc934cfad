"""The models a router holds itself: the tokenizer and all router LMs of one view, stacked into one forward.

Everything here blocks and belongs into an executor thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from potluck.errors import DataError, UsageError
from potluck.ids import Digest
from router.detokenise import TextStream, token_bytes
from router.view import View

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from potluck.lm.score import StackedDecoders

EOD = 0
"""`<eod>` ends each document; there is no BOS."""


class Scorer:
    """One view's tokenizer and stacked routers, in memory."""

    def __init__(self, view: View, tokenizer: Tokenizer, routers: StackedDecoders) -> None:
        self._view = view
        self._tokenizer = tokenizer
        self._routers = routers
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
        import torch
        from tokenizers import Tokenizer

        from potluck.lm.score import StackedDecoders

        # As in the serving child: matrices this small gain nothing from a second thread, and on a machine that
        # trains too they wait for it (measured on two busy cores: 16 ms a decision with two threads, 1.5 with one).
        torch.set_num_threads(1)

        try:
            tokenizer = Tokenizer.from_file(str(path_of(view.tokenizer)))
        except Exception as error:  # the library raises bare Exception
            raise DataError("data.bad-tokenizer", f"tokenizer {view.tokenizer[:12]}: {error}", "") from error
        try:
            routers = StackedDecoders(view.router_model, [path_of(digest) for digest in view.routers])
        except (KeyError, RuntimeError, ValueError) as error:
            raise DataError("data.bad-weights", f"routers of run {view.run[:12]}: {error}", "") from error
        return Scorer(view, tokenizer, routers)

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

    def prefix_nll(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Mean NLL of the prefix under each router, `[experts]`, nats per target.

        A text shorter than the prefix is judged on what there is. One token has no target: all
        zeros, so that the tie goes to expert 0.
        """
        prefix = list(ids[: self._view.prefix_length])
        if len(prefix) < 2:
            return np.zeros(self._view.num_experts, dtype=np.float32)
        return np.asarray(self._routers.prefix_nll(prefix), dtype=np.float32)

    def text_stream(self) -> TextStream:
        return TextStream(self._bytes)
