"""What a router needs to know of one run. Pure: a value, its JSON, and which view may replace which."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, assert_never

from potluck.config import added, from_mapping, to_mapping
from potluck.errors import DataError, SpecError
from potluck.ids import Digest, RunId, canonical_json, is_digest
from potluck.jsontext import read_json
from potluck.lm.config import ModelConfig
from potluck.lm.soup_config import SoupConfig

EXPERT_SLOT = "expert-"
RouteBy = Literal["routers", "one", "partition"]
"""Who decides: router models; nobody, for one model answers everything; or a partition's nearest centroid."""
_NO_PARTITION = Digest("")


@dataclass(frozen=True, order=True, kw_only=True)
class ReplicaKey:
    """What a node says it has ready, and what a request asks for: equal or not at all."""

    run: RunId
    slot: str
    weights: Digest


@dataclass(frozen=True, kw_only=True)
class SoupView:
    """Of what models are made on request (2502.01804)."""

    slot: str
    """Where the bank of experts is published; it answers nothing by itself."""
    labels: Digest
    """The labels manifest whose domains, in their order, mixtures are over."""
    config: SoupConfig

    def __post_init__(self) -> None:
        if not is_digest(self.labels) or not self.slot:
            what = f"view of a soup in slot {self.slot!r}, labels {self.labels!r}"
            raise SpecError("spec.bad-value", what, "name the bank's slot, and the labels by their SHA-256")


@dataclass(frozen=True, kw_only=True)
class View:
    """One run as it is served: what decides, the tokenizer, and the published weights of every slot."""

    run: RunId
    name: str
    method: str
    tokenizer: Digest
    sequence_length: int
    """S: an expert's rows have S+1 tokens."""
    prefix_length: int
    """M: the tokens a routing decision sees."""
    expert_model: ModelConfig
    slots: Mapping[str, Digest]
    """`expert-<e>` or the default slot, and perhaps others such as `dense`, to published weights."""
    route_by: RouteBy = "routers"
    router_model: ModelConfig | None = None
    """Of views by routers."""
    routers: tuple[Digest, ...] = ()
    """Weights of router e, which speaks for expert e."""
    default_slot: str = ""
    """Of views of one model: what answers when no slot is named."""
    partition: Digest = _NO_PARTITION
    """The partition of the run's text; empty: none. Where it decides, domain e is expert e's."""
    experts: int = 0
    """Of views by partition: how many there are, which is how many domains the partition has."""
    soup: SoupView | None = None
    """Of runs of a soup."""

    def __post_init__(self) -> None:
        partition = (self.partition,) if self.partition else ()
        digests = (self.tokenizer, *self.routers, *partition, *self.slots.values())
        if bad := [d for d in digests if not is_digest(d)]:
            raise SpecError("spec.bad-value", f"view of run {self.run}: {bad[0]!r} is no digest", "give a SHA-256")
        if not 2 <= self.prefix_length < self.sequence_length:
            what = f"prefix {self.prefix_length}, sequence {self.sequence_length}"
            raise SpecError("spec.bad-value", f"view of run {self.run}: {what}", "2 <= M < S")
        has = (bool(self.routers), self.router_model is not None, bool(self.default_slot), self.experts > 0)
        if has != _NEEDS[self.route_by] or self.experts < 0 or (self.route_by == "partition" and not self.partition):
            what = f"{len(self.routers)} routers, default slot {self.default_slot!r}, {self.experts} experts"
            what += f", routed by {self.route_by}"
            fix = "routers: 1 or more and their model; one: a default slot; partition: its digest and how many experts"
            raise SpecError("spec.bad-value", f"view of run {self.run}: {what}", fix)

    @staticmethod
    def from_json(text: str) -> View:
        """Reads a coordinator's view.

        Raises:
            DataError: ``data.bad-view``: not JSON, or a field is missing, unknown or impossible.
        """
        try:
            raw: dict[str, Any] = read_json(text)
            slots = {str(slot): Digest(weights) for slot, weights in raw.pop("slots").items()}
            return from_mapping(_Body, raw).with_slots(slots)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            fix = "run a router of the coordinator's version"
            raise DataError("data.bad-view", f"view cannot be read: {error!r}", fix) from error

    def to_json(self) -> str:
        body = _Body(**{name: getattr(self, name) for name in _BODY_FIELDS})
        return canonical_json({**to_mapping(body), "slots": dict(self.slots)})

    @property
    def num_experts(self) -> int:
        match self.route_by:
            case "routers":
                return len(self.routers)
            case "one":
                return 1
            case "partition":
                return self.experts
            case _:
                assert_never(self.route_by)

    @property
    def expert_slots(self) -> tuple[str, ...]:
        """The slot of each expert; one model is its own expert 0."""
        if self.route_by == "one":
            return (self.default_slot,)
        return tuple(f"{EXPERT_SLOT}{expert}" for expert in range(self.num_experts))

    @property
    def expert_keys(self) -> tuple[ReplicaKey, ...]:
        """The replicas that must be ready for every routed request to find its expert."""
        return tuple(self.key(slot) for slot in self.expert_slots if slot in self.slots)

    @property
    def is_full(self) -> bool:
        """Whether every expert has published weights; other slots are extra."""
        return len(self.expert_keys) == self.num_experts

    @property
    def digests(self) -> frozenset[Digest]:
        """The blobs a router holds for this view, beside what a partition that decides lists.

        The experts' weights are the nodes' business.
        """
        deciding = (self.partition,) if self.route_by == "partition" else self.routers
        labels = (self.soup.labels,) if self.soup is not None else ()
        return frozenset((self.tokenizer, *deciding, *labels))

    def key(self, slot: str) -> ReplicaKey:
        return ReplicaKey(run=self.run, slot=slot, weights=self.slots[slot])

    def is_served(self, ready: Collection[ReplicaKey]) -> bool:
        return self.is_full and all(key in ready for key in self.expert_keys)

    def serves_soup(self, ready: Collection[ReplicaKey]) -> bool:
        """Whether models of its soup can be made; a view without one, or with none published, never does."""
        return self.soup is not None and self.soup.slot in self.slots and self.key(self.soup.slot) in ready


