"""Which blobs of rounds that are over nobody will read again: rounds would fill the store otherwise.

A lineage needs its head and the parent of it. Where a training is rounds of tasks, the states it went through are
results of tasks, all of which are remembered until the run ends, for its plan walks through them.
"""

from __future__ import annotations

from coordinator.core.state import State, Task
from coordinator.core.values import Running, TaskKind
from potluck.ids import Digest

ROUND_KINDS: tuple[TaskKind, ...] = ("train", "outer_step")
STATE_INPUT = "weights-"
"""What the names of inputs begin with that the next round has others for."""


def superseded(state: State) -> set[Digest]:
    """Made by a task of a round and read by one whose results another has read in turn; no open task names them.

    So there is no moment, not even between a result and what the plan wants then, at which a blob is given up that
    will be named. A run that was cancelled or has failed keeps all, until its plan has said again what it wants.
    """
    tasks = state.durable.tasks.values()
    rounds = [task for task in tasks if task.wanted.kind in ROUND_KINDS]
    named = {digest for task in rounds for _, digest in task.wanted.inputs}
    made: set[Digest] = set()
    passed: set[Digest] = set()
    needed: set[Digest] = set()
    for task in tasks:
        if task.result is None or not _is_of_a_round(state, task):
            needed.update(digest for _, digest in task.wanted.inputs)
            needed.update(task.result.blobs.values() if task.result is not None else ())
            continue
        made.update(task.result.blobs.values())
        if not named.isdisjoint(task.result.blobs.values()):
            passed.update(digest for name, digest in task.wanted.inputs if name.startswith(STATE_INPUT))
    for task in rounds:
        own = set(task.result.blobs.values()) if task.wanted.kind == "train" and task.result is not None else set()
        passed |= own if own & passed else set()  # What of a part's results nobody read goes with what was.
    return (passed & made) - needed


def _is_of_a_round(state: State, task: Task) -> bool:
    runs = (state.durable.runs[run] for run in task.runs)
    return task.wanted.kind in ROUND_KINDS and all(isinstance(run.status, Running) and run.open_tasks for run in runs)
