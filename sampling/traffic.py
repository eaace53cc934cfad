"""What clients ask for, as a mixture: counts of routed requests by domain into weights.

Counts may be blurred before they leave the router: Laplace noise of scale 1/epsilon makes the histogram
epsilon-differentially private in one request (Dwork et al., 2006). Few requests say little, so they are
drawn towards the natural mixture as if it had been asked for `prior_requests` times.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from potluck.errors import SpecError
from potluck.ids import Json
from sampling.histogram import spread
from sampling.mixture import Mixture, normalised
from sampling.splits import draw


def traffic_mixture(
    counts: Mapping[str, int],
    natural: Mixture,
    *,
    prior_requests: float,
    epsilon: float | None = None,
    seed: int = 0,
) -> tuple[Mixture, dict[str, Json]]:
    """Weights by domain from counts of requests.

    Args:
        counts: requests by domain name; a domain that is not named had none.
        natural: what the weights are drawn towards; its domains are the partition's.
        prior_requests: strength of that, in requests, 0 or more.
        epsilon: privacy of one request; None adds no noise.
        seed: of the noise, secret and new for each histogram: whoever knows it can take the noise away.

    Returns:
        The mixture, and figures: `requests` (None when blurred, for the exact number would tell), `domains`,
        `effective_domains`, `entropy_domains`, `sampling_noise` and `privacy_noise` (expected L1 distances),
        `prior_share`.

    Raises:
        SpecError: ``spec.bad-value``; ``spec.bad-mixture``, an unknown domain, or nothing to go by.
    """
    _check(counts, natural, prior_requests, epsilon)
    domains = sorted(natural.weights)
    exact = np.array([counts.get(name, 0) for name in domains], dtype=np.float64)
    seen = exact if epsilon is None else np.maximum(0.0, exact + laplace(domains, 1.0 / epsilon, seed))
    total = float(seen.sum()) + prior_requests
    prior = prior_requests * np.array(natural.aligned(domains), dtype=np.float64)
    mixture = normalised(natural.partition, dict(zip(domains, (seen + prior).tolist(), strict=True)), domains)
    return mixture, {
        "requests": int(exact.sum()) if epsilon is None else None,
        "domains": len(domains),
        **spread(np.array(mixture.aligned(domains), dtype=np.float64)),
        "sampling_noise": math.sqrt(2.0 / math.pi) * float(np.sqrt(seen).sum()) / total,
        "privacy_noise": 0.0 if epsilon is None else len(domains) / epsilon / total,
        "prior_share": prior_requests / total,
    }


def laplace(names: list[str], scale: float, seed: int) -> np.ndarray:
    """float64, one number for each name, Laplace distributed with mean 0; E|x| = scale."""
    # 52 bits and a half step: never 0 or 1, whose logarithm is infinite.
    number = (np.array([draw(seed, "traffic", name) >> 12 for name in names], dtype=np.float64) + 0.5) * 2.0**-52
    centred = number - 0.5
    noise: np.ndarray = -scale * np.sign(centred) * np.log1p(-2.0 * np.abs(centred))
    return noise


def _check(counts: Mapping[str, int], natural: Mixture, prior_requests: float, epsilon: float | None) -> None:
    if not 0 <= prior_requests < math.inf:
        raise SpecError("spec.bad-value", f"prior_requests = {prior_requests}", "allowed: 0 or more, finite")
    if epsilon is not None and not 0 < epsilon < math.inf:
        raise SpecError("spec.bad-value", f"epsilon = {epsilon}", "allowed: above 0, finite; leave it out for no noise")
    unknown = sorted(name for name in counts if name not in natural.weights)
    if unknown:
        what = f"mixture: requests for unknown domains: {', '.join(unknown[:5])}"
        raise SpecError("spec.bad-mixture", what, "count requests by the partition that the mixture is of")
    negative = sorted(name for name, count in counts.items() if count < 0)
    if negative:
        what = f"mixture: {counts[negative[0]]} requests for {negative[0]!r}"
        raise SpecError("spec.bad-mixture", what, "allowed: 0 or more")
