"""Any number of models on the same held-out rows: levels of each, by source, and paired differences.

NLL is in nats per target, over all targets. Keys of the report:

- `models.NAME`, `by_source.SOURCE.models.NAME`: {nll, perplexity, bits_per_byte}.
- `pairs["A - B"]`: {mean, low, high, smallest_effect}, paired bootstrap over packs; below zero A is better.
  `smallest_effect` is half the interval's width: what this much text could have seen.
- `by_source.SOURCE.pairs`: the same over the source's rows; null where there are too few packs.
- `rows`, `packs`, `targets`, `target_bytes` (`sampling.target_bytes`), `split`, `bootstrap`, and `facts` as given.

What comes of a model that blew up is null.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from potluck.ids import Json
from sampling.compare import Bootstrap
from sampling.evaluate import paired_bootstrap
from sampling.rows import META_PACK, META_SOURCE, META_TARGETS, TokenRows
from sampling.target_bytes import bits_per_byte, target_bytes
from sampling.taskio import TaskCall, TaskOutput


def eval_contest(call: TaskCall) -> TaskOutput:
    """Task `eval`, what `contest`: NLL arrays of models, as `eval`/`nll` writes them, into one report.

    Raises:
        DataError: ``data.bad-shape``, an array does not fit the rows.
    """
    params = call.params
    manifest = call.json("tokens_manifest")
    rows = TokenRows(manifest, call.blobs, str(params["split"]))
    shape = (len(rows), 2)
    nll = {name: np.asarray(call.array(name, shape), dtype=np.float64).sum(axis=1) for name in params["models"]}
    report = build_contest(
        nll,
        rows.meta(np.arange(len(rows), dtype=np.int64)).astype(np.int64),
        target_bytes(manifest, call.blobs, rows, rows.sequence_length).sum(axis=1),
        sources=manifest["sources"],
        pairs=[(first, second) for first, second in params["pairs"]],
        bootstrap=Bootstrap(
            samples=int(params["bootstrap_samples"]), confidence=float(params["confidence"]), seed=int(params["seed"])
        ),
    )
    report = {"facts": params.get("facts") or {}, "split": params["split"], **report}
    figures = {key: report[key] for key in ("models", "pairs", "rows", "packs", "targets", "target_bytes")}
    return TaskOutput(files={"report": call.write_json("report", report)}, figures=figures)


def build_contest(
    nll: Mapping[str, np.ndarray],
    meta: np.ndarray,
    byte_counts: np.ndarray,
    *,
    sources: Sequence[str],
    pairs: Sequence[tuple[str, str]],
    bootstrap: Bootstrap,
) -> dict[str, Json]:
    """Everything that follows from the arrays.

    Args:
        nll: by model, float64 [rows], sums over the real targets; nats.
        meta: int64 [rows, 3], as `TokenRows.meta` gives it.
        byte_counts: int64 [rows], of the real targets.
        pairs: models to compare, first minus second.
    """
    everything = np.ones(len(meta), dtype=bool)
    by_source: dict[str, Json] = {
        name: _table(nll, meta, byte_counts, meta[:, META_SOURCE] == number, pairs, bootstrap)
        for number, name in enumerate(sources)
    }
    return {
        **_table(nll, meta, byte_counts, everything, pairs, bootstrap),
        "by_source": by_source,
        "bootstrap": {"samples": bootstrap.samples, "confidence": bootstrap.confidence, "seed": bootstrap.seed},
    }


def _table(
    nll: Mapping[str, np.ndarray],
    meta: np.ndarray,
    byte_counts: np.ndarray,
    mine: np.ndarray,
    pairs: Sequence[tuple[str, str]],
    bootstrap: Bootstrap,
) -> dict[str, Json]:
    targets = meta[mine, META_TARGETS]
    packs = meta[mine, META_PACK]
    num_bytes = int(byte_counts[mine].sum())
    models: dict[str, Json] = {name: _level(array[mine], int(targets.sum()), num_bytes) for name, array in nll.items()}
    return {
        "rows": int(mine.sum()),
        "packs": len(np.unique(packs)),
        "targets": int(targets.sum()),
        "target_bytes": num_bytes,
        "models": models,
        "pairs": {
            f"{first} - {second}": _difference(nll[first][mine] - nll[second][mine], targets, packs, bootstrap)
            for first, second in pairs
        },
    }


def _difference(difference: np.ndarray, targets: np.ndarray, packs: np.ndarray, bootstrap: Bootstrap) -> Json:
    if not np.isfinite(difference).all():
        return None
    interval = paired_bootstrap(
        difference,
        targets,
        packs,
        samples=bootstrap.samples,
        confidence=bootstrap.confidence,
        seed=bootstrap.seed,
    )
    if interval is None:
        return None
    low, high = interval.low, interval.high
    half = None if low is None or high is None else (high - low) / 2
    return {"mean": interval.mean, "low": low, "high": high, "smallest_effect": half}


def _level(nll: np.ndarray, targets: int, num_bytes: int) -> Json:
    total = float(nll.sum())
    level = total / targets if targets else math.nan
    if not math.isfinite(level):
        return None
    return {
        "nll": level,
        "perplexity": math.exp(level) if level < 700 else None,
        "bits_per_byte": bits_per_byte(total, num_bytes),
    }
