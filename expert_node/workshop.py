"""The node's worker, seen from the node: one child, one job at a time; its frames become events."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from expert_node import events as on
from expert_node.child import Child, GroupNote
from expert_node.frames import Message
from expert_node.outbox import Outbox
from expert_node.recording import Recording
from expert_node.values import Finished, FinishedCommit, FinishedTask, Lease, TaskLease, TrainLease
from expert_node.worker import OUT_OF_MEMORY, OUT_OF_MEMORY_FIX
from potluck.config import to_mapping
from potluck.durable import is_full_disk
from potluck.ids import Digest, Fence, canonical_json
from potluck.net.counters import Plane
from potluck.recipe import Profile
from potluck.telemetry import logger

STOP_SECONDS = 10.0
"""How long a step, or a task between two of its progress points, may go on after `stop`; then it is killed."""
KILLED = -9
LOCAL_CHECKPOINT_MS = 20_000
"""What a restart of the worker may cost, at most."""
OUTPUT_PLANES: Mapping[str, Plane] = {
    "tokenise": "corpus",
    "fit": "corpus",
    "train": "weights",
    "outer_step": "weights",
}
"""Data plane of a task's outputs by its kind; the others are scores."""

log = logger("expert_node.workshop")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The worker's last word, for heartbeats."""

    step: int = 0
    tokens_per_second: float = 0.0
    loss: float = 0.0
    fraction: float = 0.0
    grad_norm: float = 0.0
    learning_rate: float = 0.0
    flops_per_second: float = 0.0
    mfu: float = 0.0


_PROGRESS = tuple(field.name for field in fields(Progress))


