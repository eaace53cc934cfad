"""A real worker process at the end of its pipes, and the part of a node that talks to it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

from expert_node.frames import Message, encode, read_frame
from potluck.ids import NO_DIGEST, Digest, canonical_json
from potluck.recipe import Recipe, Segment

PATIENCE_S = 60.0


class WorkerProcess:
    """`python -m expert_node.worker`, ready; its log goes to a file."""

    def __init__(self, log: Path, **environment: str) -> None:
        self._log = log.open("a")
        self.popen = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "expert_node.worker",
                str(os.getpid()),
                canonical_json({}),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
            env={**os.environ, **environment},
        )
        ready = self.receive()
        assert ready is not None
        assert ready["type"] == "ready"

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, *error: object) -> None:
        self.popen.kill()
        self.popen.wait(PATIENCE_S)
        for stream in (self.popen.stdin, self.popen.stdout, self._log):
            assert stream is not None
            stream.close()

    def send(self, message: Message) -> None:
        stream = self._stream(self.popen.stdin)
        stream.write(encode(message))
        stream.flush()

    def receive(self) -> Message | None:
        return read_frame(self._stream(self.popen.stdout))

    @staticmethod
    def _stream(stream: IO[bytes] | None) -> IO[bytes]:
        assert stream is not None
        return stream


class Lineage:
    """What a node holds of one lineage: its commits so far, and the folders it gives to workers."""

    def __init__(self, folder: Path, recipe: Recipe, segments: list[Segment], blobs: dict[Digest, Path]) -> None:
        self.folder = folder
        self.local = folder / "local"
        self.commits: list[Message] = []
        self._recipe = recipe
        self._segments = segments
        self._blobs = dict(blobs)
        self._fence = 0

    def train(self, worker: WorkerProcess, *, local_every_ms: int = 0) -> str:
        """Gives the worker a lease from the head and takes its commits.

        Returns:
            How it ended: `done`, `failed: ID`, or `killed`.
        """
        self._fence += 1
        head = self.commits[-1] if self.commits else {"end_step": 0, "child": "", "weights": "", "optimizer": ""}
        command: dict[str, Any] = {
            "type": "train",
            "fence": self._fence,
            "out": str(self.folder / "out" / str(self._fence)),
            "local": str(self.local),
            "local_every_ms": local_every_ms,
            "blobs": {digest: str(path) for digest, path in self._blobs.items()},
            "recipe_json": self._recipe.to_json(),
            "segments_json": f"[{','.join(segment.to_json() for segment in self._segments)}]",
            "profile_json": canonical_json({}),
            "head_step": head["end_step"],
            "head": head["child"],
            "weights": head["weights"],
            "optimizer": head["optimizer"],
            "target_step": self._segments[-1].end_step,
        }
        worker.send(command)
        while (message := worker.receive()) is not None:
            if message["type"] == "checkpoint":
                self._take(message)
                worker.send({"type": "ack", "fence": self._fence, "step": message["end_step"]})
            elif message["type"] == "failed":
                return f"failed: {message['error_id']}: {message['message']}"
            elif message["type"] == "done":
                return "done"
        worker.popen.wait(PATIENCE_S)
        return "killed"

    def _take(self, commit: Message) -> None:
        assert commit["parent"] == (self.commits[-1]["child"] if self.commits else NO_DIGEST)
        for digest, name in commit["files"]:
            self._blobs[Digest(digest)] = Path(commit["folder"]) / name
        self.commits.append(commit)

    def chain(self) -> list[tuple[object, ...]]:
        """Of every commit what a continuation and a reader depend on: digests, steps and figures."""
        names = ("start_step", "end_step", "parent", "child", "weights", "optimizer", "figures_json")
        return [tuple(commit[name] for name in names) for commit in self.commits]
