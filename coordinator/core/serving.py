"""Who serves what, and what routers must know of it. Ephemeral and sticky; sent only where it changed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache

from coordinator.core.effects import Effect, SendRouters, SendServe, SendView, ServeSlot
from coordinator.core.liveness import is_live
from coordinator.core.state import Cancelled, EphemeralState, Run, State
from coordinator.core.values import Failed, Running
from potluck.config import from_mapping
from potluck.ids import NodeId, RunId, canonical_json
from potluck.lm.config import ModelConfig
from potluck.lm.soup_config import SoupConfig
from potluck.lm.soup_memory import soup_serving_bytes

Slot = tuple[RunId, str]


def refresh_serving(state: State) -> list[Effect]:
    """Assigns published slots to live nodes and says so to whoever has not heard it."""
    served = served_runs(state)
    nodes = _live(state, "node")
    _assign(state, nodes, [(run.run, slot) for run in served for slot in run.published])
    addresses = tuple(sorted(set(state.ephemeral.router_addresses.values())))
    effects: list[Effect] = []
    for node in nodes:
        effects += _serve_push(state, node)
        effects += _routers_push(state.ephemeral, node, addresses)
    for router in _live(state, "router"):
        effects += _view_pushes(state.ephemeral, router, served)
    return effects


def served_runs(state: State) -> list[Run]:
    """Of the runs with something published those under way, and the newest finished ones as far as there is room."""
    published = [run for run in state.durable.runs.values() if run.published and run.serving_json]
    runs = [run for run in published if not isinstance(run.status, Cancelled | Failed)]
    newest = sorted(range(len(runs)), key=lambda index: (isinstance(runs[index].status, Running), index))
    kept = newest[-state.settings.max_served_runs :]
    return [runs[index] for index in sorted(kept)]


def view_json(run: Run) -> str:
    """Canonical JSON of the whole view of a run: what the plan said, and which weights are in which slot."""
    slots = {slot: publication.weights for slot, publication in run.published.items()}
    return canonical_json({**json.loads(run.serving_json), "run": run.run, "name": run.name, "slots": slots})


@lru_cache(maxsize=1024)
def serving_bytes(model_json: str) -> int:
    """What a published slot takes of a node's memory: counted for soups, which may exceed it; 0 for plain models."""
    shape = json.loads(model_json)
    if "soup" not in shape:
        return 0
    return soup_serving_bytes(from_mapping(ModelConfig, shape["model"]), from_mapping(SoupConfig, shape["soup"]))


def _live(state: State, role: str) -> list[NodeId]:
    sessions = state.ephemeral.sessions
    return [node for node, session in sessions.items() if session.opened.role == role and is_live(state, node)]


def _assign(state: State, nodes: list[NodeId], slots: list[Slot]) -> None:
    """Keeps what stands, fills what lacks replicas, then moves spare replicas to nodes with fewer."""
    ephemeral = state.ephemeral
    wanted = set(slots)
    kept = {node: ephemeral.assigned.get(node, {}) for node in nodes}
    assigned: dict[NodeId, dict[Slot, None]] = {
        node: {slot: None for slot in held if slot in wanted} for node, held in kept.items()
    }
    ephemeral.assigned = assigned
    if not nodes:
        return
    needed = {slot: serving_bytes(state.durable.runs[slot[0]].published[slot[1]].model_json) for slot in slots}
    num_replicas = min(state.settings.serve_replicas, len(nodes))
    counts = Counter(slot for held in assigned.values() for slot in held)
    for slot in slots:
        for _ in range(num_replicas - counts[slot]):
            free = [node for node in nodes if slot not in assigned[node] and _fits(state, node, slot, needed)]
            if free:
                assigned[min(free, key=lambda node: len(assigned[node]))][slot] = None
    if num_replicas > 1:
        _even_out(state, needed)


def _fits(state: State, node: NodeId, slot: Slot, needed: Mapping[Slot, int]) -> bool:
    """Whether a node's memory holds a slot beside the soups that it serves; what is free of it only the node knows."""
    if not needed[slot]:
        return True
    others = sum(needed[other] for other in state.ephemeral.assigned[node])
    return others + needed[slot] <= state.ephemeral.sessions[node].opened.memory_bytes


def _even_out(state: State, needed: Mapping[Slot, int]) -> None:
    """A moved slot has another replica, so it stays in service while its new node loads it."""
    assigned = state.ephemeral.assigned
    while True:
        most = max(assigned, key=lambda node: len(assigned[node]))
        least = min(assigned, key=lambda node: len(assigned[node]))
        if len(assigned[most]) - len(assigned[least]) < 2:
            return
        movable = (slot for slot in assigned[most] if slot not in assigned[least])
        slot = next((slot for slot in movable if _fits(state, least, slot, needed)), None)
        if slot is None:
            return
        del assigned[most][slot]
        assigned[least][slot] = None


def _serve_push(state: State, node: NodeId) -> list[Effect]:
    slots: list[ServeSlot] = []
    for run_id, slot in state.ephemeral.assigned[node]:
        publication = state.durable.runs[run_id].published[slot]
        slots.append(
            ServeSlot(
                run=run_id,
                slot=slot,
                weights=publication.weights,
                tokenizer=publication.tokenizer,
                model_json=publication.model_json,
            )
        )
    wanted = tuple(slots)
    if state.ephemeral.sent_serve.get(node) == wanted:
        return []
    state.ephemeral.sent_serve[node] = wanted
    return [SendServe(node=node, slots=wanted)]


def _routers_push(ephemeral: EphemeralState, node: NodeId, addresses: tuple[str, ...]) -> list[Effect]:
    if ephemeral.sent_routers.get(node, ()) == addresses:
        return []
    ephemeral.sent_routers[node] = addresses
    return [SendRouters(node=node, addresses=addresses)]


def _view_pushes(ephemeral: EphemeralState, router: NodeId, served: list[Run]) -> list[Effect]:
    sent = ephemeral.sent_views.setdefault(router, {})
    effects: list[Effect] = []
    for run in served:
        if sent.get(run.run) != run.view_version:
            sent[run.run] = run.view_version
            effects.append(SendView(node=router, run=run.run, version=run.view_version, view_json=view_json(run)))
    return effects
