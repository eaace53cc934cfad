"""Whether an exported folder, loaded by `transformers`, computes what our decoder computes."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from potluck.errors import UsageError
from potluck.lm.config import ModelConfig

TOLERANCE = 1e-4
"""Largest difference of two logits, as a part of the largest logit if that is above 1.

Float32 sums in another order, and rotary angles taken in float32 by `transformers`, in float64 by us.
"""
ROWS, COLUMNS = 4, 64
PROMPT_TOKENS, NEW_TOKENS = 8, 32
SAMPLE_TEXT = "The quick brown fox; größte Füchsin, 狐狸 🦊 <eod>\n\tx = 1"
"""Letters of one to four bytes, blanks, and the end of a document spelt out."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    max_logit_difference: float
    allowed_difference: float
    greedy_tokens: int
    greedy_equal: bool
    """The likeliest continuation of a prompt, token by token."""
    tokenizer_equal: bool
    """Ids of a text, and the text from its ids."""

    @property
    def holds(self) -> bool:
        return self.max_logit_difference <= self.allowed_difference and self.greedy_equal and self.tokenizer_equal


def require_transformers() -> None:
    """Raises:
    UsageError: ``usage.no-transformers``.
    """
    if find_spec("transformers") is None:
        fix = "install it (pip install 'transformers>=5'), or leave --check out"
        raise UsageError("usage.no-transformers", "the check needs the package transformers", fix)


def compare_with_transformers(config: ModelConfig, weights: Path, tokenizer: Path, folder: Path) -> Agreement:
    """Runs both on the same random tokens and on one prompt, on one document each.

    Args:
        config: of the checkpoint.
        weights: the checkpoint's safetensors file.
        tokenizer: the tokenizer blob.
        folder: what `export_llama` wrote of them.

    Raises:
        UsageError: ``usage.no-transformers``.
    """
    require_transformers()
    import torch

    from potluck.lm.generate import SamplingParams, generate
    from potluck.lm.model import load_decoder

    theirs = _quietly_loaded(folder)
    ours = load_decoder(config, weights)
    positions = max(1, config.context - 1)
    generator = torch.Generator().manual_seed(0)
    # From 1 on: 0 ends a document, and each row is to be one document.
    ids = torch.randint(1, config.vocab, (ROWS, min(COLUMNS, positions)), generator=generator)
    prompt = ids[:1, : max(1, min(PROMPT_TOKENS, positions // 2))]
    new_tokens = max(1, min(NEW_TOKENS, positions - prompt.shape[1]))
    with torch.no_grad():
        logits = ours(ids) @ ours.embedding.weight.t()
        difference = (theirs(ids).logits - logits).abs().max()
        continued = theirs.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=new_tokens, do_sample=False
        )
    wanted = list(generate(ours, prompt[0].tolist(), SamplingParams(max_tokens=new_tokens)))
    return Agreement(
        max_logit_difference=float(difference),
        allowed_difference=TOLERANCE * max(1.0, float(logits.abs().max())),
        greedy_tokens=len(wanted),
        greedy_equal=continued[0, prompt.shape[1] :].tolist() == wanted,
        tokenizer_equal=_tokenizers_agree(tokenizer, folder),
    )


def _quietly_loaded(folder: Path) -> Any:
    """The model, without the bar that `transformers` draws."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    bars: Any = logging  # its functions have no types
    had_bar = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(folder)
    finally:
        if had_bar:
            bars.enable_progress_bar()
    return model.eval()


def _tokenizers_agree(tokenizer: Path, folder: Path) -> bool:
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    ours = Tokenizer.from_str(tokenizer.read_text(encoding="utf-8"))
    ours.encode_special_tokens = True
    theirs = AutoTokenizer.from_pretrained(folder)
    ids = theirs.encode(SAMPLE_TEXT, verbose=False)  # which would warn of a text longer than the context
    return bool(ids == ours.encode(SAMPLE_TEXT).ids and theirs.decode(ids) == SAMPLE_TEXT)
