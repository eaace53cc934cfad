"""Work that waits for a node, kept in the order in which `policy` gives it out: a choice need not look at all of it.

Derived from the durable state, told of each change of it, and built anew after a restart; never journalled. Works of
one run, kind, rank and size are a shelf. On a shelf those that became ready at once are a cohort, for what is young or
overdue is not in line with the rest; cohorts that are beyond such distinctions become one. Finding the first
costs the logarithm of a cohort; the memory sizes, and the times of the last minutes, are few.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from coordinator.core.settings import CoreSettings
from coordinator.core.values import LineageWanted
from potluck.ids import NO_DIGEST, Digest, RunId

if TYPE_CHECKING:
    from coordinator.core.state import DurableState, Lineage, Task

WorkKey = tuple[bool, str]
"""Whether it is a lineage, and its id."""
Place = int
"""The order in which a run came to want its works: ties break by it."""
K = TypeVar("K", Place, tuple[float, Place])
MAX_NARROW = 64
"""Tasks of a cohort that name a blob before they are told apart by group instead of one by one."""


class Spot(NamedTuple):
    """All of a work that decides where it waits."""

    is_lineage: bool
    rank: int
    memory_bytes: int
    ready_ms: int
    remaining_flops: float
    head_weights: Digest
    has_failed: bool


@dataclass(kw_only=True, eq=False)
class Filed:
    work: Lineage | Task
    place: Place
    spot: Spot | None = None
    """None while it does not wait."""
    cohort: Cohort | None = None
    """None if attempts at it failed: who may have it depends on who asks."""


def spot_of(work: Lineage | Task) -> Spot | None:
    """None for what is in hand, or has nothing left to do."""
    wanted = work.wanted
    if work.leases:
        return None
    flops, head = 0.0, NO_DIGEST
    if isinstance(wanted, LineageWanted):
        lineage: Lineage = work  # type: ignore[assignment]
        if lineage.head_step >= wanted.known_steps:
            return None
        flops = lineage.remaining_flops
        head = lineage.commits[-1].weights if lineage.commits else NO_DIGEST
    return Spot(
        is_lineage=isinstance(wanted, LineageWanted),
        rank=wanted.rank,
        memory_bytes=wanted.memory_bytes,
        ready_ms=work.ready_ms,
        remaining_flops=flops,
        head_weights=head,
        has_failed=bool(work.failures),
    )


class Queues:
    """The queues of all runs."""

    def __init__(self) -> None:
        self._runs: dict[RunId, RunQueue] = {}
        self._wanted_by: dict[WorkKey, dict[RunId, None]] = {}

    def of(self, run: RunId) -> RunQueue:
        return self._runs.setdefault(run, RunQueue())

    def enter(self, run: RunId, work: Lineage | Task) -> None:
        """The run wants it, perhaps as it did before."""
        key = _key(work)
        self._wanted_by.setdefault(key, {})[run] = None
        self.of(run).enter(key, work)
        self.refile(work)

    def leave(self, run: RunId, work: Lineage | Task) -> None:
        """The run wants it no more, or it is done."""
        key = _key(work)
        self.of(run).leave(key)
        runs = self._wanted_by.get(key, {})
        runs.pop(run, None)
        if not runs:
            self._wanted_by.pop(key, None)

    def refile(self, work: Lineage | Task) -> None:
        """Something of it has changed: its leases, head, failures, rank, or since when it waits."""
        key, spot = _key(work), spot_of(work)
        for run in self._wanted_by.get(key, ()):
            self._runs[run].refile(key, spot)

    def rebuild(self, durable: DurableState) -> None:
        self._runs.clear()
        self._wanted_by.clear()
        for run in durable.runs.values():
            for task_id in run.open_tasks:
                self.enter(run.run, durable.tasks[task_id])
            for lineage_id in run.lineages:
                self.enter(run.run, durable.lineages[lineage_id])


class RunQueue:
    def __init__(self) -> None:
        self._filed: dict[WorkKey, Filed] = {}
        self._shelves: dict[tuple[bool, int, int], Shelf] = {}
        self._next_place = 0
        self.failed: dict[WorkKey, Filed] = {}
        """Waiting works that were tried in vain: few, for the third failure ends the run."""
        self.num_waiting = 0

    def enter(self, key: WorkKey, work: Lineage | Task) -> None:
        if key not in self._filed:
            self._filed[key] = Filed(work=work, place=self._next_place)
            self._next_place += 1

    def leave(self, key: WorkKey) -> None:
        if key in self._filed:
            self.refile(key, None)
            del self._filed[key]

    def refile(self, key: WorkKey, spot: Spot | None) -> None:
        filed = self._filed[key]
        if filed.spot == spot:
            return
        if filed.spot is not None:
            self.num_waiting -= 1
            self.failed.pop(key, None)
            if filed.cohort is not None:
                filed.cohort.remove(filed)
        filed.spot, filed.cohort = spot, None
        if spot is None:
            return
        self.num_waiting += 1
        if spot.has_failed:
            self.failed[key] = filed
        else:
            self._shelves.setdefault(spot[:3], Shelf(*spot[:3])).add(filed)

    def find(self, key: WorkKey) -> Filed | None:
        return self._filed.get(key)

    def shelves(self) -> Iterator[Shelf]:
        """Those with something on them."""
        for key, shelf in list(self._shelves.items()):
            if shelf.is_empty():
                del self._shelves[key]
            else:
                yield shelf

    def waiting(self) -> list[Filed]:
        """All that waits: tasks, then lineages, in their places."""
        return sorted(
            (filed for filed in self._filed.values() if filed.spot is not None),
            key=lambda filed: (_key(filed.work)[0], filed.place),
        )

    def sizes(self) -> Iterator[int]:
        """The bytes of memory that what waits needs, each at least once."""
        yield from (shelf.memory_bytes for shelf in self.shelves())
        yield from (filed.work.wanted.memory_bytes for filed in self.failed.values())

    def first_larger(self, memory_bytes: int) -> Filed | None:
        """The first work that needs more memory, tasks before lineages."""
        found = [filed for filed in self.failed.values() if filed.work.wanted.memory_bytes > memory_bytes]
        for shelf in self.shelves():
            if shelf.memory_bytes > memory_bytes:
                found += [cohort.foremost() for cohort in shelf.all_cohorts()]
        return min(found, key=lambda filed: (_key(filed.work)[0], filed.place), default=None)


class Shelf:
    def __init__(self, is_lineage: bool, rank: int, memory_bytes: int) -> None:
        self.is_lineage = is_lineage
        self.rank = rank
        self.memory_bytes = memory_bytes
        self._fresh: dict[int, Cohort] = {}
        self._settled = Cohort()
        self._settled_ms = -1
        """Nothing that became ready later is in the settled cohort."""

    def add(self, filed: Filed) -> None:
        assert filed.spot is not None
        ready_ms = filed.spot.ready_ms
        cohort = self._settled if ready_ms <= self._settled_ms else self._fresh.setdefault(ready_ms, Cohort())
        cohort.add(filed)

    def is_empty(self) -> bool:
        return not self._settled.members and not any(cohort.members for cohort in self._fresh.values())

    def all_cohorts(self) -> Iterator[Cohort]:
        for cohort in (self._settled, *self._fresh.values()):
            if cohort.members:
                yield cohort

    def cohorts(self, now_ms: int, settings: CoreSettings) -> Iterator[tuple[int, Cohort]]:
        """Each with a time since when all of it waits; first puts together what time tells apart no more."""
        differ_ms = max(settings.yield_grace_ms, 0 if self.is_lineage else settings.overdue_ms)
        if self._settled_ms > now_ms - differ_ms:
            self._unsettle()
        for ready_ms, cohort in list(self._fresh.items()):
            if not cohort.members or ready_ms < now_ms - 2 * differ_ms:
                del self._fresh[ready_ms]
                self._settle(ready_ms, cohort)
        if self._settled.members:
            yield self._settled_ms, self._settled
        yield from self._fresh.items()

    def _settle(self, ready_ms: int, cohort: Cohort) -> None:
        """The smaller joins the larger."""
        if not cohort.members:
            return
        self._settled_ms = max(self._settled_ms, ready_ms)
        smaller, larger = sorted((self._settled, cohort), key=lambda one: len(one.members))
        for filed in smaller.members.values():
            larger.add(filed)
        self._settled = larger

    def _unsettle(self) -> None:
        """The clock was set back, as only tests do without a restart."""
        members, self._settled, self._settled_ms = self._settled.members, Cohort(), -1
        for filed in members.values():
            self.add(filed)


class Cohort:
    """Works of one shelf that are equal but for their place, length, and what of them a node may hold."""

    def __init__(self) -> None:
        self.members: dict[Place, Filed] = {}
        self._places = _Heap[Place]()
        self._by_length = _Heap[tuple[float, Place]]()
        self._heads: dict[Digest, dict[Place, None]] = {}
        self._narrow: dict[Digest, list[Place]] = {}
        """Of tasks: blob -> those that name it, where they are few."""
        self._wide: dict[Digest, dict[tuple[Digest, ...], None]] = {}
        """Blob that many name -> the groups it is in."""
        self._groups: dict[tuple[Digest, ...], _Heap[Place]] = {}
        """Tasks by all the wide blobs they name."""

    def add(self, filed: Filed) -> None:
        spot, place = filed.spot, filed.place
        assert spot is not None
        filed.cohort = self
        self.members[place] = filed
        self._places.add(place)
        if spot.is_lineage:
            self._by_length.add((-spot.remaining_flops, place))
            self._heads.setdefault(spot.head_weights, {})[place] = None
            return
        for digest in dict.fromkeys(_inputs(filed)):
            if digest not in self._wide:
                self._narrow.setdefault(digest, []).append(place)
        self._join_group(filed)
        for digest in _inputs(filed):
            if len(self._narrow.get(digest, ())) > MAX_NARROW:
                self._widen(digest)

    def remove(self, filed: Filed) -> None:
        spot, place = filed.spot, filed.place
        assert spot is not None
        del self.members[place]
        self._places.discard(place)
        if spot.is_lineage:
            self._by_length.discard((-spot.remaining_flops, place))
            del self._heads[spot.head_weights][place]
            if not self._heads[spot.head_weights]:
                del self._heads[spot.head_weights]
            return
        for digest in dict.fromkeys(_inputs(filed)):
            places = self._narrow.get(digest)
            if places is not None:
                places.remove(place)
                if not places:
                    del self._narrow[digest]
        self._leave_group(filed)

    def foremost(self) -> Filed:
        return self.members[self._places.first()]

    def longest(self) -> Filed:
        """Of lineages: the first of those with the most left to do."""
        return self.members[self._by_length.first()[1]]

    def with_heads_in(self, held: frozenset[Digest]) -> Iterator[Filed]:
        for digest in held:
            for place in self._heads.get(digest, ()):
                yield self.members[place]

    def likeliest(self, held: frozenset[Digest]) -> Iterator[Filed]:
        """Some tasks, among them the first of those most of whose inputs are held."""
        yield self.foremost()
        for digest in held:
            for place in self._narrow.get(digest, ()):
                yield self.members[place]
            for group in self._wide.get(digest, ()):
                yield self.members[self._groups[group].first()]

    def _group_of(self, filed: Filed) -> tuple[Digest, ...]:
        return tuple(digest for digest in _inputs(filed) if digest in self._wide)

    def _join_group(self, filed: Filed) -> None:
        group = self._group_of(filed)
        if group:
            self._groups.setdefault(group, _Heap()).add(filed.place)
            for digest in group:
                self._wide[digest][group] = None

    def _leave_group(self, filed: Filed) -> None:
        group = self._group_of(filed)
        if group:
            self._groups[group].discard(filed.place)
            if not self._groups[group]:
                del self._groups[group]
                for digest in dict.fromkeys(group):
                    del self._wide[digest][group]

    def _widen(self, digest: Digest) -> None:
        named_by = [self.members[place] for place in self._narrow.pop(digest)]
        for filed in named_by:
            self._leave_group(filed)
        self._wide[digest] = {}
        for filed in named_by:
            self._join_group(filed)


@dataclass
class _Heap(Generic[K]):
    """The least of what is in it; what was taken out is passed over when it comes up."""

    live: set[K] = field(default_factory=set)
    heap: list[K] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.live)

    def add(self, key: K) -> None:
        self.live.add(key)
        heappush(self.heap, key)

    def discard(self, key: K) -> None:
        self.live.discard(key)
        if len(self.heap) > 2 * len(self.live) + MAX_NARROW:
            self.heap = list(self.live)
            heapify(self.heap)

    def first(self) -> K:
        while self.heap[0] not in self.live:
            heappop(self.heap)
        return self.heap[0]


def _key(work: Lineage | Task) -> WorkKey:
    return isinstance(work.wanted, LineageWanted), work.wanted.id


def _inputs(filed: Filed) -> list[Digest]:
    assert not isinstance(filed.work.wanted, LineageWanted)
    return [digest for _, digest in filed.work.wanted.inputs]
