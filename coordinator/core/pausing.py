"""Rest on demand: a run that is paused, a node that is drained. Both give back what they hold at the next commit.

No lease is broken off: a training yields when its next commit is in, a task is done to its end. What was
committed stays, and what was trained beyond it is what the yield saves.
"""

from __future__ import annotations

from dataclasses import replace

from coordinator.core.effects import Answer, Denied, Done, Effect, Reply
from coordinator.core.events import NodeDrained, NodeRestored, RunPaused, RunResumed
from coordinator.core.state import DurableState, Lineage, State
from coordinator.core.values import Running
from potluck.ids import NodeId, RunId, short


def on_run_paused(state: State, event: RunPaused) -> list[Effect]:
    return [Reply(answer=_set_paused(state.durable, event.run, True))]


def on_run_resumed(state: State, event: RunResumed) -> list[Effect]:
    return [Reply(answer=_set_paused(state.durable, event.run, False))]


def on_node_drained(state: State, event: NodeDrained) -> list[Effect]:
    return [Reply(answer=_set_drained(state.durable, event.node, True))]


def on_node_restored(state: State, event: NodeRestored) -> list[Effect]:
    return [Reply(answer=_set_drained(state.durable, event.node, False))]


def is_at_rest(durable: DurableState, lineage: Lineage) -> bool:
    """Every run that wants it is paused."""
    return all(durable.runs[run].paused for run in lineage.runs)


def _set_paused(durable: DurableState, run_id: RunId, paused: bool) -> Answer:
    run = durable.runs.get(run_id)
    if run is None:
        return Denied(error_id="refused.no-such-run", reason=f"no run {short(run_id)}")
    if not isinstance(run.status, Running):
        return Denied(error_id="refused.run-ended", reason=f"run {short(run_id)} has ended already")
    if run.paused and not paused:
        others = [other.weighted_flops for other in durable.at_work()]
        run.weighted_flops = max(run.weighted_flops, min(others, default=0.0))  # a rest is no credit
    run.paused = paused
    return Done()


def _set_drained(durable: DurableState, node: NodeId, drained: bool) -> Answer:
    peer = durable.peers.get(node)
    if peer is None or peer.role != "node" or peer.revoked:
        return Denied(error_id="refused.no-such-node", reason=f"no node {node} has enrolled")
    durable.peers[node] = replace(peer, drained=drained)
    return Done()
