"""The task functions by kind: arrays and files in, arrays and files out; no sockets, no daemons.

A daemon and a plain program run a task through the same `run_task`, so they get the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from potluck.errors import InvariantViolation
from potluck.ids import Digest, Json
from sampling import cards, cluster, compare, contest, embed, partition, scoring, soup_rounds, tokens
from sampling.assign import balanced_assignment
from sampling.choices import assign_least, eval_choice_scores, eval_choices, score_prefixes, tokenise_choices
from sampling.gate import eval_gate
from sampling.histogram import fit_histogram
from sampling.labels import collect_labels, join_labels
from sampling.near_duplicates import fit_near_duplicates
from sampling.partition_scores import score_distance, score_source
from sampling.soup import fit_instantiate, fit_mixture, fit_source_mixtures, fit_specialist
from sampling.targets import fit_target_histogram
from sampling.taskio import BlobReader, LocalBlobs, Progress, TaskCall, TaskOutput, load_array

__all__ = ["BlobReader", "LocalBlobs", "TaskOutput", "run_task"]


def run_task(
    kind: str,
    params: Mapping[str, Json],
    inputs: Mapping[str, Digest],
    blobs: BlobReader,
    out: Path,
    progress: Progress,
) -> TaskOutput:
    """Runs one task.

    Args:
        kind: one of the closed list of task kinds.
        params: of the kind; `what` picks among functions of one kind.
        inputs: digests by name; blobs that a `*_manifest` input lists are there too.
        blobs: where the bytes are.
        out: an existing folder of the task's own; result files are left in it.
        progress: called with the fraction done.

    Raises:
        InvariantViolation: ``bug.unknown-task``.
        PotluckError: whatever the task's function refuses.
    """
    what = str(params.get("what") or params.get("rule") or "")
    function = _TASKS.get((kind, what)) or _TASKS.get((kind, ""))
    if function is None:
        raise InvariantViolation("bug.unknown-task", f"no task {kind!r} with what = {what!r}")
    return function(TaskCall(params=params, inputs=inputs, blobs=blobs, out=out, progress=progress))


def assign(call: TaskCall) -> TaskOutput:
    """Task `assign`, rules `sorted_greedy` and `stream_greedy`: score columns into equal shares."""
    names = call.numbered("column")
    columns = np.stack([load_array(call.path(name)) for name in names], axis=1)
    assert columns.shape == (call.params["count"], call.params["num_experts"]), columns.shape
    visit: Literal["sorted", "stream"] = "stream" if call.params["rule"] == "stream_greedy" else "sorted"
    assignment = balanced_assignment(columns, visit=visit)
    given = columns[np.arange(len(columns)), assignment]
    return TaskOutput(
        files={"assignment": call.write_array("assignment", assignment)},
        figures={
            "shares": np.bincount(assignment, minlength=len(names)).tolist(),
            "mean_nll": float(given.mean()) / scoring.SCORE_SCALE,
            "mean_best_nll": float(columns.min(axis=1).mean()) / scoring.SCORE_SCALE,
        },
    )


_TASKS: Mapping[tuple[str, str], Callable[[TaskCall], TaskOutput]] = {
    ("fit", "bpe"): tokens.fit_bpe,
    ("fit", "lsi"): embed.fit_lsi_task,
    ("fit", "labels"): collect_labels,
    ("fit", "joined"): join_labels,
    ("fit", "target_histogram"): fit_target_histogram,
    ("fit", "histogram"): fit_histogram,
    ("fit", "near_duplicates"): fit_near_duplicates,
    ("fit", "source_mixtures"): fit_source_mixtures,
    ("fit", "instantiate"): fit_instantiate,
    ("fit", "mixture"): fit_mixture,
    ("fit", "specialist"): fit_specialist,
    ("tokenise", "part"): tokens.tokenise_part,
    ("tokenise", "collect"): tokens.collect,
    ("tokenise", "choices"): tokenise_choices,
    ("embed", ""): embed.embed_rows,
    ("fit_clusters", ""): cluster.fit_clusters,
    ("score", ""): scoring.score_column,
    ("score", "distance"): score_distance,
    ("score", "source"): score_source,
    ("score", "prefixes"): score_prefixes,
    ("assign", "sorted_greedy"): assign,
    ("assign", "least"): assign_least,
    ("assign", "stream_greedy"): assign,
    ("assign", "partition"): cluster.assign_partition,
    ("assign", "balanced_clusters"): cluster.assign_balanced,
    ("assign", "sources"): partition.assign_sources,
    ("eval", "nll"): scoring.eval_nll,
    ("eval", "probe"): scoring.eval_probe,
    ("eval", "purity"): scoring.eval_purity,
    ("eval", "cards"): cards.eval_cards,
    ("eval", "compare"): compare.eval_compare,
    ("eval", "contest"): contest.eval_contest,
    ("eval", "choice_scores"): eval_choice_scores,
    ("eval", "choices"): eval_choices,
    ("eval", "gate"): eval_gate,
    ("outer_step", "begin"): soup_rounds.begin,
    ("train", "gradients"): soup_rounds.part_gradients,
    ("outer_step", "common"): soup_rounds.outer_common,
    ("outer_step", "bank"): soup_rounds.outer_bank,
    ("train", "local_steps"): soup_rounds.part_steps,
    ("outer_step", "average"): soup_rounds.outer_average,
    ("outer_step", "assemble"): soup_rounds.assemble,
}
