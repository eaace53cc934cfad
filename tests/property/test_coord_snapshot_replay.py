"""From a snapshot and the rows after it comes the state that all rows lead to, and the same future."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordinator.core.effects import Answer, Effect
from coordinator.core.events import CoordinatorResumed, DurableEvent, Event
from coordinator.core.machine import Machine
from coordinator.core.settings import CoreSettings
from coordinator.core.state import DurableState, Lease, RunStatus, durable_json
from coordinator.plain_json import TYPE_KEY, copied, reader_of, to_plain
from coordinator.snapshot import Mark, code_digest, decode, encode, read_header
from coordinator.wire_events import decode_event
from potluck.ids import digest_bytes
from tests.property.test_coord_event_rows import values_of
from tests.property.test_core_replay import OPS, STEP, World, replayed

GOLDEN = Path(__file__).parents[1] / "golden"
CODE = code_digest(CoreSettings())
MARK = Mark(rows=1, last_row=digest_bytes(b"a row"))
Steps = list[tuple[int, int, int]]


class TwinWorld(World):
    """Remembers what the machine said to each event."""

    def __init__(self) -> None:
        self.said: list[list[Effect]] = []
        super().__init__()

    def feed(self, event: Event) -> list[Effect]:
        effects = super().feed(event)
        self.said.append(effects)
        return effects


def lived(steps: Steps) -> TwinWorld:
    world = TwinWorld()
    for i in range(2):
        world.submit(i, 0)
        world.plan(i, 0)
    go_on(world, steps)
    return world


def go_on(world: World, steps: Steps) -> None:
    for op, a, b in steps:
        OPS[op](world, a, b)


def through_a_snapshot(durable: DurableState) -> DurableState:
    data = b"".join(encode(copied(durable), MARK, CODE))
    assert read_header(data).mark == MARK
    return decode(data)


def assert_every_cut_leads_to_the_same_state(events: list[DurableEvent]) -> None:
    whole, cuts = Machine(), list[DurableState]()
    for event in events:
        cuts.append(through_a_snapshot(whole.durable))
        whole.handle(event)
    for number, cut in enumerate(cuts):
        machine = Machine()
        machine.adopt(cut)
        for event in events[number:]:
            machine.handle(event)
        assert durable_json(machine.durable) == durable_json(whole.durable), f"cut after {number} events"


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(STEP, min_size=30, max_size=90))
def test_at_every_cut_the_snapshot_and_the_rows_after_it_give_the_state_of_the_whole_journal(steps: Steps) -> None:
    assert_every_cut_leads_to_the_same_state(lived(steps).durable)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_so_they_do_in_the_journals_of_earlier_releases(number: int) -> None:
    rows = (GOLDEN / f"coord_journal_v{number}.jsonl").read_text(encoding="utf-8").splitlines()
    assert_every_cut_leads_to_the_same_state([decode_event(row) for row in rows])


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(STEP, min_size=20, max_size=60), st.lists(STEP, min_size=10, max_size=40), st.data())
def test_a_coordinator_that_starts_from_a_snapshot_goes_on_as_one_that_replayed_all(
    before: Steps, after: Steps, data: st.DataObject
) -> None:
    world = lived(before)
    cut = data.draw(st.integers(0, len(world.durable)))
    snapshot = through_a_snapshot(replayed(world.durable[:cut]).durable)
    world.pending.clear()
    twin = copy.deepcopy(world)
    world.machine, twin.machine = replayed(world.durable), Machine()
    twin.machine.adopt(snapshot)
    for event in world.durable[cut:]:
        twin.machine.handle(event)
    for one in (world, twin):
        one.said.clear()
        one.feed(CoordinatorResumed(now_ms=one.now_ms, boot_id="after the death"))
        go_on(one, after)
    assert twin.said == world.said
    assert durable_json(twin.machine.durable) == durable_json(world.machine.durable)


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(STEP, min_size=10, max_size=50), st.lists(STEP, min_size=10, max_size=50))
def test_what_happens_after_a_copy_of_the_state_was_taken_is_not_in_it(before: Steps, after: Steps) -> None:
    world = lived(before)
    then, taken = durable_json(world.machine.durable), copied(world.machine.durable)
    go_on(world, after)
    assert durable_json(taken) == then


# --- the codec -------------------------------------------------------------------------------


def reachable(hint: Any, seen: dict[Any, None]) -> dict[Any, None]:
    """Every dataclass that a value of this type may hold, written apart from the codec under test."""
    if hint not in seen and dataclasses.is_dataclass(hint):
        seen[hint] = None
        for one in typing.get_type_hints(hint, localns={"Json": Any}).values():
            reachable(one, seen)
    for argument in typing.get_args(hint):
        reachable(argument, seen)
    return seen


REACHABLE = list(reachable(DurableState, {}))


@functools.cache
def states_of(hint: Any) -> st.SearchStrategy[Any]:
    """As `values_of`, of types that change too."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        hints = typing.get_type_hints(hint, localns={"Json": Any})
        return st.builds(hint, **{field.name: states_of(hints[field.name]) for field in dataclasses.fields(hint)})
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*(states_of(member) for member in arguments))
    if origin is dict:
        return st.dictionaries(states_of(arguments[0]), states_of(arguments[1]), max_size=2)
    if origin is list:
        return st.lists(states_of(arguments[0]), max_size=2)
    if origin is tuple and arguments[-1] is Ellipsis:
        return st.lists(states_of(arguments[0]), max_size=2).map(tuple)
    return values_of(type(None) if hint is None else hint)


def test_the_walk_over_the_state_finds_what_is_hidden_deepest() -> None:
    wanted = {DurableState, *typing.get_args(Answer), *typing.get_args(Lease), *typing.get_args(RunStatus)}
    assert wanted <= set(REACHABLE)
    assert not [kind for kind in REACHABLE if TYPE_KEY in typing.get_type_hints(kind, localns={"Json": Any})]


@pytest.mark.parametrize("kind", REACHABLE, ids=lambda kind: kind.__name__)
def test_every_dataclass_of_the_state_is_read_back_as_it_was_written(kind: type) -> None:
    @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
    @given(states_of(kind))
    def survives(value: Any) -> None:
        back = reader_of(kind)(json.loads(json.dumps(to_plain(value))))
        assert back == value
        assert list(orders(back)) == list(orders(value))
        assert copied(value) == value

    survives()


def orders(value: Any) -> Iterator[list[Any]]:
    """The keys of every dict inside, in their order, which decides ties."""
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from orders(getattr(value, field.name))
    elif isinstance(value, Mapping):
        yield list(value)
        for item in value.values():
            yield from orders(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from orders(item)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(states_of(DurableState))
def test_a_whole_state_survives_a_snapshot(durable: DurableState) -> None:
    assert durable_json(through_a_snapshot(durable)) == durable_json(durable)
