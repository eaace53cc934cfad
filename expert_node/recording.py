"""What this node's training measures, kept in files where `--metrics` asks for it."""

from __future__ import annotations

import psutil

from expert_node.frames import Message
from expert_node.values import FinishedCommit, Lease, TrainLease
from potluck.clock import Clock
from potluck.metrics import Sample, known
from potluck.metrics_sinks import Recorder


class Recording:
    """Makes samples of the worker's progress and of commits; without a recorder it does nothing."""

    def __init__(self, recorder: Recorder | None, *, node: str, clock: Clock) -> None:
        self._recorder = recorder
        self._node = node
        self._clock = clock

    def progress(self, lease: Lease, told: Message, worker_rss_bytes: int) -> None:
        """Records a progress frame of a training; a task's is none."""
        if self._recorder is None or not isinstance(lease, TrainLease):
            return
        self._recorder.record(
            Sample(
                kind="progress",
                unix_ms=self._clock.unix_ms(),
                node=self._node,
                lineage=lease.lineage,
                label=lease.label,
                step=told["step"],
                loss=known(told["loss"]),
                grad_norm=known(told["grad_norm"]),
                learning_rate=told["learning_rate"],
                tokens_per_second=known(told["tokens_per_second"]),
                flops_per_second=known(told["flops_per_second"]),
                mfu=known(told["mfu"]),
                rss_bytes=psutil.Process().memory_info().rss + worker_rss_bytes,
            )
        )

    def commit(self, commit: FinishedCommit) -> None:
        """Records a checkpoint that is safe on this node's disk."""
        if self._recorder is None:
            return
        loss = commit.figures.get("loss")
        self._recorder.record(
            Sample(
                kind="commit",
                unix_ms=self._clock.unix_ms(),
                node=self._node,
                lineage=commit.lineage,
                label=commit.label,
                step=commit.end_step,
                loss=loss if isinstance(loss, float) else None,
            )
        )

    def close(self) -> None:
        """Writes what waits; takes seconds if the disk does."""
        if self._recorder is not None:
            self._recorder.close()
