"""The report of a run: the mixture against its opponents on held-out rows, leak-free after the prefix.

The routing decision of a row is the argmin of its score columns (ties to the lower expert), with no
capacity. NLL is in nats per target; `suffix` means targets M+1 and later. Keys of the report:

- `mixture`, `dense`, `random_split`, `oracle`: {nll_all, nll_suffix, perplexity_all, perplexity_suffix,
  bits_per_byte_all, bits_per_byte_suffix}.
  Several random-split experts count as their mean; the oracle takes each row's least suffix NLL.
- `mixture_minus_dense`, `random_minus_dense`, `mixture_minus_random`: {mean, low, high} of the suffix
  NLL, paired bootstrap over packs; below zero the first is better.
- `by_source.NAME`, `by_expert[e]`: the keys above and `rows`, over rows of a source, or routed to an expert.
- `experts_by_source[e][s]`: suffix NLL of every expert on every source, whatever the routing.
- `routing`: `table[e][s]` in rows, `loads`, `sources`, `purity`, `nmi`, `agrees_with_oracle`.
- `targets`, and `target_bytes` (`sampling.target_bytes`): {all, prefix, suffix}; `packs`, `rows`, `bootstrap`,
  `split`, `prefix_length`, `facts` as given.

A side that is absent, a level without targets, and what comes of a model that blew up, is null.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from potluck.ids import Json
from sampling.evaluate import Interval, contingency, normalised_mutual_information, paired_bootstrap, purity
from sampling.rows import META_PACK, META_SOURCE, META_TARGETS, TokenRows
from sampling.target_bytes import bits_per_byte, target_bytes
from sampling.taskio import TaskCall, TaskOutput

SIDES = ("mixture", "dense", "random_split", "oracle")


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """What is known of the rows, one entry a row."""

    source: np.ndarray
    pack: np.ndarray
    targets_R2: np.ndarray
    """int64 [rows, 2]: real targets in the prefix and after it."""
    bytes_R2: np.ndarray
    """int64 [rows, 2]: bytes of those targets."""
    names: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    samples: int
    confidence: float
    seed: int


def eval_compare(call: TaskCall) -> TaskOutput:
    """Task `eval`, what `compare`: score columns and NLL arrays of all models into one report.

    Raises:
        DataError: ``data.bad-shape``, an array does not fit the rows.
    """
    params = call.params
    manifest = call.json("tokens_manifest")
    rows = TokenRows(manifest, call.blobs, str(params["split"]))
    prefix = int(params["prefix_length"])
    meta = rows.meta(np.arange(len(rows), dtype=np.int64)).astype(np.int64)
    in_prefix = np.minimum(meta[:, META_TARGETS], prefix - 1)
    held_out = HeldOut(
        source=meta[:, META_SOURCE],
        pack=meta[:, META_PACK],
        targets_R2=np.stack([in_prefix, meta[:, META_TARGETS] - in_prefix], axis=1),
        bytes_R2=target_bytes(manifest, call.blobs, rows, prefix),
        names=manifest["sources"],
    )
    groups: Mapping[str, Any] = params["groups"]
    columns = np.stack([call.array(name, (len(rows),)) for name in call.numbered("column")], axis=1)
    experts = _group(call, groups.get("mixture"), len(rows))
    assert experts is not None, "a comparison has a mixture"
    dense = _group(call, groups.get("dense"), len(rows))
    random_split = _group(call, groups.get("random_split"), len(rows))
    bootstrap = Bootstrap(
        samples=int(params["bootstrap_samples"]), confidence=float(params["confidence"]), seed=int(params["seed"])
    )
    report = build_report(
        columns=columns,
        experts_ER2=experts,
        dense_R2=None if dense is None else dense.mean(axis=0),
        random_split_R2=None if random_split is None else random_split.mean(axis=0),
        held_out=held_out,
        bootstrap=bootstrap,
    )
    report = {"facts": params.get("facts") or {}, "split": params["split"], "prefix_length": prefix, **report}
    return TaskOutput(files={"report": call.write_json("report", report)}, figures=headline(report))


def build_report(
    *,
    columns: np.ndarray,
    experts_ER2: np.ndarray,
    dense_R2: np.ndarray | None,
    random_split_R2: np.ndarray | None,
    held_out: HeldOut,
    bootstrap: Bootstrap,
) -> dict[str, Json]:
    """Everything that follows from the arrays.

    Args:
        columns: uint16 [rows, E], prefix scores.
        experts_ER2: float64 [E, rows, 2], sums of NLL over prefix and suffix targets; nats.
        dense_R2: float64 [rows, 2], or None.
        random_split_R2: float64 [rows, 2], the mean over random-split experts (their routing is a
            fair die), or None.
        held_out: source, pack and targets of the rows.
        bootstrap: of the paired intervals.
    """
    every = np.arange(len(columns))
    choice = columns.argmin(axis=1)
    best = experts_ER2[:, :, 1].argmin(axis=0)
    sides = {
        "mixture": experts_ER2[choice, every],
        "dense": dense_R2,
        "random_split": random_split_R2,
        "oracle": experts_ER2[best, every],
    }
    by_source: dict[str, Json] = {}
    for number, name in enumerate(held_out.names):
        mine = held_out.source == number
        by_source[name] = _summary(sides, mine, held_out, bootstrap)
    table = contingency(choice, held_out.source, len(experts_ER2), len(held_out.names))
    return {
        **_summary(sides, np.ones(len(columns), dtype=bool), held_out, bootstrap),
        "by_source": by_source,
        "by_expert": [_summary(sides, choice == expert, held_out, bootstrap) for expert in range(len(experts_ER2))],
        "experts_by_source": _experts_by_source(experts_ER2, held_out),
        "routing": {
            "table": table.tolist(),
            "loads": table.sum(axis=1).tolist(),
            "sources": list(held_out.names),
            "purity": purity(table),
            "nmi": normalised_mutual_information(table),
            "agrees_with_oracle": float((choice == best).mean()),
        },
        "targets": _by_part(held_out.targets_R2),
        "target_bytes": _by_part(held_out.bytes_R2),
        "packs": len(np.unique(held_out.pack)),
        "bootstrap": {"samples": bootstrap.samples, "confidence": bootstrap.confidence, "seed": bootstrap.seed},
    }


def headline(report: Mapping[str, Any]) -> dict[str, Json]:
    """The numbers that go into the run's figures."""
    figures: dict[str, Json] = {}
    for side in SIDES:
        figures[side] = report[side]
    for pair in ("mixture_minus_dense", "random_minus_dense", "mixture_minus_random"):
        figures[pair] = report[pair]
    figures["loads"] = report["routing"]["loads"]
    figures["purity"] = report["routing"]["purity"]
    figures["nmi"] = report["routing"]["nmi"]
    figures["targets"] = report["targets"]
    figures["target_bytes"] = report["target_bytes"]
    figures["packs"] = report["packs"]
    return figures


