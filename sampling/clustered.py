"""The draws of a mixture: which train row is draw i, as a function of (key, mixture, i) alone.

Cluster-first (CRISP, 2410.03735, algorithm 1): draw i takes its domain from the weights by a number that
key and i determine. Of a domain's draws the r-th takes position r of a keyed permutation of its rows, a new
one for each pass, so no row of a domain comes twice before all have come once.

The price is paid when a segment is opened: the draws before it are drawn again, to count them by domain,
and the labels are scanned once, some 0.1 microseconds each. No index of the corpus is kept: memory is
that of the segment's draws, and of one number for each domain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from potluck.errors import DataError
from potluck.recipe import Clustered
from sampling.labels import EXCLUDED, Labels, load_labels
from sampling.mixture import Mixture, supported
from sampling.permute import mix, permute_each, uniform
from sampling.rows import stream_rows
from sampling.taskio import BlobReader

BLOCK = 1 << 16
"""Draws or labels that are worked on at once."""


@dataclass(frozen=True, kw_only=True)
class Draws:
    rows: np.ndarray
    """uint32 [count], train rows in the order of the draws."""
    weights: np.ndarray | None
    """float32 [count] in mode `importance`: mixture over natural share of the row's domain; mean one."""
    lost_mass: float
    """Share of the mixture that wanted domains without rows."""


def draw_rows(data: Clustered, count: int, blobs: BlobReader) -> Draws:
    """Draws [data.start, data.start + count).

    Raises:
        DataError: ``data.bad-labels``, the labels are of other tokens, or of another partition.
        SpecError: ``spec.bad-mixture``.
    """
    labels = load_labels(data.labels, blobs)
    mixture = Mixture.from_json(blobs.path(data.mixture).read_text(encoding="utf-8"))
    if labels.tokens != data.tokens or labels.partition != mixture.partition:
        what = f"labels {data.labels[:12]} are not of these tokens and this mixture's partition"
        raise DataError("data.bad-labels", what, "name labels, tokens and mixture of one partition")
    mixture, lost = supported(mixture, labels.sizes)
    weights = np.array(mixture.aligned(labels.domains), dtype=np.float64)
    array = labels.array(blobs)
    if data.mode == "cluster":

        def domains(begin: int, length: int) -> np.ndarray:
            return draw_domains(weights, data.key, begin, length)

        rows = rows_of_draws(domains, data.key, data.start, count, labels, array)
        return Draws(rows=rows, weights=None, lost_mass=lost)
    rows = _evenly(data, count, labels, array)
    share = np.array(list(labels.sizes.values()), dtype=np.float64) / sum(labels.sizes.values())
    ratio = np.divide(weights, share, out=np.zeros_like(weights), where=share > 0)
    return Draws(rows=rows, weights=ratio[array[rows]].astype(np.float32), lost_mass=lost)


def draw_domains(weights: np.ndarray, key: int, start: int, count: int) -> np.ndarray:
    """int64 [count]: the domains of draws [start, start + count), each with the chance of its weight.

    Args:
        weights: float64 [domains], not negative; their sum counts as one.
        key: of the draws.
        start: the first draw.
        count: how many.
    """
    wanted = np.flatnonzero(weights > 0)
    ends = np.cumsum(weights[wanted])
    number = uniform(key, np.arange(start, start + count, dtype=np.int64)) * ends[-1]
    # A product may round up to the very end: that too is the last domain.
    place = np.minimum(np.searchsorted(ends, number, side="right"), len(wanted) - 1)
    drawn: np.ndarray = wanted[place]
    return drawn


