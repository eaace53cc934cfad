"""The gate: a proposed mixture replaces natural sampling only where held-out text shows no harm.

Two forks of one checkpoint trained for equally many tokens, one by each mixture; both are measured on the
same held-out rows. The difference per target has an interval by the paired bootstrap over packs; the
proposal is adopted if its upper end is at most zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from potluck.errors import DataError
from potluck.ids import Json
from sampling.evaluate import paired_bootstrap
from sampling.labels import EXCLUDED, parse_labels
from sampling.mixture import Mixture
from sampling.rows import META_PACK, META_TARGETS, TokenRows
from sampling.taskio import TaskCall, TaskOutput

Verdict = Literal["adopted", "kept natural"]


def eval_gate(call: TaskCall) -> TaskOutput:
    """Task `eval`, what `gate`: NLL arrays of two forks, as task `nll` writes them, into a verdict.

    Inputs: `tokens_manifest`, `proposal`, `natural` (float64 [rows, 2]); parameters `split`,
    `bootstrap_samples`, `confidence`, `seed`. With `mixture`, `labels` (labels manifest) and `held_out`
    (uint32 [rows], the domain of each held-out row) the text counts as the mixture says, not as it lies.

    Raises:
        DataError: ``data.bad-shape``; ``data.bad-labels``.
    """
    rows = TokenRows(call.json("tokens_manifest"), call.blobs, str(call.params["split"]))
    meta = rows.meta(np.arange(len(rows), dtype=np.int64))
    targets = meta[:, META_TARGETS].astype(np.float64)
    nll = [np.asarray(call.array(name, (len(rows), 2))).sum(axis=1) for name in ("proposal", "natural")]
    counts = None
    if "mixture" in call.inputs:
        counts = _row_weights(call, np.asarray(call.array("held_out", (len(rows),))), targets)
    figures = gate(
        proposal=nll[0],
        natural=nll[1],
        targets=targets,
        packs=meta[:, META_PACK],
        row_weights=counts,
        samples=int(call.params["bootstrap_samples"]),
        confidence=float(call.params["confidence"]),
        seed=int(call.params["seed"]),
    )
    return TaskOutput(files={"gate": call.write_json("gate", figures)}, figures=figures)


def gate(
    *,
    proposal: np.ndarray,
    natural: np.ndarray,
    targets: np.ndarray,
    packs: np.ndarray,
    row_weights: np.ndarray | None = None,
    samples: int,
    confidence: float,
    seed: int,
) -> dict[str, Json]:
    """The verdict and what it rests on.

    Args:
        proposal: float64 [rows], NLL summed over a row's targets under the proposed mixture's fork; nats.
        natural: the same of the fork that sampled naturally.
        targets: [rows], real targets.
        packs: int [rows], pack id: the bootstrap's unit.
        row_weights: float64 [rows], what the targets of a row count for; None is one for all.
        samples: of the bootstrap.
        confidence: of the two-sided interval, e.g. 0.95: a harmful proposal passes with half of the rest.
        seed: of the bootstrap.

    Returns:
        `difference` (proposal - natural, nats per target), `low`, `high`, `verdict`, `packs` (that have
        weight), `smallest_effect` (the interval's half-width: less than that so many packs do not show).
        Null where a fork blew up, or where there are fewer than two packs; the verdict is then to keep.
    """
    counted = targets if row_weights is None else targets * row_weights
    weight = np.ones_like(counted) if row_weights is None else row_weights
    used = counted > 0
    figures: dict[str, Json] = {
        "difference": None,
        "low": None,
        "high": None,
        "smallest_effect": None,
        "packs": len(np.unique(packs[used])),
        "confidence": confidence,
    }
    verdict: Verdict = "kept natural"
    difference = (proposal - natural) * weight
    interval = None
    if np.isfinite(difference[used]).all():
        interval = paired_bootstrap(
            difference[used], counted[used], packs[used], samples=samples, confidence=confidence, seed=seed
        )
    if interval is not None:
        figures["difference"] = interval.mean
        if interval.low is not None and interval.high is not None:
            figures |= {"low": interval.low, "high": interval.high}
            figures["smallest_effect"] = (interval.high - interval.low) / 2
            if interval.high <= 0:
                verdict = "adopted"
    return {**figures, "verdict": verdict}


def mixture_row_weights(
    weights: Mapping[str, float], domains: list[str], held_out: np.ndarray, targets: np.ndarray
) -> np.ndarray:
    """float64 [rows]: mixture over the share of held-out targets, by the row's domain; 0 without a domain.

    Weighted so, held-out text is spread over domains as the mixture is, where it has text of them at all.
    """
    placed = held_out != EXCLUDED
    domain = np.where(placed, held_out, 0).astype(np.int64)
    here = np.bincount(domain, weights=targets * placed, minlength=len(domains))
    wanted = np.array([weights[name] for name in domains], dtype=np.float64)
    ratio = np.divide(wanted, here / max(here.sum(), 1.0), out=np.zeros_like(wanted), where=here > 0)
    counted: np.ndarray = ratio[domain] * placed
    return counted


def _row_weights(call: TaskCall, held_out: np.ndarray, targets: np.ndarray) -> np.ndarray:
    labels = parse_labels(call.json("labels"))
    mixture = Mixture.from_json(call.path("mixture").read_text(encoding="utf-8"))
    mixture.aligned(labels.domains)
    placed = held_out[held_out != EXCLUDED]
    if mixture.partition != labels.partition or (placed.size and int(placed.max()) >= len(labels.domains)):
        what = "mixture, labels and held-out labels are not of one partition"
        raise DataError("data.bad-labels", what, "label the held-out rows with the mixture's partition")
    return mixture_row_weights(mixture.weights, list(labels.domains), held_out, targets)
