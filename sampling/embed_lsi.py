"""Latent semantic indexing: hashed word counts, tf-idf, and a truncated SVD (Deerwester et al., 1990).

No vocabulary is kept: words and word pairs are hashed into a power of two of columns (Weinberger et
al., 2009), so memory is bounded whatever the text. Counts are 1 + log(tf); idf is
log((1 + n) / (1 + df)) + 1. scikit-learn and scipy come in late.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from potluck.errors import DataError, SpecError
from potluck.ids import Json, canonical_json
from potluck.jsontext import read_json
from sampling.cluster_extras import extra

VERSION = 1
MAX_HEADER_BYTES = 1 << 16
"""Of an encoder's file; its header has some hundreds."""
MAX_NGRAM = 16
POWER_ITERATIONS = 4
"""Of the randomised SVD (Halko et al., 2011); fixed, since the automatic choice follows the sample's size."""


@dataclass(frozen=True, kw_only=True)
class LsiEncoder:
    """x -> normalise(tfidf(x) @ components). A bag of words has no window: text of any length is read whole."""

    features: int
    """Columns that words are hashed into."""
    char_ngrams: tuple[int, ...]
    """(shortest, longest) of character n-grams inside words, hashed into as many columns again; or ()."""
    columns: np.ndarray
    """int32 [terms], ascending: the columns that the fitted text uses."""
    idf: np.ndarray
    """float32 [terms]."""
    components: np.ndarray
    """float32 [terms, dim]."""

    @property
    def dim(self) -> int:
        return int(self.components.shape[1])

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [n, dim], rows of length 1; zero where no term of a text is known.

        On one thread equal texts give equal bits, whatever else is in the batch.
        """
        counts = _log_counts(texts, self.features, self.char_ngrams)[:, self.columns]
        return normalised((counts @ (self.components * self.idf[:, None])).astype(np.float32))

    def save(self, path: Path) -> None:
        """One safetensors file with a JSON header; equal encoders give equal bytes."""
        from safetensors.numpy import save_file

        header: dict[str, Json] = {
            "kind": "lsi",
            "version": VERSION,
            "features": self.features,
            "char_ngrams": list(self.char_ngrams),
        }
        tensors = {name: np.ascontiguousarray(getattr(self, name)) for name in ("columns", "idf", "components")}
        save_file(tensors, path, metadata={"header": canonical_json(header)})

    @staticmethod
    def load(path: Path) -> LsiEncoder:
        """Raises:
        DataError: ``data.bad-encoder``: another version, or a file whose arrays do not fit together.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        header = _header(path)
        if header.get("version") != VERSION:
            what = f"{path.name} has version {header.get('version')}, not {VERSION}"
            raise DataError("data.bad-encoder", what, "use equal versions of potluck on all machines")
        try:
            encoder = LsiEncoder(
                features=header["features"], char_ngrams=tuple(header["char_ngrams"]), **load_file(path)
            )
            _check_arrays(encoder)
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError("data.bad-encoder", f"{path.name}: {error}", "give the blob `encoder` of `fit`") from error
        return encoder


def is_lsi(path: Path) -> bool:
    return _header(path).get("kind") == "lsi"


def fit_lsi(
    batches: Iterable[Sequence[str]],
    *,
    dim: int,
    features: int,
    svd_rows: int,
    seed: int,
    char_ngrams: tuple[int, ...] = (),
) -> LsiEncoder:
    """Fits an encoder in one pass: document frequencies from all texts, the SVD from the first `svd_rows`.

    Raises:
        SpecError: ``spec.bad-value``, features is no power of two in [2^10, 2^22], or dim is not below
            the number of texts and of terms in them.
    """
    if not 2**10 <= features <= 2**22 or features & (features - 1):
        raise SpecError("spec.bad-value", f"features = {features}", "give a power of two from 1024 to 4194304")
    scipy_sparse = extra("scipy.sparse")
    width = features * (2 if char_ngrams else 1)
    frequency = np.zeros(width, dtype=np.int64)
    kept: list[Any] = []
    num_texts = num_kept = 0
    for texts in batches:
        counts = _log_counts(texts, features, char_ngrams)
        frequency += np.bincount(counts.indices, minlength=width)
        num_texts += len(texts)
        if num_kept < svd_rows:
            kept.append(counts[: svd_rows - num_kept])
            num_kept += kept[-1].shape[0]
    sample = scipy_sparse.vstack(kept, format="csr") if kept else scipy_sparse.csr_matrix((0, width))
    columns = np.unique(sample.indices).astype(np.int32)
    if not 1 <= dim < min(num_kept, len(columns)):
        what = f"dim = {dim} for {num_kept} sampled rows with {len(columns)} terms"
        raise SpecError("spec.bad-value", what, f"give dim from 1 to {max(1, min(num_kept, len(columns)) - 1)}")
    idf = (np.log((1.0 + num_texts) / (1.0 + frequency[columns])) + 1.0).astype(np.float32)
    weighted = sample[:, columns].multiply(idf[None, :]).tocsr()
    components = _right_vectors(_unit_rows(weighted), dim, seed)
    return LsiEncoder(features=features, char_ngrams=char_ngrams, columns=columns, idf=idf, components=components)


