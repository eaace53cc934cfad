"""Whether an averaging happened, told from every peer's account of what went in and what came out. Pure.

hivemind's own word is no evidence: when a peer dies midway it mostly reports success, and each element is
averaged or not. So every peer tells, over Potluck's own channel, digests and k random projections of its
input and its output. Projection is linear, so the mean of the inputs' projections is the projection of
their mean, whatever way the tensors took.

**Tolerance.** With u = 2^-24, W peers, A = the mean of their |x| in one element, hivemind computes
``x_i + ((x_1 + ... + x_W) / W - x_i)`` in float32: W - 1 additions, a division (2 roundings, for some
kernels multiply by the inverse), a difference and a sum, so peer i's element is off by at most
u ((W + 3) A + |x_i|) to first order. Summed over the tensor, the 2-norm of peer i's rounding error is at
most ``rounding = u (1 + 2^-10) ((W + 3) a + norm(x_i))`` with a the mean of the inputs' 2-norms. A
projection on a standard normal vector that was drawn without looking at the data turns an error e into a
draw from N(0, norm(e)^2), so honest rounding exceeds ``SIGMAS * rounding`` with probability 1.2e-15.

**Power.** A corruption d of any shape becomes a draw from N(0, norm(d)^2) too: each of k projections misses
it with probability erf(t / (norm(d) sqrt(2))), t the tolerance; all 16 miss one of 2.9 tolerances once in
10^9 times. With three peers that is 1e-5 of a tensor's 2-norm: the rule sees one typical element of 5M left
unaveraged where the peers' inputs are unrelated, and a share of 1e-6 where they differ by 1% (`visible_share`).
What is smaller, it cannot see; so average differences, whose norms are small, and not weights. The rule is
against faults, not lies: a peer that makes up its figures, or its norms, is believed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from potluck.ids import Digest

NUM_PROJECTIONS = 16
SIGMAS = 8.0
BLOCK_ELEMENTS = 8192
"""Projections are summed block by block in float64; the bound on that sum's own error depends on it."""
UNIT_ROUNDOFF = 2.0**-24
HIGHER_ORDER = 1 + 2.0**-10
"""Covers products of roundings, for W up to 64."""
SMALLEST_NORMAL = 2.0**-126
"""What an operation loses where a processor flushes subnormal numbers to zero."""
CANARY_TOLERANCE = 1e-6
"""Libraries may differ in the last bit of a draw; other draws differ in the first digit."""


@dataclass(frozen=True, kw_only=True)
class TensorFigures:
    """What one peer tells of one tensor. Norms are 2-norms; all figures are computed in float64."""

    name: str
    num_elements: int
    input_norm: float
    output_norm: float
    input_projections: tuple[float, ...]
    output_projections: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class PeerReport:
    """What one peer tells of one round."""

    round_key: str
    index: int
    canary: float
    """Sum of the first block of draws: equal where peers project on the same vectors."""
    input_digest: Digest
    output_digest: Digest
    tensors: tuple[TensorFigures, ...]
    """By name."""


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """Every output is the mean, but for rounding and for what the rule cannot see."""

    output_digest: Digest
    """The canonical bytes: those of peer 0. hivemind's outputs mostly differ in last bits from peer to peer."""
    one_digest: bool
    """Whether all outputs had these very bytes."""
    residual: float
    """The largest distance between an output's projection and the inputs' mean, in tolerances: below 1."""


@dataclass(frozen=True, kw_only=True)
class Refused:
    reason: str


