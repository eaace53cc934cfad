"""A corpus ten times as large takes hardly more memory: nothing that grows with the text is held."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from benchmarks.corpus_memory import Chain, small_target
from benchmarks.corpus_memory_text import write_corpus
from potluck.ids import Digest, Json

SMALL, LARGE = 3_000, 30_000
"""Documents: 1.2 and 12 MB of text."""
GROWTH_MIB = {"ingest": 9, "fit bpe": 4, "fit near_duplicates": 4}
"""70 bytes a record, copies of them and write buffers; else noise. The text takes 10 MiB more, its rows 7 MiB."""
FIT: dict[str, Json] = {"what": "bpe", "vocab_size": 512, "sample_bytes": 500_000, "seed": 0}
PART: dict[str, Json] = {"what": "part", "sequence_length": 64, "packing": "document", "seed": 0}
COLLECT: dict[str, Json] = {"what": "collect", "sequence_length": 64, "vocab_size": 512}


def peaks(folder: Path, documents: int) -> Mapping[str, float]:
    folder.mkdir()
    write_corpus(folder / "in.jsonl", documents=documents)
    chain = Chain(folder=folder)
    made = chain.run("ingest", {"data": str(folder / "in.jsonl")}, {})
    names: dict[str, Digest] = {"corpus": made["corpus"]}
    names |= chain.run("fit bpe", FIT, {"corpus_manifest": made["corpus"]})
    part = chain.run("tokenise part", PART, {"documents": made["documents-00000"], **names})["part"]
    tokens = chain.run("tokenise collect", COLLECT, {"part-00000": part, **names})["tokens"]
    inputs = {"tokens_manifest": tokens, "target_manifest": small_target(chain, tokens)}
    chain.run("fit near_duplicates", {"what": "near_duplicates"}, inputs)
    return {task: max(found) for task, found in chain.peaks_mib.items()}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Mapping[str, float], Mapping[str, float]]:
    folder = tmp_path_factory.mktemp("corpora")
    return peaks(folder / "small", SMALL), peaks(folder / "large", LARGE)


@pytest.mark.parametrize("task", sorted(GROWTH_MIB))
def test_ten_times_the_corpus_takes_hardly_more_memory(
    task: str, both: tuple[Mapping[str, float], Mapping[str, float]]
) -> None:
    small, large = (peaks[task] for peaks in both)
    assert large < small + GROWTH_MIB[task]
