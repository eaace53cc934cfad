"""The worker: one persistent child process that trains and runs tasks, one command at a time.

    python -m expert_node.worker PARENT_PID PROFILE_JSON

Commands come as frames on stdin (`train`, `task`, `stop`, `ack`), facts go as frames to stdout
(`ready`, `progress`, `checkpoint`, `result`, `done`, `stopped`, `failed`). The profile holds for the
life of the process.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path

from expert_node.frames import Message
from expert_node.parent_pipe import ParentPipe
from potluck.clock import SystemClock
from potluck.config import from_mapping
from potluck.durable import is_full_disk
from potluck.errors import DataError, PotluckError
from potluck.ids import Digest
from potluck.recipe import Profile
from potluck.telemetry import logger

PROGRESS_SECONDS = 0.5
OUT_OF_MEMORY = "resource.out-of-memory"
OUT_OF_MEMORY_FIX = (
    "set memory_mib to what a step may take, or lower [profile] micro_batch; else lower batch_size, "
    "text.sequence_length or the model preset, run fewer nodes on this machine, or give the node more memory"
)

log = logger("expert_node.worker")


class StopRequested(Exception):
    """The node wants the work in hand to end."""


class Desk:
    """What the work in hand sees of the node: a place to report to, and the wish that it stop."""

    def __init__(self, pipe: ParentPipe) -> None:
        self._pipe = pipe
        self._fence = 0
        self._unconfirmed = 0
        self._last_progress = 0.0
        self.tokens_total = 0

    @property
    def parent_pid(self) -> int:
        return self._pipe.parent_pid

    def begin(self, fence: int) -> None:
        self._fence, self._unconfirmed, self._last_progress = fence, 0, 0.0

    def send(self, kind: str, **fields: object) -> None:
        self._pipe.send({"type": kind, "fence": self._fence, **fields})

    def progress_due(self) -> bool:
        return time.monotonic() - self._last_progress >= PROGRESS_SECONDS

    def progress(self, **fields: object) -> None:
        """Tells how far the work is, at most twice a second."""
        if self.progress_due():
            self._last_progress = time.monotonic()
            self.send("progress", tokens_total=self.tokens_total, **fields)

    def look(self) -> None:
        """Takes in what the node has said meanwhile.

        Raises:
            StopRequested: it wants us to stop.
        """
        while (message := self._pipe.poll()) is not None:
            self._note(message)

    def checkpoint(self, limit: int, **fields: object) -> None:
        """Hands a checkpoint over; waits while `limit` of them are not confirmed to be safe.

        Raises:
            StopRequested: the node wants us to stop.
        """
        self.send("checkpoint", **fields)
        self._unconfirmed += 1
        while self._unconfirmed >= limit:
            self._note(self._pipe.receive())

    def _note(self, message: Message) -> None:
        if message["fence"] != self._fence:
            return  # Of work that is over.
        if message["type"] == "stop":
            raise StopRequested
        assert message["type"] == "ack", message
        self._unconfirmed -= 1


class GivenBlobs:
    """Blobs by digest at the paths that the command names."""

    def __init__(self, paths: Mapping[str, str]) -> None:
        self._paths = paths

    def path(self, digest: Digest) -> Path:
        if digest not in self._paths:
            raise DataError("data.missing", f"blob {digest} was not fetched for this work", "report this as a bug")
        return Path(self._paths[digest])


def run_command(command: Message, desk: Desk) -> None:
    """Does one `train` or `task` command; whatever happens, the node is told."""
    desk.begin(command["fence"])
    try:
        if command["type"] == "train":
            from expert_node.training import train

            train(command, GivenBlobs(command["blobs"]), desk, SystemClock())
        else:
            from expert_node.tasking import run

            run(command, GivenBlobs(command["blobs"]), desk)
    except StopRequested:
        desk.send("stopped")
    except Exception as error:  # The boundary of the process: everything becomes a fact for the node.
        error_id, message = describe(error)
        log.failure("work-failed", error, error_id=error_id)
        desk.send("failed", error_id=error_id, message=message)
    else:
        desk.send("done")


def describe(error: Exception) -> tuple[str, str]:
    """Stable id and message of whatever ended the work."""
    if isinstance(error, PotluckError):
        return error.error_id, f"{error.message} ({error.fix})" if error.fix else error.message
    text = str(error)
    if isinstance(error, MemoryError) or "can't allocate memory" in text or "out of memory" in text.lower():
        return OUT_OF_MEMORY, f"the worker ran out of memory: {text or 'MemoryError'} ({OUT_OF_MEMORY_FIX})"
    if is_full_disk(error):
        return "resource.disk-full", f"{text} (free some disk space, or lower the node's quota)"
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""
    return "bug.worker", f"{type(error).__name__}: {text}{where}"


def main() -> None:
    parent_pid, profile_json = int(sys.argv[1]), sys.argv[2]
    pipe = ParentPipe(parent_pid)
    profile = from_mapping(Profile, json.loads(profile_json))
    # Loading torch takes seconds: do it before the first command, so that the first lease is quick.
    from potluck.lm.train import apply_profile

    apply_profile(profile)
    pipe.send({"type": "ready", "fence": 0, "pid": os.getpid()})
    desk = Desk(pipe)
    while True:
        command = pipe.receive()
        if command["type"] in ("train", "task"):
            run_command(command, desk)


if __name__ == "__main__":
    main()