def accept(reports: Sequence[PeerReport], *, round_key: str, num_peers: int) -> Accepted | Refused:
    """Accepts if all peers told and each output agrees with the mean of the inputs in every projection.

    Outputs then agree with each other too, so no rule of its own is needed for that. All or nothing: one
    peer's wrong output refuses the others' right ones.
    """
    by_index = sorted(reports, key=lambda report: report.index)
    if reason := _not_one_round(by_index, round_key, num_peers):
        return Refused(reason=reason)
    residual = 0.0
    for figures in zip(*(report.tensors for report in by_index), strict=True):
        means = [_mean(values) for values in zip(*(f.input_projections for f in figures), strict=True)]
        mean_norm = _mean([f.input_norm for f in figures])
        for index, own in enumerate(figures):
            allowed = tolerance(own, mean_input_norm=mean_norm, num_peers=num_peers)
            off = max(abs(value - mean) for value, mean in zip(own.output_projections, means, strict=True))
            if off > allowed:
                return Refused(
                    reason=f"peer {index}'s {own.name} is off the mean of the inputs by {off:.3g} in a projection; "
                    f"rounding explains {allowed:.3g}"
                )
            residual = max(residual, off / allowed if allowed else 0.0)
    digests = {report.output_digest for report in by_index}
    return Accepted(output_digest=by_index[0].output_digest, one_digest=len(digests) == 1, residual=residual)


def tolerance(own: TensorFigures, *, mean_input_norm: float, num_peers: int) -> float:
    """How far rounding may carry a projection of one peer's output from that of the inputs' mean."""
    rounding = UNIT_ROUNDOFF * HIGHER_ORDER * ((num_peers + 3) * mean_input_norm + own.input_norm)
    flushed = (num_peers + 3) * SMALLEST_NORMAL * math.sqrt(own.num_elements)
    # Sums of products in blocks, of two vectors whose 2-norms are at most 2 sqrt(n) and the tensor's.
    terms = BLOCK_ELEMENTS + own.num_elements / BLOCK_ELEMENTS + 2
    summing = terms * 2.0**-53 * 2 * math.sqrt(own.num_elements) * (mean_input_norm + own.output_norm)
    return SIGMAS * (rounding + flushed) + summing


def miss_probability(norm_in_tolerances: float, num_projections: int = NUM_PROJECTIONS) -> float:
    """Probability that no projection shows a corruption whose 2-norm, rounding included, is so many tolerances."""
    return math.erf(1 / (norm_in_tolerances * math.sqrt(2))) ** num_projections


def visible_norm(*, miss: float, num_projections: int = NUM_PROJECTIONS) -> float:
    """The 2-norm, in tolerances, from which on a corruption escapes with probability at most `miss`."""
    low, high = 1e-3, 1e9
    for _ in range(200):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if miss_probability(middle, num_projections) <= miss else (middle, high)
    return high


def visible_share(*, num_peers: int, disagreement: float, miss: float) -> float:
    """The share of a tensor's elements that shows when it is left unaveraged at one peer.

    Args:
        disagreement: root mean square of a peer's distance from the mean, over that of its elements: about
            sqrt(1 - 1/W) for unrelated inputs such as differences after local steps, little for weights.
        miss: as in `visible_norm`.
    """
    tolerance_to_norm = SIGMAS * UNIT_ROUNDOFF * HIGHER_ORDER * (num_peers + 4)
    return min(1.0, (visible_norm(miss=miss) * tolerance_to_norm / disagreement) ** 2)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _not_one_round(reports: Sequence[PeerReport], round_key: str, num_peers: int) -> str:
    """Why the reports are not those of one round's peers; empty if they are."""
    indices = [report.index for report in reports]
    if indices != list(range(num_peers)):
        return f"there are reports of the peers {indices}, not of 0 to {num_peers - 1}"
    if any(report.round_key != round_key for report in reports):
        return "a report is of another round"
    first = reports[0]
    shapes = [(f.name, f.num_elements) for f in first.tensors]
    for report in reports:
        if [(f.name, f.num_elements) for f in report.tensors] != shapes or not shapes:
            return f"peer {report.index} averaged other tensors than peer 0, or none"
        if abs(report.canary - first.canary) > CANARY_TOLERANCE:
            return f"peer {report.index} projects on other vectors than peer 0: their numpy versions may differ"
        for figures in report.tensors:
            if {len(figures.input_projections), len(figures.output_projections)} != {NUM_PROJECTIONS}:
                return f"peer {report.index}'s {figures.name} has not {NUM_PROJECTIONS} projections"
            values = (figures.input_norm, figures.output_norm, *figures.input_projections, *figures.output_projections)
            if not all(map(math.isfinite, values)):
                return f"peer {report.index}'s {figures.name} is not finite"
    return ""
