"""From a target's windows to a mixture: the histogram of their domains, and what it can bear.

Figures, for weights h over K domains, m windows and T tokens to train (card of CRISP, 2410.03735):

- `effective_domains` = (sum of sqrt h)^2: as many equal domains would be as noisy; `entropy_domains` =
  exp(entropy of h). `expected_noise` is the expected L1 distance of h from the truth, sqrt(2 K_eff / (pi m)).
- `repeats` = sum of h_c (T h_c / n_c), n_c tokens in domain c: how often the text of a draw is read, on
  average; `max_repeats` the most of any domain; `effective_pool` = T / repeats, tokens.
- `lost_mass`: share of the windows in domains without rows. `unplaced`: share of windows further from
  their domain than nearly all of the corpus is; text that the partition does not know.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from potluck.errors import DataError, SpecError
from potluck.ids import Json
from sampling.labels import EXCLUDED, REACH_QUANTILE, Labels, distance_threshold, parse_labels
from sampling.mixture import Mixture, combined, normalised, supported
from sampling.taskio import TaskCall, TaskOutput, load_array

MAX_REPEATS = 4.0
"""Above it, reading text again is worth clearly less than new text (2305.16264)."""
MAX_REPEATS_OF_A_DOMAIN = 15.0
MAX_UNPLACED = 0.2
MAX_LOST_MASS = 0.05
MAX_NOISE = 0.5


@dataclass(frozen=True, kw_only=True)
class Target:
    """The windows of one target."""

    counts: np.ndarray
    """int64 [domains]."""
    unplaced: int | None
    """Windows beyond the threshold; None where distances are not known."""

    @property
    def windows(self) -> int:
        return int(self.counts.sum())


def fit_histogram(call: TaskCall) -> TaskOutput:
    """Task `fit`, what `histogram`: labels of one target's train windows, or of several, into a mixture.

    Inputs: `labels` (labels manifest of the corpus), `target-NNN` (uint32 [windows]); for `unplaced`
    also `distance-NNN` (float [windows]) and `corpus_distances` (float [train rows]) or parts of it.
    Parameters: `planned_tokens`; `target_weights` (else all alike); `smoothing`, windows added to every
    domain that has rows (Laplace), 0 if not given.

    Raises:
        SpecError: ``spec.bad-mixture``: no window, or none in a domain with rows.
        DataError: ``data.bad-labels``.
    """
    params = call.params
    labels = parse_labels(call.json("labels"))
    corpus = [load_array(call.path(name)) for name in sorted(call.inputs) if name.startswith("corpus_distances")]
    threshold = distance_threshold(np.concatenate(corpus)) if corpus else None
    targets = [_target(call, number, len(labels.domains), threshold) for number in call.numbered("target")]
    shares = [float(share) for share in params.get("target_weights") or [1.0] * len(targets)]
    mixture, figures = histogram(
        targets,
        shares,
        labels,
        smoothing=float(params.get("smoothing", 0.0)),
        planned_tokens=int(params["planned_tokens"]),
    )
    path = call.out / "mixture.json"
    path.write_text(mixture.to_json(), encoding="utf-8")
    return TaskOutput(files={"mixture": path}, figures={**figures, "warnings": warnings(figures)})


def histogram(
    targets: Sequence[Target],
    shares: Sequence[float],
    labels: Labels,
    *,
    smoothing: float = 0.0,
    planned_tokens: int,
) -> tuple[Mixture, dict[str, Json]]:
    """The mixture of targets that count by their shares, over domains with rows, and its figures.

    Args:
        targets: at least one, each with at least one window.
        shares: one for each target, normalised here.
        labels: domains and sizes of the corpus.
        smoothing: windows added to every domain that has rows.
        planned_tokens: what will be trained on.
    """
    if not 0 <= smoothing < math.inf:
        raise SpecError("spec.bad-value", f"smoothing = {smoothing}", "allowed: 0 or more, finite")
    sizes = np.array(list(labels.sizes.values()), dtype=np.int64)
    each = [_mixture(np.where(sizes > 0, t.counts + smoothing, t.counts), labels) for t in targets]
    raw = combined(each, shares)
    mixture, lost = supported(raw, labels.sizes)
    share = np.array(shares, dtype=np.float64) / sum(shares)
    weights = np.array(mixture.aligned(labels.domains), dtype=np.float64)
    observed = np.stack([target.counts for target in targets])
    windows = observed.sum(axis=1)
    unplaced = [t.unplaced / t.windows for t in targets if t.unplaced is not None]
    return mixture, {
        "windows": int(windows.sum()),
        "domains": len(sizes),
        "domains_with_rows": int((sizes > 0).sum()),
        "occupied_domains": int((observed.sum(axis=0) > 0).sum()),
        **spread(weights),
        "expected_noise": expected_noise(observed / windows[:, None], share, windows),
        "lost_mass": lost,
        "unplaced": float(np.dot(share, unplaced)) if len(unplaced) == len(targets) else None,
        **repeats(weights, sizes * labels.sequence_length, planned_tokens),
    }


def spread(weights: np.ndarray) -> dict[str, Json]:
    """How many domains weights are spread over, in two ways."""
    positive = weights[weights > 0]
    return {
        "effective_domains": float(np.sqrt(positive).sum() ** 2),
        "entropy_domains": float(np.exp(-(positive * np.log(positive)).sum())),
    }


def expected_noise(observed_TK: np.ndarray, shares: np.ndarray, windows: np.ndarray) -> float:
    """Expected L1 distance of a histogram from the truth, to first order.

    The count of a domain has variance of about m h, and E|x| = sqrt(2/pi) std x. For several targets the
    variances add by their squared shares; for one this is sqrt(2 K_eff / (pi m)).

    Args:
        observed_TK: float [targets, domains], each row sums to one.
        shares: float [targets], sums to one.
        windows: int [targets].
    """
    variance = ((shares**2 / windows)[:, None] * observed_TK).sum(axis=0)
    return float(math.sqrt(2.0 / math.pi) * np.sqrt(variance).sum())


def repeats(weights: np.ndarray, tokens: np.ndarray, planned_tokens: int) -> dict[str, Json]:
    """How often text is read when `planned_tokens` are drawn by weights from domains of so many tokens."""
    used = weights > 0
    passes = planned_tokens * weights[used] / tokens[used]
    mean = float((weights[used] * passes).sum())
    return {
        "planned_tokens": planned_tokens,
        "repeats": mean,
        "max_repeats": float(passes.max()),
        "effective_pool": planned_tokens / mean if mean else None,
    }


def warnings(figures: Mapping[str, Any]) -> list[str]:
    """What a person should know before the run, in words; empty where all is well."""
    found = []
    windows, noise = figures["windows"], figures["expected_noise"]
    if figures["repeats"] > MAX_REPEATS:
        found.append(
            f"text is read {figures['repeats']:.1f} times on average (more than {MAX_REPEATS:.0f} overfits): "
            f"train on fewer than {figures['planned_tokens']:,} tokens, add text, or take fewer domains"
        )
    if figures["max_repeats"] > MAX_REPEATS_OF_A_DOMAIN:
        found.append(f"the text of one domain is read {figures['max_repeats']:.0f} times")
    if windows < figures["effective_domains"]:
        found.append(
            f"{windows:,} windows of the target for {figures['effective_domains']:.0f} effective domains: "
            "the histogram is mostly chance; give more target text or take fewer domains"
        )
    elif noise > MAX_NOISE:
        found.append(
            f"the histogram of {windows:,} windows is expected to be off by {noise:.2f} in L1 distance (of at most 2): "
            "give more target text or take fewer domains"
        )
    if figures["unplaced"] is not None and figures["unplaced"] > MAX_UNPLACED:
        found.append(
            f"{figures['unplaced']:.0%} of the target lies further out than {REACH_QUANTILE:.1%} of the corpus: "
            "the corpus holds little text like it"
        )
    if figures["lost_mass"] > MAX_LOST_MASS:
        found.append(f"{figures['lost_mass']:.0%} of the target falls in domains without text in the corpus")
    return found


def _target(call: TaskCall, name: str, domains: int, threshold: float | None) -> Target:
    placed = np.asarray(load_array(call.path(name)))
    known = placed != EXCLUDED
    if not known.any():
        raise SpecError("spec.bad-mixture", f"mixture: {name} has no window in any domain", "give it more text")
    if int(placed[known].max()) >= domains:
        what = f"{name}: label {int(placed[known].max())} with {domains} domains"
        raise DataError("data.bad-labels", what, "label with the partition of the corpus")
    unplaced = None
    if threshold is not None:
        distances = load_array(call.path(name.replace("target", "distance", 1)))
        if distances.shape != placed.shape:
            what = f"distances of {name} have shape {distances.shape}, not {placed.shape}"
            raise DataError("data.bad-labels", what, "compute labels and distances in one task")
        unplaced = int((np.asarray(distances)[known] > threshold).sum())
    return Target(counts=np.bincount(placed[known], minlength=domains), unplaced=unplaced)


def _mixture(counts: np.ndarray, labels: Labels) -> Mixture:
    weights = dict(zip(labels.domains, counts.astype(np.float64).tolist(), strict=True))
    return normalised(labels.partition, weights, labels.domains)