@dataclass(frozen=True, kw_only=True)
class _Body:
    """A view without its slots: what `from_mapping` can read."""

    run: RunId
    name: str
    method: str
    tokenizer: Digest
    sequence_length: int
    prefix_length: int
    expert_model: ModelConfig
    route_by: RouteBy = added("routers")  # noqa: RUF009
    router_model: ModelConfig | None = added(None)  # noqa: RUF009
    routers: tuple[Digest, ...] = added(())
    default_slot: str = added("")
    partition: Digest = added(_NO_PARTITION)  # noqa: RUF009
    experts: int = added(0)
    soup: SoupView | None = added(None)  # noqa: RUF009

    def with_slots(self, slots: Mapping[str, Digest]) -> View:
        return View(**{name: getattr(self, name) for name in _BODY_FIELDS}, slots=slots)


_BODY_FIELDS = tuple(_Body.__dataclass_fields__)
_NEEDS: Mapping[RouteBy, tuple[bool, bool, bool, bool]] = {
    "routers": (True, True, False, False),
    "one": (False, False, True, False),
    "partition": (False, False, False, True),
}
"""Which of routers, router model, default slot and number of experts a view has; no others."""


def may_replace(current: View | None, candidate: View, ready: Collection[ReplicaKey]) -> bool:
    """Whether a loaded candidate should take over now.

    A view that is served stays until its successor is served too, and its soup likewise: while nodes still load
    new weights, requests go on with the old ones.
    """
    if current is None or not current.is_served(ready):
        return True
    return candidate.is_served(ready) and (candidate.serves_soup(ready) or not current.serves_soup(ready))
