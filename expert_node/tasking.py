"""A task lease inside the worker: the function from `sampling.tasks`, its outputs flushed to disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Protocol

from expert_node.frames import Message
from expert_node.outbox import files_by_digest
from potluck.crashpoints import crash_here
from potluck.durable import sync_file, sync_folder
from potluck.ids import canonical_json, digest_file
from sampling.taskio import BlobReader


class Reporter(Protocol):
    """The part of `worker.Desk` that a task needs."""

    @property
    def parent_pid(self) -> int: ...

    def look(self) -> None: ...

    def progress(self, **fields: object) -> None: ...

    def send(self, kind: str, **fields: object) -> None: ...


def run(command: Message, blobs: BlobReader, desk: Reporter) -> None:
    """Runs the task and tells its result.

    Raises:
        StopRequested: at one of the task's progress points, when the node wants it.
        PotluckError: what the task refuses.
    """
    from sampling.tasks import run_task

    out = Path(command["out"])
    out.mkdir(parents=True, exist_ok=True)

    def progress(fraction: float) -> None:
        desk.look()
        desk.progress(fraction=fraction)

    desk.look()
    output = run_task(command["kind"], json.loads(command["params_json"]), command["inputs"], blobs, out, progress)
    crash_here(f"node.mid-task.{command['kind']}", also=desk.parent_pid)
    names = {}
    blob_digests = {}
    for name, path in output.files.items():
        digest = digest_file(path)
        sync_file(path)
        names[str(path.relative_to(out))] = digest
        blob_digests[name] = digest
    sync_folder(out)
    desk.send(
        "result",
        blobs=sorted(blob_digests.items()),
        folder=str(out),
        files=[list(pair) for pair in files_by_digest(names)],
        figures_json=canonical_json(dict(output.figures)),
    )
