"""Tasks that run a model over rows: score columns, held-out NLL, the probe, purity. torch comes in late."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from potluck.config import from_mapping
from potluck.ids import Json
from potluck.lm.config import ModelConfig
from sampling.evaluate import contingency, normalised_mutual_information, purity
from sampling.permute import permute
from sampling.rows import META_SOURCE, META_TARGETS, TokenRows, stream_rows
from sampling.taskio import TaskCall, TaskOutput

if TYPE_CHECKING:
    from potluck.lm.model import Decoder

SCORE_SCALE = 4096
"""Score columns are fixed point: NLL in nats per token x 4096, in uint16; 16 nats saturate."""
BATCHES_PER_REPORT = 64


def score_column(call: TaskCall) -> TaskOutput:
    """Task `score`: mean prefix NLL of `count` rows under one router, as uint16 fixed point.

    Train rows are the positions [start, start + count) of the stream `key`; rows of the other splits
    are taken in their own order. Saturated and non-finite scores become 65,535 and are counted.
    """
    params = call.params
    rows = TokenRows(call.json("tokens_manifest"), call.blobs, str(params["split"]))
    start, count = int(params["start"]), int(params["count"])
    if params["split"] == "train":
        indices = stream_rows(len(rows), int(params["key"]), start, count)
    else:
        indices = np.arange(start, start + count, dtype=np.int64)
    nll = _prefix_nll(call, "weights", rows, indices, lambda done: call.progress(done))
    column, saturated = to_fixed_point(nll)
    return TaskOutput(
        files={"column": call.write_array("column", column)},
        figures={"saturated": saturated, "mean_prefix_nll": _finite(float(nll.mean()) if count else 0.0)},
    )


def to_fixed_point(nll: np.ndarray) -> tuple[np.ndarray, int]:
    """uint16 round(4096 x NLL), saturating, and how many saturated; NaN counts as saturated."""
    scaled = np.rint(np.nan_to_num(nll.astype(np.float64), nan=np.inf) * SCORE_SCALE)
    limit = np.iinfo(np.uint16).max
    return np.clip(scaled, 0, limit).astype(np.uint16), int((scaled > limit).sum())


def eval_nll(call: TaskCall) -> TaskOutput:
    """Task `eval`, what `nll`: float64 [n, 2], sums of NLL over prefix and suffix targets of every row."""
    params = call.params
    rows = TokenRows(call.json("tokens_manifest"), call.blobs, str(params["split"]))
    prefix = int(params["prefix_length"])
    indices = np.arange(len(rows), dtype=np.int64)
    targets = rows.meta(indices)[:, META_TARGETS]
    nll = _sums(call, rows, indices, prefix)
    num_suffix = int(np.maximum(0, targets - (prefix - 1)).sum())
    return TaskOutput(
        files={"nll": call.write_array("nll", nll)},
        figures={
            "nll_all": _finite(float(nll.sum()) / int(targets.sum())),
            "nll_suffix": _finite(float(nll[:, 1].sum()) / num_suffix) if num_suffix else None,
            "targets": int(targets.sum()),
        },
    )


def eval_probe(call: TaskCall) -> TaskOutput:
    """Task `eval`, what `probe`: mean NLL of fixed valid rows; null where it is not finite."""
    params = call.params
    rows = TokenRows(call.json("tokens_manifest"), call.blobs, "valid")
    indices = _drawn(len(rows), int(params["rows"]), int(params["key"]))
    nll = _sums(call, rows, indices, rows.sequence_length)
    mean = float(nll.sum()) / int(rows.meta(indices)[:, META_TARGETS].sum())
    vocab = _model_config(call).vocab
    return TaskOutput(figures={"mean_nll": _finite(mean), "finite": math.isfinite(mean), "log_vocab": math.log(vocab)})


def eval_purity(call: TaskCall) -> TaskOutput:
    """Task `eval`, what `purity`: how well the routers' choices on valid rows follow the sources."""
    params = call.params
    manifest = call.json("tokens_manifest")
    rows = TokenRows(manifest, call.blobs, "valid")
    indices = _drawn(len(rows), int(params["rows"]), int(params["key"]))
    routers = call.numbered("router")
    columns = []
    for number, name in enumerate(routers):
        nll = _prefix_nll(call, name, rows, indices, _share(call.progress, number, len(routers)))
        columns.append(to_fixed_point(nll)[0])
    choice = np.stack(columns, axis=1).argmin(axis=1)
    table = contingency(choice, rows.meta(indices)[:, META_SOURCE], len(routers), len(manifest["sources"]))
    return TaskOutput(
        figures={
            "purity": purity(table),
            "nmi": normalised_mutual_information(table),
            "loads": table.sum(axis=1).tolist(),
            "table": table.tolist(),
        }
    )


