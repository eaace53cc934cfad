"""Rows as points: the text of a row, encoders, and the tasks that fit an encoder and embed rows."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from potluck.errors import DataError
from sampling.bpe import EOD, load_tokenizer
from sampling.embed_lsi import LsiEncoder, fit_lsi, is_lsi
from sampling.embed_sentence import SentenceEncoder, unpack_encoder_folder
from sampling.permute import permute
from sampling.rows import META_TARGETS, TokenRows
from sampling.taskio import TaskCall, TaskOutput

if TYPE_CHECKING:
    from tokenizers import Tokenizer

DEFAULT_BATCH = 256
"""Rows decoded and encoded at a time: what an embed task holds in memory beside its result."""


class Encoder(Protocol):
    """Text to points on the unit sphere."""

    @property
    def dim(self) -> int: ...

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [n, dim], rows of Euclidean length 1; zero where a text says nothing to the encoder."""


def fit_lsi_task(call: TaskCall) -> TaskOutput:
    """Task `fit`, what `lsi`: an encoder from the text of a split, train unless `split` says otherwise.

    Document frequencies come from `idf_rows` rows (default `sample_rows`), the decomposition from
    `sample_rows` of them; both are drawn by `seed`.
    """
    params = call.params
    rows = TokenRows(call.json("tokens_manifest"), call.blobs, str(params.get("split", "train")))
    tokenizer = load_tokenizer(call.path("tokenizer"))
    sample_rows = int(params["sample_rows"])
    count = min(len(rows), max(sample_rows, int(params.get("idf_rows", sample_rows))))
    chosen = permute(np.arange(count, dtype=np.int64), len(rows), int(params["seed"]))

    def batches() -> Iterator[list[str]]:
        for begin in range(0, count, DEFAULT_BATCH):
            yield row_texts(rows, chosen[begin : begin + DEFAULT_BATCH], tokenizer)
            call.progress(0.7 * min(1.0, (begin + DEFAULT_BATCH) / count))

    encoder = fit_lsi(
        batches(),
        dim=int(params["dim"]),
        features=int(params["features"]),
        svd_rows=sample_rows,
        seed=int(params["seed"]),
        char_ngrams=tuple(params.get("char_ngrams", ())),
    )
    path = call.out / "encoder.safetensors"
    encoder.save(path)
    call.progress(1.0)
    return TaskOutput(
        files={"encoder": path},
        figures={"dim": encoder.dim, "rows": count, "terms": len(encoder.columns)},
    )


def embed_rows(call: TaskCall) -> TaskOutput:
    """Task `embed`: rows [start, start + count) of a split in their own order, one vector each.

    `dtype` float32 (default) or float16 is how they are kept; `columns` embeds the first tokens of each row
    only, as a routing decision sees it. Plans ask for parts of bounded size.
    """
    params = call.params
    rows = TokenRows(call.json("tokens_manifest"), call.blobs, str(params["split"]))
    tokenizer = load_tokenizer(call.path("tokenizer"))
    start, count = int(params["start"]), int(params["count"])
    batch = int(params.get("batch_size", DEFAULT_BATCH))
    columns = int(params.get("columns", rows.sequence_length + 1))
    encoder = task_encoder(call)
    vectors = np.empty((count, encoder.dim), dtype=str(params.get("dtype", "float32")))
    for begin in range(0, count, batch):
        chosen = np.arange(start + begin, start + min(begin + batch, count), dtype=np.int64)
        vectors[begin : begin + len(chosen)] = encoder.encode(row_texts(rows, chosen, tokenizer, columns))
        call.progress((begin + len(chosen)) / count)
    return TaskOutput(
        files={"vectors": call.write_array("vectors", vectors)},
        figures={"rows": count, "dim": encoder.dim, "empty": int((~vectors.any(axis=1)).sum())},
    )


def task_encoder(call: TaskCall) -> Encoder:
    """The encoder among a task's inputs: `encoder` is a fitted file, `encoder_manifest` a packed folder."""
    if "encoder" in call.inputs:
        return load_encoder(call.path("encoder"))
    with tempfile.TemporaryDirectory(dir=call.out) as folder:  # beside the blobs, so that links can be had
        return SentenceEncoder(unpack_encoder_folder(call.json("encoder_manifest"), call.blobs, Path(folder)))


def load_encoder(path: Path) -> Encoder:
    """An encoder from a fitted file or from a sentence-transformers folder.

    Raises:
        UsageError: ``usage.bad-encoder``, the folder lacks something, which is named.
        DataError: ``data.bad-encoder``, the file is no fitted encoder.
    """
    if path.is_dir():
        return SentenceEncoder(path)
    if not is_lsi(path):
        raise DataError("data.bad-encoder", f"{path.name} is no encoder of `fit`", "give the blob `encoder` of `fit`")
    return LsiEncoder.load(path)


def row_texts(rows: TokenRows, indices: np.ndarray, tokenizer: Tokenizer, columns: int | None = None) -> list[str]:
    """Text of rows without their padding; of their first `columns` tokens, if given."""
    targets = rows.meta(indices)[:, META_TARGETS]
    return decode(tokenizer, [row[: n + 1][:columns] for row, n in zip(rows.take(indices), targets, strict=True)])


def decode(tokenizer: Tokenizer, ids: Sequence[np.ndarray]) -> list[str]:
    """Text of token ids; a document's end becomes a line's end.

    A character that a border cuts in two becomes U+FFFD, and text that spells `<eod>` is taken for an
    end: neither matters to an encoder.
    """
    texts: list[str] = tokenizer.decode_batch([each.tolist() for each in ids], skip_special_tokens=False)
    return [text.replace(EOD, "\n") for text in texts]
