"""How many tokens a corpus will make, from a sample, before there is a spec: sizes a demo."""

from __future__ import annotations

from pathlib import Path

from potluck.errors import CorpusError, UsageError
from potluck.ids import Json
from sampling.bpe import encode, train_bpe
from sampling.records import read_records
from sampling.records_folders import list_files
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
    sample = _Sample(seed, share=min(1.0, sample_bytes / on_disk), most_bytes=2 * sample_bytes)
    total = documents = 0
    sources: set[str] = set()
    sections = 0
    for record in read_records(data, files):
        documents += 1
        sources.add(record.source)
        for text in cut(record.text):
            total += len(text.encode())
            sections += 1
            sample.offer(sections, text)
    if not documents:
        raise CorpusError("corpus.empty", f"no text in {data}", "every record is blank: give it text")
    fitted, measured = sample.halves()
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


class _Sample:
    """Sections drawn by a hash of their number; half of them go whenever compressed files turn out to hold more."""

    def __init__(self, seed: int, *, share: float, most_bytes: int) -> None:
        self._seed = seed
        self._threshold = share * 2.0**64
        self._most_bytes = most_bytes
        self._drawn: list[tuple[int, int, str]] = []
        self._bytes = 0

    def offer(self, number: int, text: str) -> None:
        drawn = draw(self._seed, "estimate", str(number))
        if drawn >= self._threshold:
            return
        self._drawn.append((drawn, number, text))
        self._bytes += len(text.encode())
        while self._bytes > self._most_bytes:
            self._threshold /= 2
            self._drawn = [one for one in self._drawn if one[0] < self._threshold]
            self._bytes = sum(len(text.encode()) for _, _, text in self._drawn)

    def halves(self) -> tuple[list[str], list[str]]:
        """One to fit on, one to measure on."""
        texts: tuple[list[str], list[str]] = ([], [])
        for _, number, text in self._drawn:
            texts[1 - number % 2].append(text)
        return texts