def normalised(vectors: np.ndarray) -> np.ndarray:
    """Rows scaled to Euclidean length 1; rows of zeros stay."""
    length = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
    scaled: np.ndarray = (vectors / np.where(length > 0.0, length, 1.0)[:, None]).astype(np.float32)
    return scaled


def _log_counts(texts: Sequence[str], features: int, char_ngrams: tuple[int, ...]) -> Any:
    """float32 CSR [n, features or twice that]: 1 + log of the count of words, word pairs and n-grams."""
    vectorizer = extra("sklearn.feature_extraction.text").HashingVectorizer
    options = {"n_features": features, "norm": None, "alternate_sign": False, "dtype": np.float32}
    counts = vectorizer(ngram_range=(1, 2), **options).transform(texts)
    if char_ngrams:
        letters = vectorizer(analyzer="char_wb", ngram_range=char_ngrams, **options).transform(texts)
        counts = extra("scipy.sparse").hstack([counts, letters], format="csr")
    counts.data = 1.0 + np.log(counts.data)
    return counts


def _unit_rows(matrix: Any) -> Any:
    return extra("sklearn.preprocessing").normalize(matrix, copy=False)


def _right_vectors(matrix: Any, dim: int, seed: int) -> np.ndarray:
    """float32 [terms, dim]: the leading right singular vectors, signs fixed."""
    randomized_svd = extra("sklearn.utils.extmath").randomized_svd
    _, _, right = randomized_svd(
        matrix, n_components=dim, n_iter=POWER_ITERATIONS, power_iteration_normalizer="QR", random_state=seed
    )
    return np.ascontiguousarray(right.T, dtype=np.float32)


def _check_arrays(encoder: LsiEncoder) -> None:
    """Raises:
    ValueError: the arrays are not those of one fitted encoder.
    """
    width = encoder.features * (2 if encoder.char_ngrams else 1)
    terms = len(encoder.columns)
    if type(encoder.features) is not int or not 2**10 <= encoder.features <= 2**22:
        raise ValueError(f"features = {str(encoder.features)[:80]}")
    if not all(type(n) is int and 1 <= n <= MAX_NGRAM for n in encoder.char_ngrams) or len(encoder.char_ngrams) > 2:
        raise ValueError("char_ngrams are no range of lengths")
    if encoder.columns.dtype != np.int32 or encoder.idf.dtype != np.float32 or encoder.components.dtype != np.float32:
        raise ValueError("an array is of another type")
    if encoder.columns.ndim != 1 or encoder.idf.shape != (terms,) or encoder.components.ndim != 2:
        raise ValueError("an array has another shape")
    if not terms or encoder.components.shape[0] != terms or not encoder.components.shape[1]:
        raise ValueError(f"components of shape {encoder.components.shape} for {terms} terms")
    if int(encoder.columns.min()) < 0 or int(encoder.columns.max()) >= width:
        raise ValueError("a term is outside the hashed features")
    if not np.isfinite(encoder.idf).all() or not np.isfinite(encoder.components).all():
        raise ValueError("a number is not finite")


def _header(path: Path) -> dict[str, Any]:
    """JSON header of a safetensors file; empty where the file is something else."""
    size_bytes = 8
    with path.open("rb") as file:
        length = int.from_bytes(file.read(size_bytes), "little")
        if length > min(MAX_HEADER_BYTES, path.stat().st_size - size_bytes):
            return {}
        try:
            header: Any = read_json(read_json(file.read(length))["__metadata__"]["header"])
        except (ValueError, KeyError, TypeError):
            return {}
    return header if isinstance(header, dict) else {}
