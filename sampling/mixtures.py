"""Random mixtures over the domains of a partition, and the rows drawn from them (2502.01804, algorithm 2).

Mixture q, its domains, their weights and its draws are functions of (key, q) alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from potluck.errors import DataError
from potluck.recipe import Mixtures
from sampling.clustered import draw_domains, rows_of_draws
from sampling.labels import Labels, load_labels
from sampling.permute import mix, permute_each, uniform
from sampling.taskio import BlobReader

_KINDS, _SUPPORTS, _WEIGHTS = 0xA0761D6478BD642F, 0xE7037ED1A0B428DB, 0x8EBC6AF09C88C6E3
"""What one key is made three unrelated ones by."""


@dataclass(frozen=True, kw_only=True)
class MixtureDraws:
    """The mixtures of a lineage, and their rows."""

    data: Mixtures
    labels: Labels

    @staticmethod
    def of(data: Mixtures, blobs: BlobReader) -> MixtureDraws:
        """Raises:
        DataError: ``data.bad-labels``, the labels are of other tokens.
        """
        labels = load_labels(data.labels, blobs)
        if labels.tokens != data.tokens:
            raise DataError("data.bad-labels", f"labels {data.labels[:12]} are not of these tokens", "name both of one")
        return MixtureDraws(data=data, labels=labels)

    def weights(self, first: int, count: int) -> np.ndarray:
        """float64 [count, domains], mixtures [first, first + count); each sums to one."""
        data, sizes = self.data, self._sizes
        held = np.flatnonzero(sizes)
        support = min(data.support, len(held))
        number = np.arange(first, first + count, dtype=np.int64)
        places = np.tile(np.arange(support, dtype=np.int64), count)
        each = np.repeat(number, support)
        chosen = permute_each(places, np.full_like(places, len(held)), _keys(data.key ^ _SUPPORTS, each))
        drawn = uniform(data.key ^ _WEIGHTS, each * support + places).reshape(count, support)
        drawn = np.maximum(drawn, np.finfo(np.float64).tiny)  # all zero has no sum
        found = np.zeros((count, len(sizes)))
        rows = np.arange(count)[:, None]
        found[rows, held[chosen].reshape(count, support)] = drawn / drawn.sum(1, keepdims=True)
        if data.natural_share:
            found[uniform(data.key ^ _KINDS, number) < data.natural_share] = sizes / sizes.sum()
        return found

    def rows(self, count: int, blobs: BlobReader) -> np.ndarray:
        """uint32 [count], train rows of draws [data.start, data.start + count)."""
        array = self.labels.array(blobs)
        return rows_of_draws(self._domains, self.data.key, self.data.start, count, self.labels, array)

    def _domains(self, start: int, count: int) -> np.ndarray:
        """int64 [count], the domains of draws [start, start + count)."""
        each = self.data.batch_size // self.data.per_step
        first, last = start // each, (start + count - 1) // each
        weights = self.weights(first, last - first + 1)
        parts = []
        for number in range(first, last + 1):
            begin, end = max(start, number * each), min(start + count, (number + 1) * each)
            parts.append(draw_domains(weights[number - first], self.data.key, begin, end - begin))
        return np.concatenate(parts)

    @property
    def _sizes(self) -> np.ndarray:
        return np.array(list(self.labels.sizes.values()), dtype=np.int64)


def _keys(key: int, number: np.ndarray) -> np.ndarray:
    """uint64, one for each number."""
    of_run = mix(np.array([key & (2**64 - 1)], dtype=np.uint64))
    return mix(of_run + number.astype(np.uint64) * np.uint64(0xD1B54A32D192ED03))
