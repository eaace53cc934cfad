"""What a run's mixture can be made of: its labels manifest in the store, names with weights, counts of requests."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping

from potluck.errors import DataError, Refused, SpecError
from potluck.ids import Digest, short
from potluck.jsontext import read_json
from potluck.net.blobs.store import BlobStore
from sampling.labels import Labels, parse_labels
from sampling.mixture import MAX_WEIGHT, SUM_TOLERANCE, Mixture, natural, normalised, supported
from sampling.traffic import traffic_mixture

MAX_DOMAINS = 4096
"""Of a partition whose mixture is shown and changed: names and weights of one answer stay below 1 MiB."""
MAX_MANIFEST_BYTES = 4 << 20
MIN_REQUESTS = 20
"""Fewer counted requests say nothing of what is asked for."""
MAX_NAMED = 3
"""Unknown names that a message answers with near ones."""


def read_labels(digest: Digest, store: BlobStore) -> Labels:
    """The labels manifest of a run's partition.

    Raises:
        DataError: ``data.missing-blob``, ``data.bad-labels``.
        Refused: ``refused.too-many-domains``.
    """
    path = store.path(digest)
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise _too_many(f"the labels manifest {short(digest)} has {path.stat().st_size} bytes")
    try:
        labels = parse_labels(read_json(path.read_bytes()))
    except ValueError as error:
        what = f"blob {short(digest)} is no labels manifest: {error}"
        raise DataError("data.bad-labels", what, "compute the labels again") from None
    if len(labels.domains) > MAX_DOMAINS:
        raise _too_many(f"the partition has {len(labels.domains)} domains")
    return labels


def read_mixture(digest: Digest, store: BlobStore) -> Mixture:
    """Raises:
    DataError: ``data.missing-blob``.
    SpecError: ``spec.bad-mixture``.
    """
    path = store.path(digest)
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise _too_many(f"the mixture {short(digest)} has {path.stat().st_size} bytes")
    return Mixture.from_json(path.read_bytes())


def completed(named: Mapping[str, float], labels: Labels, *, others_zero: bool) -> Mixture:
    """A mixture over all domains from weights of some.

    Args:
        named: weights by domain name.
        labels: of the partition.
        others_zero: True: the named domains are all that is read, by the proportions of their weights. False:
            their weights are shares of all, and the other domains share the rest by their natural shares.

    Raises:
        SpecError: ``spec.bad-mixture``.
    """
    _check_named(named, labels)
    weights = {name: named.get(name, 0.0) for name in labels.domains}
    if others_zero:
        return normalised(labels.partition, weights, labels.domains)
    rest = 1.0 - math.fsum(named.values())
    if rest < -SUM_TOLERANCE:
        fix = "let the named shares sum to at most 1, or name all that is to be read (--only): that is normalised"
        raise _bad(f"the named shares sum to {1.0 - rest:.6g}", fix)
    others = {name: rows for name, rows in labels.sizes.items() if rows and name not in named}
    if not others and rest > SUM_TOLERANCE:
        fix = "let the shares sum to 1, or name all that is to be read (--only): that is normalised"
        raise _bad(f"every domain is named and the shares sum to {1.0 - rest:.6g}", fix)
    total = sum(others.values())
    weights |= {name: max(rest, 0.0) * rows / total for name, rows in others.items()}
    return normalised(labels.partition, weights, labels.domains)


def from_traffic(counts: Mapping[str, int], labels: Labels, *, prior_requests: float | None) -> Mixture:
    """A mixture from counted requests by domain.

    Args:
        counts: requests; of the partition's domains only.
        labels: of the partition.
        prior_requests: how many requests the natural mixture counts for; None: one a domain, on average.

    Raises:
        Refused: ``refused.no-traffic``: too few requests to say anything.
        SpecError: ``spec.bad-value``, ``spec.bad-mixture``.
    """
    seen = sum(counts.values())
    if seen < MIN_REQUESTS:
        what = f"{seen} requests were counted for this run; a mixture from traffic needs {MIN_REQUESTS}"
        raise Refused("refused.no-traffic", what, "start a router with --count-domains, and wait")
    prior = float(len(labels.domains)) if prior_requests is None else prior_requests
    evenly = natural(labels.partition, labels.sizes)
    mixture, _ = traffic_mixture(counts, evenly, prior_requests=prior)
    return supported(mixture, labels.sizes)[0]


def _check_named(named: Mapping[str, float], labels: Labels) -> None:
    if not named:
        raise _bad("no domain is named", "give at least one domain a weight")
    unknown = sorted(name for name in named if name not in labels.sizes)
    if unknown:
        listed = ", ".join(_with_near(name, labels) for name in unknown[:MAX_NAMED])
        more = f" and {len(unknown) - MAX_NAMED} more" if len(unknown) > MAX_NAMED else ""
        raise _bad(f"unknown domains: {listed}{more}", "`potluck mix show --all` lists the domains")
    for name, weight in named.items():
        if not 0 <= weight <= MAX_WEIGHT:
            raise _bad(f"weight of {name!r} is {weight!r}", "allowed: finite numbers, 0 or more")
        if weight and not labels.sizes[name]:
            raise _bad(f"domain {name!r} has no rows in this corpus", "leave it out, or give it 0")


def _with_near(name: str, labels: Labels) -> str:
    near = difflib.get_close_matches(name[:128], labels.domains, n=3)
    return f"{name[:128]!r} (near: {', '.join(near)})" if near else repr(name[:128])


def _too_many(what: str) -> Refused:
    return Refused("refused.too-many-domains", what, f"mixtures of at most {MAX_DOMAINS} domains can be changed")


def _bad(what: str, fix: str) -> SpecError:
    return SpecError("spec.bad-mixture", f"mixture: {what}", fix)