def _summary(
    sides: Mapping[str, np.ndarray | None], mine: np.ndarray, held_out: HeldOut, bootstrap: Bootstrap
) -> dict[str, Json]:
    """Levels of every side and paired differences, over some of the rows."""
    targets = held_out.targets_R2[mine]
    byte_counts = held_out.bytes_R2[mine]
    out: dict[str, Json] = {"rows": int(mine.sum()), "target_bytes": _by_part(byte_counts)}
    for side, nll in sides.items():
        out[side] = None if nll is None else _levels(nll[mine], targets, byte_counts)
    for name, left, right in (
        ("mixture_minus_dense", sides["mixture"], sides["dense"]),
        ("random_minus_dense", sides["random_split"], sides["dense"]),
        ("mixture_minus_random", sides["mixture"], sides["random_split"]),
    ):
        out[name] = None
        if left is not None and right is not None and np.isfinite(left).all() and np.isfinite(right).all():
            interval = paired_bootstrap(
                (left - right)[mine, 1],
                targets[:, 1],
                held_out.pack[mine],
                samples=bootstrap.samples,
                confidence=bootstrap.confidence,
                seed=bootstrap.seed,
            )
            out[name] = None if interval is None else _interval(interval)
    return out


def _by_part(counts: np.ndarray) -> dict[str, Json]:
    """Of [rows, 2]."""
    prefix, suffix = (int(total) for total in counts.sum(axis=0))
    return {"all": prefix + suffix, "prefix": prefix, "suffix": suffix}


def _levels(nll: np.ndarray, targets: np.ndarray, byte_counts: np.ndarray) -> dict[str, Json]:
    """Nats per target, perplexity and bits per byte, over all targets and after the prefix; null where there is none.

    All three [rows, 2].
    """
    nll_all = _ratio(float(nll.sum()), int(targets.sum()))
    nll_suffix = _ratio(float(nll[:, 1].sum()), int(targets[:, 1].sum()))
    return {
        "nll_all": nll_all,
        "nll_suffix": nll_suffix,
        "perplexity_all": _exp(nll_all),
        "perplexity_suffix": _exp(nll_suffix),
        "bits_per_byte_all": bits_per_byte(float(nll.sum()), int(byte_counts.sum())),
        "bits_per_byte_suffix": bits_per_byte(float(nll[:, 1].sum()), int(byte_counts[:, 1].sum())),
    }


def _experts_by_source(experts: np.ndarray, held_out: HeldOut) -> list[list[float | None]]:
    """Suffix NLL of every expert on every source, all rows: what each one has become good at."""
    num_sources = len(held_out.names)
    targets = np.bincount(held_out.source, weights=held_out.targets_R2[:, 1], minlength=num_sources)
    table = []
    for nll in experts:
        sums = np.bincount(held_out.source, weights=nll[:, 1], minlength=num_sources)
        table.append([_ratio(total, int(count)) for total, count in zip(sums.tolist(), targets.tolist(), strict=True)])
    return table


def _group(call: TaskCall, names: str | Sequence[str] | None, rows: int) -> np.ndarray | None:
    """float64 [models, rows, 2] of the inputs named; None where none is."""
    if not names:
        return None
    listed = [names] if isinstance(names, str) else names
    return np.stack([call.array(name, (rows, 2)) for name in listed])


def _interval(interval: Interval) -> dict[str, Json]:
    return {"mean": interval.mean, "low": interval.low, "high": interval.high}


def _ratio(total: float, count: int) -> float | None:
    value = total / count if count else math.nan
    return value if math.isfinite(value) else None


def _exp(nll: float | None) -> float | None:
    return None if nll is None or nll > 700 else math.exp(nll)