def rows_of_draws(
    domains: Callable[[int, int], np.ndarray], key: int, start: int, count: int, labels: Labels, array: np.ndarray
) -> np.ndarray:
    """uint32 [count], the train rows of draws [start, start + count).

    Args:
        domains: of (first draw, how many) to the domains of these draws, int64.
        key: of the order within the domains.
        start: the first draw; those before are counted by domain.
        count: how many.
        labels: whose domains they are.
        array: uint32 [rows], the labels.
    """
    sizes = np.array(list(labels.sizes.values()), dtype=np.int64)
    first_place = np.cumsum(sizes) - sizes
    drawn_before = np.zeros(len(sizes), dtype=np.int64)
    for begin, length in _blocks(start):
        drawn_before += np.bincount(domains(begin, length), minlength=len(sizes))
    places = np.empty(count, dtype=np.int64)
    for begin, length in _blocks(count):
        domain = domains(start + begin, length)
        order, rank = _ranked(domain)
        number = np.empty(length, dtype=np.int64)
        number[order] = drawn_before[domain[order]] + rank
        drawn_before += np.bincount(domain, minlength=len(sizes))
        size = sizes[domain]
        keys = _domain_keys(key, domain) + (number // size).astype(np.uint64)
        places[begin : begin + length] = first_place[domain] + permute_each(number % size, size, keys)
    return rows_at_places(array, sizes, places)


def _evenly(data: Clustered, count: int, labels: Labels, array: np.ndarray) -> np.ndarray:
    """Rows that are not excluded, in the order in which `Stream` would read them were they all."""
    sizes = np.array(list(labels.sizes.values()), dtype=np.int64)
    places = stream_rows(int(sizes.sum()), data.key, data.start, count)
    return rows_at_places(array, sizes, places, grouped=False)


def rows_at_places(labels: np.ndarray, sizes: np.ndarray, places: np.ndarray, *, grouped: bool = True) -> np.ndarray:
    """uint32 [count], rows at places of the list of all rows that are not excluded, by domain and then by number.

    Args:
        labels: uint32 [rows], scanned once in blocks.
        sizes: int64 [domains], rows of each; must be those of `labels`.
        places: int64 [count], at least one; repeated or not.
        grouped: False orders the list by row number alone.

    Raises:
        DataError: ``data.bad-labels``, the labels are not those that were counted.
    """
    assert len(places), "no place asked for"
    wanted, answer = np.unique(places, return_inverse=True)
    found = np.zeros(len(wanted), dtype=np.uint32)
    ends = np.cumsum(sizes)
    following = ends - sizes if grouped else np.zeros(1, dtype=np.int64)
    seen = np.zeros(len(sizes), dtype=np.int64)
    for begin, length in _blocks(len(labels)):
        block = np.asarray(labels[begin : begin + length])
        row = np.flatnonzero(block != EXCLUDED)
        domain = block[row].astype(np.int64)
        counts = np.bincount(domain, minlength=len(sizes))
        if len(counts) != len(sizes):
            raise _other_labels()
        seen += counts
        group = domain if grouped else np.zeros_like(domain)
        order, rank = _ranked(group)
        place = following[group[order]] + rank
        at = np.minimum(np.searchsorted(wanted, place), len(wanted) - 1)
        hit = np.flatnonzero(wanted[at] == place)
        found[at[hit]] = begin + row[order[hit]]
        following = following + np.bincount(group, minlength=len(following))
    if not np.array_equal(seen, sizes):
        raise _other_labels()
    return found[answer]


def _ranked(group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A stable order by group, and, in that order, how many of the same group came before each."""
    order = np.argsort(group, kind="stable")
    in_order = group[order]
    first = np.flatnonzero(np.r_[True, in_order[1:] != in_order[:-1]]) if len(order) else order
    lengths = np.diff(np.r_[first, len(order)])
    return order, np.arange(len(order)) - np.repeat(first, lengths)


def _domain_keys(key: int, domain: np.ndarray) -> np.ndarray:
    """uint64, one for each domain, unrelated to each other and to the numbers that draw domains."""
    of_run = mix(np.array([~key & (2**64 - 1)], dtype=np.uint64))
    return mix(of_run + domain.astype(np.uint64) * np.uint64(0xD1B54A32D192ED03))


def _blocks(count: int) -> Iterator[tuple[int, int]]:
    return ((begin, min(BLOCK, count - begin)) for begin in range(0, count, BLOCK))


def _other_labels() -> DataError:
    return DataError("data.bad-labels", "the labels are not those their manifest counted", "compute the labels again")
