"""How many tokens a corpus will make, from a sample, before there is a spec: sizes a demo."""

from __future__ import annotations

from pathlib import Path

from potluck.errors import CorpusError, UsageError
from potluck.ids import Json
from sampling.bpe import encode, train_bpe
from sampling.records import list_files, read_records
from sampling.sections import cut
from sampling.splits import HELD_OUT_FRACTION, draw

SAMPLE_BYTES = 1_500_000


def estimate(data: Path, *, vocab_size: int = 1024, sample_bytes: int = SAMPLE_BYTES, seed: int = 0) -> dict[str, Json]:
    """Bytes, documents and sources of a corpus (counted), its tokens and train tokens (guessed).

    A BPE is fitted on half of the sample and measured on the other half. Duplicates are not looked for.

    Raises:
        CorpusError: as `sampling.ingest.ingest` does for text that cannot be read.
        UsageError: ``usage.vocab-size``.
    """
    if not 260 <= vocab_size <= 65_536:
        raise UsageError("usage.vocab-size", f"--vocab-size {vocab_size}", "give 260 to 65536")
    files, _ = list_files(data)
    on_disk = sum(path.stat().st_size for path in files) or 1
    threshold = min(1.0, sample_bytes / on_disk) * 2.0**64
    fitted: list[str] = []
    measured: list[str] = []
    total = documents = 0
    sources: set[str] = set()
    sections = 0
    for record in read_records(data, files):
        documents += 1
        sources.add(record.source)
        for text in cut(record.text):
            total += len(text.encode())
            sections += 1
            if draw(seed, "estimate", str(sections)) < threshold:
                (fitted if sections % 2 else measured).append(text)
    if not documents:
        raise CorpusError("corpus.empty", f"no text in {data}", "every record is blank: give it text")
    if not fitted or not measured:
        fitted = measured = [next(cut(next(read_records(data, files)).text))]
    tokenizer = train_bpe(fitted, vocab_size)
    tokens = sum(len(ids) for ids in encode(tokenizer, measured))
    ratio = sum(len(text.encode()) for text in measured) / max(1, tokens)
    all_tokens = int(total / ratio) + documents
    return {
        "bytes": total,
        "documents": documents,
        "sources": sorted(sources),
        "vocab_size": vocab_size,
        "bytes_per_token": total / all_tokens,
        "tokens": all_tokens,
        "train_tokens": int(all_tokens * (1 - 2 * HELD_OUT_FRACTION)),
    }
