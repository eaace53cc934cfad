"""What a router needs to know of one run. Pure: a value, its JSON, and which view may replace which."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from potluck.config import from_mapping, to_mapping
from potluck.errors import DataError, SpecError
from potluck.ids import Digest, RunId, canonical_json, is_digest
from potluck.lm.config import ModelConfig

EXPERT_SLOT = "expert-"
DENSE_SLOT = "dense"


@dataclass(frozen=True, order=True, kw_only=True)
class ReplicaKey:
    """What a node says it has ready, and what a request asks for: equal or not at all."""

    run: RunId
    slot: str
    weights: Digest


def expert_slot(expert: int) -> str:
    return f"{EXPERT_SLOT}{expert}"


@dataclass(frozen=True, kw_only=True)
class View:
    """One run as it is served: frozen routers, the tokenizer, and the published weights of every slot."""

    run: RunId
    name: str
    method: str
    tokenizer: Digest
    sequence_length: int
    """S: an expert's rows have S+1 tokens."""
    prefix_length: int
    """M: the tokens a routing decision sees."""
    router_model: ModelConfig
    routers: tuple[Digest, ...]
    """Weights of router e, which speaks for expert e."""
    expert_model: ModelConfig
    slots: Mapping[str, Digest]
    """`expert-<e>` and perhaps `dense`, to published weights."""

    def __post_init__(self) -> None:
        digests = (self.tokenizer, *self.routers, *self.slots.values())
        if bad := [d for d in digests if not is_digest(d)]:
            raise SpecError("spec.bad-value", f"view of run {self.run}: {bad[0]!r} is no digest", "give a SHA-256")
        if not self.routers or not 2 <= self.prefix_length < self.sequence_length:
            what = f"{len(self.routers)} routers, prefix {self.prefix_length}, sequence {self.sequence_length}"
            raise SpecError("spec.bad-value", f"view of run {self.run}: {what}", "1 router or more, 2 <= M < S")

    @staticmethod
    def from_json(text: str) -> View:
        """Reads a coordinator's view.

        Raises:
            DataError: ``data.bad-view``: not JSON, or a field is missing, unknown or impossible.
        """
        try:
            raw: dict[str, Any] = json.loads(text)
            slots = {str(slot): Digest(weights) for slot, weights in raw.pop("slots").items()}
            return from_mapping(_Body, raw).with_slots(slots)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            fix = "run a router of the coordinator's version"
            raise DataError("data.bad-view", f"view cannot be read: {error!r}", fix) from error

    def to_json(self) -> str:
        body = {name: to_mapping(getattr(self, name)) for name in _BODY_FIELDS}
        return canonical_json({**body, "slots": dict(self.slots)})

    @property
    def num_experts(self) -> int:
        return len(self.routers)

    @property
    def expert_keys(self) -> tuple[ReplicaKey, ...]:
        """The replicas that must be ready for every routed request to find its expert."""
        return tuple(self.key(expert_slot(e)) for e in range(self.num_experts) if expert_slot(e) in self.slots)

    @property
    def is_full(self) -> bool:
        """Whether every expert has published weights; the dense twin is extra."""
        return len(self.expert_keys) == self.num_experts

    @property
    def digests(self) -> frozenset[Digest]:
        """The blobs a router holds for this view; the experts' weights are the nodes' business."""
        return frozenset((self.tokenizer, *self.routers))

    def key(self, slot: str) -> ReplicaKey:
        return ReplicaKey(run=self.run, slot=slot, weights=self.slots[slot])

    def is_served(self, ready: Collection[ReplicaKey]) -> bool:
        return self.is_full and all(key in ready for key in self.expert_keys)


@dataclass(frozen=True, kw_only=True)
class _Body:
    """A view without its slots: what `from_mapping` can read."""

    run: RunId
    name: str
    method: str
    tokenizer: Digest
    sequence_length: int
    prefix_length: int
    router_model: ModelConfig
    routers: tuple[Digest, ...]
    expert_model: ModelConfig

    def with_slots(self, slots: Mapping[str, Digest]) -> View:
        return View(**{name: getattr(self, name) for name in _BODY_FIELDS}, slots=slots)


_BODY_FIELDS = tuple(_Body.__dataclass_fields__)


def may_replace(current: View | None, candidate: View, ready: Collection[ReplicaKey]) -> bool:
    """Whether a loaded candidate should take over now.

    A view that is served stays until its successor is served too: while nodes still load new
    weights, requests go on with the old ones.
    """
    if current is None or not current.is_served(ready):
        return True
    return candidate.is_served(ready)
