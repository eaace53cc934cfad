"""A mixture: how often each domain of a partition is read. Weights by domain name; they sum to one.

The blob is canonical JSON, {version, partition, weights}, so equal mixtures are one blob.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from potluck.errors import SpecError
from potluck.ids import Digest, canonical_json, is_digest
from potluck.jsontext import read_json

VERSION = 1
SUM_TOLERANCE = 1e-9
MAX_WEIGHT = 1e300
"""A sum of as many weights as there can be domains is still finite."""
MAX_NAMED = 5
"""Domains named in a message."""


@dataclass(frozen=True, kw_only=True)
class Mixture:
    partition: Digest
    weights: Mapping[str, float]

    def __post_init__(self) -> None:
        _check_weights(self.weights)
        total = math.fsum(self.weights.values())
        if abs(total - 1.0) > SUM_TOLERANCE:
            raise _bad(f"weights sum to {total!r}", "normalise them: they sum to one")

    def to_json(self) -> str:
        return canonical_json({"version": VERSION, "partition": self.partition, "weights": dict(self.weights)})

    @staticmethod
    def from_json(text: str | bytes) -> Mixture:
        """Raises:
        SpecError: ``spec.bad-mixture``.
        """
        try:
            raw = read_json(text)
        except ValueError as error:
            raise _bad(f"not JSON: {error}", "write it with Mixture.to_json") from None
        if not isinstance(raw, dict) or set(raw) != {"version", "partition", "weights"} or raw["version"] != VERSION:
            fix = f"give exactly partition, weights and version = {VERSION}"
            raise _bad(f"not a mixture of version {VERSION}: {text[:80]!r}", fix)
        partition, weights = raw["partition"], raw["weights"]
        if not isinstance(partition, str) or not is_digest(partition):
            raise _bad(f"partition = {partition!r}", "give the partition's digest")
        if not isinstance(weights, dict):
            raise _bad(f"weights = {weights!r}"[:80], "give a table of domain names and weights")
        return Mixture(partition=Digest(partition), weights=weights)

    def aligned(self, domains: Sequence[str]) -> list[float]:
        """Weights in the order of a partition's domains.

        Raises:
            SpecError: ``spec.bad-mixture``, a domain is missing or unknown.
        """
        _check_names(self.weights, domains)
        return [self.weights[name] for name in domains]


def normalised(partition: Digest, weights: Mapping[str, float], domains: Sequence[str]) -> Mixture:
    """A mixture of any weights that are not negative, one for each of the partition's domains.

    Raises:
        SpecError: ``spec.bad-mixture``: a domain is missing or unknown, a weight negative or not finite,
            or all are zero.
    """
    _check_names(weights, domains)
    _check_weights(weights)
    largest = max(weights.values())
    if largest == 0:
        raise _bad("all weights are zero", "give at least one domain a weight")
    scaled = {name: weight / largest for name, weight in weights.items()}  # or a sum of finite ones overflows
    total = math.fsum(scaled.values())
    return Mixture(partition=partition, weights={name: weight / total for name, weight in scaled.items()})


def natural(partition: Digest, sizes: Mapping[str, int]) -> Mixture:
    """Each domain by its size: what reading the corpus evenly gives."""
    return normalised(partition, sizes, list(sizes))


def combined(mixtures: Sequence[Mixture], weights: Sequence[float]) -> Mixture:
    """The weighted mean of mixtures over one partition: several targets at once.

    Raises:
        SpecError: ``spec.bad-mixture``: other partitions or domains, or weights that are none.
    """
    if not mixtures or len(mixtures) != len(weights):
        raise _bad(f"{len(mixtures)} mixtures with {len(weights)} weights", "give each mixture one weight")
    partitions = sorted({mixture.partition for mixture in mixtures})
    if len(partitions) > 1:
        raise _bad(f"mixtures over {len(partitions)} partitions", "combine mixtures over one partition")
    shares = normalised(partitions[0], dict(_numbered(weights)), [name for name, _ in _numbered(weights)])
    domains = list(mixtures[0].weights)
    columns = [mixture.aligned(domains) for mixture in mixtures]
    factors = list(shares.weights.values())
    mean = {
        name: math.fsum(factor * column[place] for factor, column in zip(factors, columns, strict=True))
        for place, name in enumerate(domains)
    }
    return normalised(partitions[0], mean, domains)


def supported(mixture: Mixture, sizes: Mapping[str, int]) -> tuple[Mixture, float]:
    """The mixture over domains that have rows, renormalised, and the share of it that was lost.

    Raises:
        SpecError: ``spec.bad-mixture``: names differ, or no domain with weight has a row.
    """
    domains = list(sizes)
    weights = dict(zip(domains, mixture.aligned(domains), strict=True))
    lost = math.fsum(weights[name] for name in domains if not sizes[name])
    if not lost:
        return mixture, 0.0
    kept = {name: weights[name] if sizes[name] else 0.0 for name in domains}
    if not any(kept.values()):
        fix = "choose other targets, or a coarser partition"
        raise _bad("no domain that the mixture wants has a row in the corpus", fix)
    return normalised(mixture.partition, kept, domains), lost


def _numbered(weights: Sequence[float]) -> Iterable[tuple[str, float]]:
    return ((f"target {number}", weight) for number, weight in enumerate(weights))


def _check_names(weights: Mapping[str, float], domains: Sequence[str]) -> None:
    wanted = set(domains)
    if not wanted:
        raise _bad("no domains", "a partition has at least one domain")
    unknown = [name for name in weights if name not in wanted]
    if unknown:
        raise _bad(f"unknown domains: {_listed(unknown)}", f"name the partition's {len(wanted)} domains and no others")
    missing = [name for name in domains if name not in weights]
    if missing:
        raise _bad(f"missing domains: {_listed(missing)}", "give every domain a weight; 0 leaves it out")


def _check_weights(weights: Mapping[str, float]) -> None:
    if not weights:
        raise _bad("no weights", "give each domain a weight")
    for name, weight in weights.items():
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not 0 <= weight <= MAX_WEIGHT:
            raise _bad(f"weight of {name!r} is {weight!r}", "allowed: finite numbers, 0 or more")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(sorted(names)[:MAX_NAMED]) + more


def _bad(what: str, fix: str) -> SpecError:
    return SpecError("spec.bad-mixture", f"mixture: {what}", fix)
