"""What all nodes' training measures, kept in files where `potluck up --metrics` asks for it.

Metrics are ephemeral: they go from the heartbeat past the machine into the files, never into the journal.
"""

from __future__ import annotations

from coordinator.core import queries
from coordinator.core.events import CheckpointCommitted, HeartbeatReceived
from coordinator.runtime import Runtime
from potluck.metrics import Sample, known
from potluck.metrics_sinks import Recorder


class Recording:
    """Makes samples of heartbeats and of accepted commits; without a recorder it does nothing."""

    def __init__(self, recorder: Recorder | None, runtime: Runtime) -> None:
        self._recorder = recorder
        self._runtime = runtime
        self._last: dict[str, tuple[str, int]] = {}
        """Lineage and step that each node told last: a slow step is told by several heartbeats."""

    async def heartbeat(self, beat: HeartbeatReceived) -> None:
        """Records what a node that trains has told for the first time."""
        if self._recorder is None or not beat.step:
            return
        work = await self._runtime.read(lambda state: queries.training_under(state, beat.node, beat.fence))
        if work is None or self._last.get(beat.node) == (work.id, beat.step):
            return
        self._last[beat.node] = (work.id, beat.step)
        self._recorder.record(
            Sample(
                kind="progress",
                unix_ms=self._runtime.unix_ms(),
                node=beat.node,
                lineage=work.id,
                label=work.label,
                step=beat.step,
                loss=known(beat.loss),
                grad_norm=known(beat.grad_norm),
                learning_rate=beat.learning_rate,
                tokens_per_second=known(beat.tokens_per_second),
                flops_per_second=known(beat.flops_per_second),
                mfu=known(beat.mfu),
                rss_bytes=beat.rss_bytes or None,
            )
        )

    async def commit(self, event: CheckpointCommitted) -> None:
        """Records a commit that was accepted. One that is sent again is recorded again."""
        if self._recorder is None:
            return
        label = await self._runtime.read(lambda state: queries.label_of_lineage(state, event.lineage))
        loss = event.figures.get("loss")
        self._recorder.record(
            Sample(
                kind="commit",
                unix_ms=self._runtime.unix_ms(),
                node=event.node,
                lineage=event.lineage,
                label=label,
                step=event.end_step,
                loss=known(loss) if isinstance(loss, float) else None,
            )
        )

    def close(self) -> None:
        """Writes what waits; takes seconds if the disk does."""
        if self._recorder is not None:
            self._recorder.close()
