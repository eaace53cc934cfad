"""Ledgers of finished runs: whole for the newest, longer links for the others, and for all a chain without gaps."""

from __future__ import annotations

from coordinator.core.effects import Reply, TrainGranted
from coordinator.core.events import CheckpointCommitted, Event, LeaseRequested, PlanAdvanced, RunSubmitted
from coordinator.core.invariants import check
from coordinator.core.machine import Machine
from coordinator.core.queries import ledger, run_info
from coordinator.core.settings import CoreSettings
from coordinator.core.values import Finished, LineageWanted, Outcome, Publication, Running
from potluck.ids import NO_DIGEST, Digest, LineageId, NodeId, RunId

NODE = NodeId("n1")
STEPS = (4, 8, 12, 16)


class House:
    """A machine in which runs of one lineage are trained to their end, one after the other."""

    def __init__(self, ledger_commits: int) -> None:
        self.machine = Machine(CoreSettings(ledger_commits=ledger_commits))
        self._requests = 0

    def feed(self, event: Event) -> object:
        effects = self.machine.handle(event)
        assert check(self.machine.state) == []
        first = effects[0] if effects else None
        return first.answer if isinstance(first, Reply) else None

    def finish(self, run: RunId, published_step: int) -> None:
        self.feed(
            RunSubmitted(
                now_ms=0,
                unix_ms=0,
                request_id=run,
                run=run,
                spec_json="{}",
                corpus_json="{}",
                name=run,
                priority=0,
            )
        )
        self.feed(self._advanced(run))
        self._requests += 1
        grant = self.feed(
            LeaseRequested(now_ms=0, node=NODE, request_id=self._requests, boot_id="b", free_memory_bytes=0)
        )
        assert isinstance(grant, TrainGranted)
        parent = NO_DIGEST
        for start, end in zip((0, *STEPS), STEPS, strict=False):
            self._requests += 1
            self.feed(
                CheckpointCommitted(
                    now_ms=0,
                    node=NODE,
                    request_id=self._requests,
                    fence=grant.fence,
                    lineage=LineageId(f"lineage of {run}"),
                    parent=parent,
                    start_step=start,
                    end_step=end,
                    child=checkpoint(run, end),
                    weights=Digest(f"weights {run} {end}"),
                    optimizer=Digest(f"optimizer {run} {end}"),
                    figures={"loss": 1.0},
                )
            )
            parent = checkpoint(run, end)
        slot = Publication(
            slot="dense",
            lineage=LineageId(f"lineage of {run}"),
            step=published_step,
            weights=Digest(f"weights {run} {published_step}"),
            tokenizer=Digest("tokenizer"),
            model_json="{}",
        )
        self.feed(self._advanced(run, publish=(slot,), outcome=Finished(report=Digest("report"), figures={})))

    def _advanced(
        self, run: RunId, *, publish: tuple[Publication, ...] = (), outcome: Outcome | None = None
    ) -> PlanAdvanced:
        wanted = LineageWanted(
            id=LineageId(f"lineage of {run}"),
            recipe_json="{}",
            segments_json=("{}",),
            profile_json="{}",
            total_steps=STEPS[-1],
            known_steps=STEPS[-1],
            commit_every=STEPS[0],
            flops_per_step=1.0,
            memory_bytes=0,
            role="dense",
            label=f"dense of {run}",
        )
        return PlanAdvanced(
            now_ms=0,
            run=run,
            lineages=(wanted,),
            tasks=(),
            publish=publish,
            stage="",
            outcome=outcome or Running(),
            serving_json="{}",
        )

    def ranges(self, run: RunId) -> list[tuple[int, int, Digest, Digest]]:
        found = ledger(self.machine.state, run)
        assert found.ok
        return [(link.start_step, link.end_step, link.parent, link.child) for link in found.lineages[0].ranges]


def checkpoint(run: RunId, step: int) -> Digest:
    return Digest(f"{run}@{step}")


def test_the_newest_finished_runs_tell_every_commit_and_older_ones_what_is_published_and_the_head() -> None:
    house, runs = House(ledger_commits=9), [RunId(f"run-{number}") for number in range(4)]
    for run, published_step in zip(runs, (8, 16, 8, 8), strict=True):
        house.finish(run, published_step)
    assert [len(house.ranges(run)) for run in runs] == [2, 1, 4, 4]
    first, second = runs[:2]
    assert house.ranges(first) == [
        (0, 8, NO_DIGEST, checkpoint(first, 8)),
        (8, 16, checkpoint(first, 8), checkpoint(first, 16)),
    ]
    assert house.ranges(second) == [(0, 16, NO_DIGEST, checkpoint(second, 16))]
    (slot,) = run_info(house.machine.state, first).published
    assert slot.checkpoint == checkpoint(first, 8)
