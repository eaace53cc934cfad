"""A node's training loop against the bare loop, step by step in one process: for machines too busy for turns.

    python -m benchmarks.engine_steps [--preset 2.5M] [--sequence 256] [--steps 30]

`expert_node.training.train` runs, and before each of its steps a bare step of `benchmarks.engine_loops` is done on
a model of its own. Time is that of the thread: commits and local checkpoints count with the copies they take, what
their own thread writes does not and is told apart. The pipe and its reader are left out.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from benchmarks import engine_loops
from benchmarks.engine_contest import median_with_interval
from benchmarks.engine_setting import LAST_STEP, Setting, make_setting
from expert_node.training import train
from expert_node.worker import GivenBlobs, StopRequested
from expert_node.workshop import LOCAL_CHECKPOINT_MS
from potluck.clock import SystemClock
from potluck.config import to_mapping
from potluck.ids import NO_DIGEST, canonical_json
from potluck.recipe import Profile

PROGRESS_SECONDS = 0.5
UNTIMED = 2
"""First steps."""


class Alternating:
    """The node's side of a lease: each look is a bare step, whose time it keeps beside that of the step before."""

    parent_pid = 0

    def __init__(self, bare: engine_loops.Step, steps: int) -> None:
        self.tokens_total = 0
        self.node: list[float] = []
        self.bare: list[float] = []
        self._step = bare
        self._wanted = steps + UNTIMED
        self._went_on = 0.0
        self._told = 0.0

    def look(self) -> None:
        now = time.thread_time()
        if self.bare:
            self.node.append(now - self._went_on)
        if len(self.node) == self._wanted:
            raise StopRequested
        began = time.thread_time()
        self._step(len(self.bare))
        self._went_on = time.thread_time()
        self.bare.append(self._went_on - began)

    def progress_due(self) -> bool:
        return time.monotonic() - self._told >= PROGRESS_SECONDS

    def progress(self, **fields: object) -> None:
        self._told = time.monotonic()

    def checkpoint(self, limit: int, **fields: object) -> None:
        pass


def alternate(folder: Path, setting: Setting, steps: int) -> tuple[Alternating, float]:
    """The steps' seconds, and those of other threads over those of the node's steps."""
    desk = Alternating(engine_loops.bare(setting), steps)
    command = {
        "out": str(folder / "out"),
        "local": str(folder / "local"),
        # Half of the time is the bare loop's.
        "local_every_ms": 2 * LOCAL_CHECKPOINT_MS,
        "recipe_json": setting.recipe.to_json(),
        "segments_json": f"[{setting.segment.to_json()}]",
        "profile_json": canonical_json(to_mapping(setting.profile)),
        "head_step": 0,
        "head": NO_DIGEST,
        "target_step": LAST_STEP,
    }
    other = time.process_time() - time.thread_time()
    try:
        train(command, GivenBlobs(setting.blobs), desk, SystemClock())
    except StopRequested:
        pass
    other = time.process_time() - time.thread_time() - other
    return desk, other / sum(desk.node)


def main() -> None:
    from potluck.lm.train import apply_profile

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="2.5M")
    parser.add_argument("--sequence", type=int, default=256)
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()
    apply_profile(Profile())
    with tempfile.TemporaryDirectory(prefix="potluck-engine-") as name:
        setting = make_setting(Path(name), options.preset, options.sequence, Profile())
        desk, other = alternate(Path(name), setting, options.steps)
    node, bare = desk.node[UNTIMED:], desk.bare[UNTIMED : len(desk.node)]
    found = median_with_interval([theirs / ours for ours, theirs in zip(node, bare, strict=True)])
    spread = f"{found['median']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
    print(f"{options.preset}: {len(node)} steps, node_vs_bare {spread}, overall {sum(bare) / sum(node):.3f}")
    print(f"  beside it other threads took {other:.1%} of the node's steps")


if __name__ == "__main__":
    main()
