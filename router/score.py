"""What a router holds in memory of one view: the tokenizer, and what decides, such as all router LMs in one forward.

Everything here blocks and belongs into an executor thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, assert_never

import numpy as np

from potluck.errors import DataError, UsageError
from router.choose import Decision, choose
from router.detokenise import TextStream, token_bytes
from router.placing import Files, load_placing
from router.view import View
from sampling.labels import load_labels

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from potluck.lm.score import StackedDecoders
    from sampling.partition import Placer

EOD = 0
"""`<eod>` ends each document; there is no BOS."""


class Judge(Protocol):
    """Decides for a prefix of one token or more."""

    def decide(self, prefix: list[int]) -> Decision: ...


class Scorer:
    """One view's tokenizer and judge, in memory."""

    def __init__(
        self, view: View, tokenizer: Tokenizer, table: Sequence[bytes], judge: Judge, domains: tuple[str, ...]
    ) -> None:
        """
        Args:
            table: the bytes of each token.
            domains: of the view's soup, in the order of its mixtures; none if it has none.
        """
        self.domains = domains
        self._view = view
        self._tokenizer = tokenizer
        self._bytes = table
        self._judge = judge

    @staticmethod
    def load(view: View, files: Files) -> Scorer:
        """Loads what the view names; every blob is on disk already.

        Raises:
            DataError: a blob is no tokenizer, no weights of the view's router model, no partition or no labels.
            UsageError: ``usage.cannot-place``: a partition by source was to decide.
            ResourceError: ``resource.missing-package``: what the partition's encoder needs is not installed.
        """
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_file(str(files.path(view.tokenizer)))
        except Exception as error:  # the library raises bare Exception
            raise DataError("data.bad-tokenizer", f"tokenizer {view.tokenizer[:12]}: {error}", "") from error
        table = _byte_table(view, tokenizer)
        return Scorer(view, tokenizer, table, _judge(view, table, files), _soup_domains(view, files))

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

    def text(self, ids: Sequence[int]) -> str:
        """The whole characters of these ids; `<eod>` is no text."""
        return self.text_stream().feed(ids)

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
    def load(view: View, files: Files) -> RouterModels:
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
            stacked = StackedDecoders(view.router_model, [files.path(digest) for digest in view.routers])
        except (KeyError, RuntimeError, ValueError) as error:
            raise DataError("data.bad-weights", f"routers of run {view.run[:12]}: {error}", "") from error
        return RouterModels(stacked, view.num_experts)

    def decide(self, prefix: list[int]) -> Decision:
        """One token has no target: all zeros, so that the tie goes to expert 0."""
        if len(prefix) < 2:
            return Decision(expert=0, prefix_nll=(0.0,) * self._num_experts)
        nll_E = np.asarray(self._stacked.prefix_nll(prefix), dtype=np.float32)
        return Decision(expert=choose(nll_E), prefix_nll=tuple(float(nll) for nll in nll_E))


class Clusters:
    """A partition by clusters: the domain that the prefix is placed in is the expert."""

    def __init__(self, placer: Placer, table: Sequence[bytes]) -> None:
        self._placer = placer
        self._bytes = table

    @staticmethod
    def load(view: View, table: Sequence[bytes], files: Files) -> Clusters:
        """Raises:
        DataError: ``data.bad-partition``: it is none, or has other than one domain an expert.
        UsageError, ResourceError: as `load_placing`.
        """
        placer = load_placing(view.partition, files)
        if (num_domains := len(placer.partition.domains)) != view.num_experts:
            what = f"partition {view.partition[:12]} has {num_domains} domains for {view.num_experts} experts"
            raise DataError("data.bad-partition", what, "publish one expert a domain")
        return Clusters(placer, table)

    def decide(self, prefix: list[int]) -> Decision:
        """A prefix of nothing but space says nothing: it goes to expert 0."""
        text = TextStream(self._bytes).feed(prefix)
        if not text.strip():
            return Decision(expert=0)
        (placed,) = self._placer.place([text])
        return Decision(expert=placed.domain)


def _judge(view: View, table: Sequence[bytes], files: Files) -> Judge:
    match view.route_by:
        case "routers":
            return RouterModels.load(view, files)
        case "one":
            return OneModel()
        case "partition":
            return Clusters.load(view, table, files)
        case _:
            assert_never(view.route_by)


def _soup_domains(view: View, files: Files) -> tuple[str, ...]:
    if view.soup is None:
        return ()
    domains = tuple(load_labels(view.soup.labels, files).domains)
    if len(domains) != view.soup.config.domains:
        what = f"labels {view.soup.labels[:12]} have {len(domains)} domains, the soup {view.soup.config.domains}"
        raise DataError("data.bad-labels", what, "publish the soup with the labels it was trained on")
    return domains


def _byte_table(view: View, tokenizer: Tokenizer) -> tuple[bytes, ...]:
    vocab = view.expert_model.vocab
    tokens = [tokenizer.id_to_token(i) or "" for i in range(min(vocab, tokenizer.get_vocab_size()))]
    special = frozenset(tokenizer.get_added_tokens_decoder()) | {EOD}
    try:
        table = token_bytes(tokens, special)
    except (KeyError, TypeError) as error:
        what = f"tokenizer {view.tokenizer[:12]} has token {error} outside the byte alphabet"
        raise DataError("data.bad-tokenizer", what, "use a byte-level BPE") from None
    return table + (b"",) * (vocab - len(table))
