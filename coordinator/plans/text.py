"""From corpus to rows: one tokenizer, one tokenise task a shard, one manifest over all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from coordinator.core.values import Failed
from coordinator.plans.base import CorpusFacts, Wanted, Wishes
from coordinator.plans.seeds import derive
from potluck.ids import Digest, Json
from potluck.specs.sections import CommonSpec

BPE_SAMPLE_BYTES = 16 << 20
"""Text the tokenizer is fitted on; merges settle well before."""
MIN_TEST_ROWS = 20
"""Fewer say nothing about a difference, and the bootstrap would pretend they did."""
FIRST_RANK = 0


@dataclass(frozen=True, kw_only=True)
class Text:
    """The tokenised corpus."""

    tokens: Digest
    tokenizer: Digest
    train_rows: int
    valid_rows: int
    test_rows: int
    figures: Mapping[str, Json]


def want_ample_text(spec: CommonSpec, corpus: CorpusFacts, wishes: Wishes) -> Text | Wanted:
    """The rows of a corpus that can carry a training, or all that the run wants until they are there."""
    text = want_text(spec, corpus, wishes)
    if isinstance(text, str):
        return wishes.wanted(text)
    failure = too_small(spec, text)
    return text if failure is None else wishes.wanted("stopped", outcome=failure)


def want_text(spec: CommonSpec, corpus: CorpusFacts, wishes: Wishes) -> Text | str:
    """The rows, or the stage that is under way."""
    fitted = wishes.task(
        "fit",
        {
            "what": "bpe",
            "vocab_size": spec.text.vocab_size,
            "sample_bytes": BPE_SAMPLE_BYTES,
            "seed": derive(spec.seed, "bpe"),
        },
        {"corpus_manifest": spec.corpus},
        label="fit the tokenizer",
        rank=FIRST_RANK,
    )
    if fitted is None:
        return "fitting the tokenizer"
    text = want_rows(spec, spec.corpus, corpus.shards, wishes, fitted.blobs["tokenizer"])
    return "tokenising" if text is None else text


def want_rows(
    spec: CommonSpec, corpus: Digest, shards: tuple[Digest, ...], wishes: Wishes, tokenizer: Digest, what: str = ""
) -> Text | None:
    """The rows of a corpus under a tokenizer, the run's own corpus or other text; None while they are made.

    Args:
        what: for people, the text's name where it is not the corpus: "the target's ".
    """
    parts = _want_parts(spec, corpus, shards, wishes, tokenizer, what)
    if len(parts) < len(shards):
        return None
    collected = wishes.task(
        "tokenise",
        {"what": "collect", "sequence_length": spec.text.sequence_length, "vocab_size": spec.text.vocab_size},
        {"corpus": corpus, "tokenizer": tokenizer, **parts},
        label=f"collect {what or 'the '}rows",
        rank=FIRST_RANK,
    )
    if collected is None:
        return None
    rows = {split: collected.figures.get(f"{split}_rows") for split in ("train", "valid", "test")}
    return Text(
        tokens=collected.blobs["tokens"],
        tokenizer=tokenizer,
        train_rows=_count(rows["train"]),
        valid_rows=_count(rows["valid"]),
        test_rows=_count(rows["test"]),
        figures=collected.figures,
    )


def too_small(spec: CommonSpec, text: Text) -> Failed | None:
    """Why this text cannot carry the run. Training rows may be read more than once, but not be absent."""
    for split, rows, needed in (
        ("training", text.train_rows, 1),
        ("validation", text.valid_rows, 1),
        ("test", text.test_rows, MIN_TEST_ROWS),
    ):
        if rows < needed:
            message = (
                f"the {split} split has {rows} rows of {spec.text.sequence_length} tokens and {needed} are needed; "
                "give more text or a shorter text.sequence_length"
            )
            return Failed(error_id="corpus.too-small", message=message)
    return None


def _want_parts(
    spec: CommonSpec, corpus: Digest, shards: tuple[Digest, ...], wishes: Wishes, tokenizer: Digest, what: str
) -> dict[str, Digest]:
    parts: dict[str, Digest] = {}
    for index, shard in enumerate(shards):
        done = wishes.task(
            "tokenise",
            {
                "what": "part",
                "sequence_length": spec.text.sequence_length,
                "packing": spec.text.packing,
                "seed": derive(spec.seed, "packing"),
            },
            {"documents": shard, "tokenizer": tokenizer, "corpus": corpus},
            label=f"tokenise {what}shard {index} of {len(shards)}",
            rank=FIRST_RANK,
        )
        if done is not None:
            parts[f"part-{index:05d}"] = done.blobs["part"]
    return parts


def _count(value: Json) -> int:
    return value if isinstance(value, int) else 0