class Workshop:
    """Keeps the worker alive and tells the machine what it does."""

    def __init__(
        self,
        folder: Path,
        outbox: Outbox,
        notes: GroupNote,
        recording: Recording,
        tell: Callable[[on.Event], None],
    ) -> None:
        self._out = folder / "out"
        self._local = folder / "local"
        self._outbox = outbox
        self._notes = notes
        self._recording = recording
        self._tell = tell
        self._child: Child | None = None
        self._profile = Profile()
        self._lease: Lease | None = None
        self._stopping = False
        self._grace: asyncio.TimerHandle | None = None
        self._tokens_before = 0
        self._tokens_now = 0
        self.progress = Progress()
        shutil.rmtree(self._out, ignore_errors=True)
        self._out.mkdir(parents=True)

    @property
    def tokens_total(self) -> int:
        return self._tokens_before + self._tokens_now

    def rss_bytes(self) -> int:
        return self._child.rss_bytes() if self._child else 0

    async def warm_up(self, profile: Profile) -> None:
        """Has a worker of this profile ready; restarts it if it has another."""
        if self._child is not None and self._profile == profile:
            return
        await self.close()
        self._profile = profile
        threads = str(profile.threads)
        self._child = await Child.start(
            "expert_node.worker",
            (canonical_json(to_mapping(profile)),),
            environment={"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "RAYON_NUM_THREADS": threads},
            on_message=self._on_message,
            on_exit=self._on_exit,
        )
        self._notes.note("worker", self._child.pid)

    async def start(self, lease: Lease, blobs: Mapping[Digest, Path]) -> None:
        """Hands a lease to the worker, whose inputs lie at the given paths."""
        assert self._lease is None, self._lease
        self._lease, self._stopping, self.progress = lease, False, Progress()
        await self.warm_up(lease.profile if isinstance(lease, TrainLease) else Profile())
        if self._stopping:
            self._end(on.WorkerStopped(fence=lease.fence))
            return
        assert self._child is not None
        out = self._out / str(lease.fence)
        shutil.rmtree(out, ignore_errors=True)
        self._child.send(command_for(lease, blobs, out=out, local=self._local))

    def acknowledge(self, fence: Fence, step: int) -> None:
        if self._child is not None:
            self._child.send({"type": "ack", "fence": fence, "step": step})

    def stop(self, fence: Fence) -> None:
        """Ends the work in hand at the next step, and by force if that takes too long."""
        if self._lease is None or self._lease.fence != fence:
            return  # It has ended already, and the machine was told.
        self._stopping = True
        if self._child is not None:
            self._child.send({"type": "stop", "fence": fence})
            self._grace = asyncio.get_running_loop().call_later(STOP_SECONDS, self._child.kill)

    async def close(self) -> None:
        """Ends the worker and waits until it is gone."""
        child = self._child
        self.discard()
        if child is not None:
            await child.ended()

    def discard(self) -> None:
        """Ends the worker; the next lease gets a new one."""
        child, self._child = self._child, None
        if child is not None:
            self._count_tokens()
            child.kill()

    async def _on_message(self, child: Child, message: Message) -> None:
        lease = self._lease
        if message["type"] == "ready" or lease is None or message["fence"] != lease.fence:
            return
        match message["type"]:
            case "progress":
                self._tokens_now = message["tokens_total"]
                self.progress = Progress(**{name: message[name] for name in _PROGRESS if name in message})
                self._recording.progress(lease, message, self.rss_bytes())
            case "checkpoint":
                assert isinstance(lease, TrainLease), lease
                commit = commit_of(message, lease, self._outbox.next_number())
                if await self._keep(commit, Path(message["folder"])):
                    self._tell(on.CheckpointWritten(commit=commit))
                    self._recording.commit(commit)
            case "result":
                assert isinstance(lease, TaskLease), lease
                result = result_of(message, lease, self._outbox.next_number())
                if await self._keep(result, Path(message["folder"])):
                    self._tell(on.TaskFinished(result=result))
            case "done":
                self._end(on.WorkerDone(fence=lease.fence))
            case "stopped":
                self._end(on.WorkerStopped(fence=lease.fence))
            case "failed":
                log.fact("work-failed", label=lease.label, error_id=message["error_id"], message=message["message"])
                self._end(on.WorkerFailed(fence=lease.fence, error_id=message["error_id"], message=message["message"]))
            case other:
                raise AssertionError(f"the worker said {other!r}")

    async def _keep(self, entry: Finished, folder: Path) -> bool:
        """Moves a result into the outbox; a disk that will not take it ends the work."""
        try:
            await asyncio.to_thread(self._outbox.add, entry, folder)
        except OSError as error:
            log.failure("outbox-write-failed", error, label=entry.label)
            error_id = "resource.disk-full" if is_full_disk(error) else "resource.disk"
            self._end(on.WorkerFailed(fence=entry.fence, error_id=error_id, message=str(error)))
            self.discard()
            return False
        return True

    async def _on_exit(self, child: Child, code: int) -> None:
        if self._child is not child:
            return  # Ended by us.
        self._child = None
        self._count_tokens()
        lease = self._lease
        if lease is None:
            log.fact("worker-ended", code=code)
        elif self._stopping:
            self._end(on.WorkerStopped(fence=lease.fence))
        else:
            error_id, message = exit_reason(code, lease.label)
            log.fact("worker-died", code=code, label=lease.label, error_id=error_id)
            self._end(on.WorkerFailed(fence=lease.fence, error_id=error_id, message=message))

    def _count_tokens(self) -> None:
        self._tokens_before += self._tokens_now
        self._tokens_now = 0

    def _end(self, event: on.Event) -> None:
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None
        if self._lease is not None:
            # What it did not hand over, such as a checkpoint half written.
            shutil.rmtree(self._out / str(self._lease.fence), ignore_errors=True)
        self._lease = None
        self.progress = Progress()
        self._tell(event)


def exit_reason(code: int, label: str) -> tuple[str, str]:
    """Why a worker that nobody stopped is gone: stable id and message."""
    if code in (KILLED, 137):
        why = "most likely by the system for want of memory"
        return OUT_OF_MEMORY, f"the worker was killed during {label!r}, {why} ({OUT_OF_MEMORY_FIX})"
    if code < 0:
        return "bug.worker-crashed", f"the worker died of signal {-code} during {label!r} (see the node's log)"
    return "bug.worker-crashed", f"the worker ended with code {code} during {label!r} (see the node's log)"


def command_for(lease: Lease, blobs: Mapping[Digest, Path], *, out: Path, local: Path) -> Message:
    """The worker's command for a lease: results go to `out`, local checkpoints to `local`, which outlives the node."""
    common: Message = {"fence": lease.fence, "out": str(out), "blobs": {d: str(path) for d, path in blobs.items()}}
    if isinstance(lease, TrainLease):
        names = ("recipe_json", "segments_json", "profile_json", "head_step", "head", "weights", "optimizer")
        values = {name: getattr(lease, name) for name in names}
        places = {"local": str(local), "local_every_ms": LOCAL_CHECKPOINT_MS}
        return {"type": "train", **common, **values, **places, "target_step": lease.target_step}
    return {
        "type": "task",
        **common,
        "kind": lease.kind,
        "params_json": lease.params_json,
        "inputs": dict(lease.inputs),
    }


def commit_of(message: Message, lease: TrainLease, number: int) -> FinishedCommit:
    return FinishedCommit(
        entry=number,
        fence=lease.fence,
        lineage=lease.lineage,
        parent=Digest(message["parent"]),
        start_step=message["start_step"],
        end_step=message["end_step"],
        child=Digest(message["child"]),
        weights=Digest(message["weights"]),
        optimizer=Digest(message["optimizer"]),
        figures=json.loads(message["figures_json"]),
        files=tuple((Digest(digest), name) for digest, name in message["files"]),
        label=lease.label,
    )


def result_of(message: Message, lease: TaskLease, number: int) -> FinishedTask:
    return FinishedTask(
        entry=number,
        fence=lease.fence,
        task=lease.task,
        blobs=tuple((name, Digest(digest)) for name, digest in message["blobs"]),
        figures=json.loads(message["figures_json"]),
        files=tuple((Digest(digest), name) for digest, name in message["files"]),
        plane=OUTPUT_PLANES.get(lease.kind, "scores"),
        label=lease.label,
    )
