"""Cluster-first sampling against weighted uniform sampling: one expectation, two variances (CRISP, section 3).

On a decoder that stays as it is, so that every row has one gradient and expectations are exact sums.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from potluck.ids import Digest, canonical_json
from potluck.lm.config import ModelConfig
from potluck.lm.loss import mean_nll
from potluck.lm.model import init_decoder
from potluck.recipe import Clustered
from sampling.clustered import draw_rows
from sampling.mixture import normalised
from sampling.taskio import LocalBlobs

SIZES = {"common": 150, "usual": 30, "rare": 15, "odd": 5}
WEIGHTS = {"common": 0.1, "usual": 0.1, "rare": 0.2, "odd": 0.6}
TOTAL, VOCAB, COLUMNS, BATCH = 200, 40, 9, 4
MODEL = ModelConfig(vocab=VOCAB, hidden=8, layers=1, heads=2, ffn=8, context=COLUMNS)
Mode = Literal["cluster", "importance"]


class Corpus:
    """Rows whose domains use words of their own, and their gradients, float64 [rows, parameters]."""

    def __init__(self, folder: Path) -> None:
        rng = np.random.default_rng(0)
        self.domain = rng.permutation(np.repeat(np.arange(4), list(SIZES.values()))).astype(np.uint32)
        rows = 1 + 9 * self.domain[:, None] + rng.integers(0, 9, size=(TOTAL, COLUMNS))
        model = init_decoder(MODEL, seed=1).double()
        self.gradients = np.stack([self._gradient(model, row[None], None) for row in rows])
        self.model, self.rows = model, rows
        self.share = np.array(list(SIZES.values())) / TOTAL
        self.weights = np.array(list(WEIGHTS.values()))
        self.blobs, self.folder = LocalBlobs(), folder
        np.save(folder / "labels.npy", self.domain)
        array, partition = self.blobs.add(folder / "labels.npy"), Digest("a" * 64)
        self.labels = self._add(
            "labels.json",
            canonical_json(
                {
                    "kind": "labels",
                    "partition": partition,
                    "tokens": "b" * 64,
                    "domains": list(SIZES),
                    "sizes": list(SIZES.values()),
                    "excluded": 0,
                    "sequence_length": COLUMNS - 1,
                    "labels": array,
                }
            ),
        )
        self.mixture = self._add("mixture.json", normalised(partition, WEIGHTS, list(SIZES)).to_json())

    def batches(self, mode: Mode, count: int, key: int) -> np.ndarray:
        """float64 [count, parameters]: the mean gradient of each batch, weighted as the reader says."""
        data = Clustered(tokens=Digest("b" * 64), labels=self.labels, mixture=self.mixture, key=key, start=0, mode=mode)
        draws = draw_rows(data, count * BATCH, self.blobs)
        factors = np.ones(count * BATCH) if draws.weights is None else draws.weights.astype(np.float64)
        return (factors[:, None] * self.gradients[draws.rows]).reshape(count, BATCH, -1).mean(axis=1)

    @staticmethod
    def _gradient(model: torch.nn.Module, rows: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
        ids = torch.from_numpy(rows.astype(np.int64))
        hidden = model(ids[:, :-1])
        of_positions = None if weights is None else torch.from_numpy(weights).repeat_interleave(COLUMNS - 1)
        embedding = dict(model.named_parameters())["embedding.weight"]
        loss = mean_nll(hidden.reshape(-1, hidden.shape[-1]), embedding, ids[:, 1:].reshape(-1), of_positions)
        found = torch.autograd.grad(loss, list(model.parameters()))
        return torch.cat([each.reshape(-1) for each in found]).numpy()

    def _add(self, name: str, text: str) -> Digest:
        (self.folder / name).write_text(text)
        return self.blobs.add(self.folder / name)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    torch.set_num_threads(1)
    return Corpus(tmp_path_factory.mktemp("corpus"))


def exact(corpus: Corpus) -> tuple[np.ndarray, float, float]:
    """Expectation of one draw's gradient, and its total variance cluster-first and importance-weighted."""
    by_domain = [corpus.gradients[corpus.domain == c] for c in range(4)]
    mean = np.stack([each.mean(axis=0) for each in by_domain]).T @ corpus.weights
    square = np.array([float((each**2).sum(axis=1).mean()) for each in by_domain])
    ratio = corpus.weights / corpus.share
    first = float(corpus.weights @ square - mean @ mean)
    weighted = float(corpus.share * ratio**2 @ square - mean @ mean)
    return mean, first, weighted


def test_cluster_first_sampling_has_the_lower_variance(corpus: Corpus) -> None:
    _, first, weighted = exact(corpus)
    assert weighted > 3 * first


def test_the_variance_lost_is_about_what_the_effective_sample_size_says(corpus: Corpus) -> None:
    """1 / sum p w^2 of the weighted rows count: were all gradients as long, second moments would differ by it."""
    mean, first, weighted = exact(corpus)
    effective = 1 / float((corpus.weights**2 / corpus.share).sum())
    assert effective == pytest.approx(1 / (0.01 / 0.75 + 0.01 / 0.15 + 0.04 / 0.075 + 0.36 / 0.025))
    moment = float(mean @ mean)
    assert (first + moment) / (weighted + moment) == pytest.approx(effective, rel=0.35)


@pytest.mark.parametrize("mode", ["cluster", "importance"])
def test_both_ways_have_the_mixtures_expectation_and_their_variance(corpus: Corpus, mode: Mode) -> None:
    mean, first, weighted = exact(corpus)
    found = np.concatenate([corpus.batches(mode, 50, key) for key in range(40)])
    variance = {"cluster": first, "importance": weighted}[mode] / BATCH
    error = float(np.square(found.mean(axis=0) - mean).sum())
    assert error < 3 * variance / len(found)
    # A bound, not a value: without replacement rows of a small domain in one batch lean against each other.
    assert 0.7 * variance < float(found.var(axis=0).sum()) < 1.1 * variance


def test_a_weighted_batch_has_the_gradient_of_its_weighted_rows(corpus: Corpus) -> None:
    chosen = np.array([3, 50, 3, 120])
    weights = np.array([0.5, 2.0, 0.0, 1.5])
    whole = corpus._gradient(corpus.model, corpus.rows[chosen], weights)
    assert np.allclose(whole, (weights[:, None] * corpus.gradients[chosen]).mean(axis=0))