def _prefix_nll(
    call: TaskCall, weights: str, rows: TokenRows, indices: np.ndarray, progress: Callable[[float], None]
) -> np.ndarray:
    """float [n]: mean NLL over targets 2..M, or over what there is of them in a short last row."""
    from potluck.lm.score import nll_sums, prefix_mean_nll

    prefix, batch = int(call.params["prefix_length"]), int(call.params["batch_size"])
    model = _load(call, weights)
    out = np.empty(len(indices), dtype=np.float64)
    slice_rows = batch * BATCHES_PER_REPORT
    for begin in range(0, len(indices), slice_rows):
        taken = rows.take(indices[begin : begin + slice_rows])[:, :prefix]
        out[begin : begin + len(taken)] = prefix_mean_nll(model, taken, prefix=prefix, batch_size=batch)
        progress((begin + len(taken)) / len(indices))
    targets = rows.meta(indices)[:, META_TARGETS]
    short = np.flatnonzero(targets < prefix - 1)
    if short.size:
        taken = rows.take(indices[short])[:, :prefix]
        sums = nll_sums(model, taken, targets[short].astype(np.int32), prefix=prefix, batch_size=batch)
        out[short] = sums.sum(axis=1) / targets[short]
    return out


def _sums(call: TaskCall, rows: TokenRows, indices: np.ndarray, prefix: int) -> np.ndarray:
    """float64 [n, 2]: NLL summed over real targets 2..M and M+1..S+1."""
    from potluck.lm.score import nll_sums

    batch = int(call.params["batch_size"])
    model = _load(call, "weights")
    out = np.empty((len(indices), 2), dtype=np.float64)
    slice_rows = batch * BATCHES_PER_REPORT
    for begin in range(0, len(indices), slice_rows):
        chosen = indices[begin : begin + slice_rows]
        targets = np.ascontiguousarray(rows.meta(chosen)[:, META_TARGETS])
        out[begin : begin + len(chosen)] = nll_sums(model, rows.take(chosen), targets, prefix=prefix, batch_size=batch)
        call.progress((begin + len(chosen)) / len(indices))
    return out


def _load(call: TaskCall, weights: str) -> Decoder:
    from potluck.lm.model import load_decoder

    return load_decoder(_model_config(call), call.path(weights), dtype=str(call.params["dtype"]))


def _model_config(call: TaskCall) -> ModelConfig:
    model: dict[str, Any] = call.params["model"]
    return from_mapping(ModelConfig, model, "model.")


def _drawn(size: int, count: int, key: int) -> np.ndarray:
    """The first `count` rows of the permutation `key`, or all of them: the same rows every time."""
    return permute(np.arange(min(size, count), dtype=np.int64), size, key)


def _share(progress: Callable[[float], None], number: int, of: int) -> Callable[[float], None]:
    return lambda done: progress((number + done) / of)


def _finite(value: float) -> Json:
    """JSON has no NaN and no infinity; null stands for both."""
    return value if math.isfinite(value) else None
