"""A target of several kinds of text: its train rows by source, each a target of its own, into one mixture."""

from __future__ import annotations

import numpy as np

from potluck.errors import SpecError
from sampling.histogram import Target, histogram, warnings
from sampling.labels import EXCLUDED, distance_threshold, parse_labels
from sampling.rows import META_SOURCE, TokenRows
from sampling.taskio import TaskCall, TaskOutput, load_array


def fit_target_histogram(call: TaskCall) -> TaskOutput:
    """Task `fit`, what `target_histogram`: where the target's train rows lie, as a mixture over the corpus.

    Inputs: `labels` (labels manifest of the corpus), `tokens_manifest` of the target, `target-NNNNN` and
    `distances-NNNNN` (labels and distances of its train rows, by part), and `corpus_distances-NNNNN`, unless the
    labels manifest has the `reach` that would be taken of them.
    Parameters: `planned_tokens`, `smoothing`, and `weights` by source; sources without one count 1. With no
    weights at all each source counts by its text, as in the comparison.

    Raises:
        SpecError: ``spec.bad-target``: an unknown source has a weight, or no row of the target is placed.
    """
    params = call.params
    labels, manifest = parse_labels(call.json("labels")), call.json("tokens_manifest")
    rows = TokenRows(manifest, call.blobs, "train")
    placed = _joined(call, "target")
    distances = _joined(call, "distances")
    of_corpus = _joined(call, "corpus_distances")
    threshold = distance_threshold(of_corpus) if of_corpus.size else labels.reach
    source = rows.meta(np.arange(len(rows), dtype=np.int64))[:, META_SOURCE]
    names = [str(name) for name in manifest["sources"]]
    wanted = {str(name): float(weight) for name, weight in dict(params["weights"]).items()}
    unknown = sorted(set(wanted) - set(names))
    if unknown:
        fix = f"the target's first-level folders are: {', '.join(names)}"
        raise SpecError("spec.bad-target", f"target_weights name {', '.join(unknown)}", fix)
    targets, shares = [], []
    for number, name in enumerate(names):
        mine = (source == number) & (placed != EXCLUDED)
        if mine.any():
            counts = np.bincount(placed[mine], minlength=len(labels.domains))
            unplaced = None if threshold is None else int((distances[mine] > threshold).sum())
            targets.append(Target(counts=counts, unplaced=unplaced))
            shares.append(wanted.get(name, 1.0) if wanted else float(mine.sum()))
    if not targets:
        what = f"the target has {len(rows)} whole rows of training text"
        raise SpecError("spec.bad-target", what, "give more text like what the specialist is for")
    mixture, figures = histogram(
        targets,
        shares,
        labels,
        smoothing=float(params["smoothing"]),
        planned_tokens=int(params["planned_tokens"]),
    )
    path = call.out / "mixture.json"
    path.write_text(mixture.to_json(), encoding="utf-8")
    return TaskOutput(files={"mixture": path}, figures={**figures, "warnings": warnings(figures)})


def _joined(call: TaskCall, prefix: str) -> np.ndarray:
    parts = [load_array(call.path(name)) for name in call.numbered(prefix)]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.float32)
