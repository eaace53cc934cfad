"""Same request, same answer: one outstanding request per node and verb, the last answer kept."""

from __future__ import annotations

from coordinator.core.effects import Answer
from coordinator.core.state import DurableState, Kept
from potluck.ids import Json, NodeId, digest_json


def fingerprint(*parts: Json) -> str:
    """What makes a request the same one, beside its number: numbers begin anew with a process."""
    return digest_json(list(parts))


def kept_answer(durable: DurableState, node: NodeId, verb: str, request_id: int, mark: str) -> Answer | None:
    """The answer given before to the very same request, if it was this verb's last."""
    kept = durable.requests.get(node, {}).get(verb)
    if kept is not None and kept.request_id == request_id and kept.fingerprint == mark:
        return kept.answer
    return None


def last_request_id(durable: DurableState, node: NodeId, verb: str) -> int:
    """The highest number answered since the node's process started, or -1."""
    kept = durable.requests.get(node, {}).get(verb)
    return kept.request_id if kept is not None else -1


def keep_answer(durable: DurableState, node: NodeId, verb: str, request_id: int, mark: str, answer: Answer) -> None:
    """Keeps an answer, unless it is one to an older request that came late."""
    if request_id >= last_request_id(durable, node, verb):
        kept = Kept(request_id=request_id, fingerprint=mark, answer=answer)
        durable.requests.setdefault(node, {})[verb] = kept


def forget_requests(durable: DurableState, node: NodeId) -> None:
    """The node's process is a new one: its numbers begin anew."""
    durable.requests.pop(node, None)
