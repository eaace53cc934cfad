"""Looking through all work once for many nodes finds for each of them what looking for it alone finds."""

from __future__ import annotations

from collections import Counter
from statistics import median_low

import hypothesis.strategies as st
from hypothesis import HealthCheck, given, settings

from coordinator.core.events import LeaseRequested
from coordinator.core.policy import Ask, NothingFits
from coordinator.core.settings import CoreSettings
from coordinator.core.spares import Openings, _UsualPaces, choose_or_help
from coordinator.core.state import DurableState, Pace
from potluck.ids import NodeId
from tests.property.test_core_replay import NODES, OPS, STEP, World

Steps = list[tuple[int, int, int]]
SETTINGS = CoreSettings()
LATER_MS = (0, 2_500, 10_000, 100_000, 1_000_000)
MORE_NODES = [NodeId(f"n{number}") for number in range(3, 20)]
PACES = st.lists(st.sampled_from([0.0, 10.0, 300.0, 1_000.0, 1_100.0, 5_000.0]), min_size=8, max_size=8)
seen: Counter[bool] = Counter()
"""Whether a node would find something."""


def lived(steps: Steps, paces: list[float]) -> World:
    """A life at whose end other nodes have taken all that waited, as fast and as slow as `paces` says."""
    world = World()
    for i in range(2):
        world.submit(i, 0)
        world.plan(i, 0)
    for op, a, b in steps:
        OPS[op](world, a, b)
    for number, node in enumerate(MORE_NODES):
        event = LeaseRequested(
            now_ms=world.now_ms,
            node=node,
            request_id=1,
            boot_id="b",
            free_memory_bytes=100 * (number % 4),
            host=f"host-{number}",
        )
        world.feed(event)
    for node, step_ms in zip(MORE_NODES, paces, strict=False):
        world.machine.durable.paces[node] = {"expert": Pace(step_ms=step_ms, step_flops=2.0)}
    return world


def assert_openings_are_what_each_node_would_find(durable: DurableState, now_ms: int) -> None:
    nodes = [*NODES, *MORE_NODES, NodeId("unknown")]
    openings = Openings(durable, nodes, now_ms, SETTINGS)
    finders = [node for node in nodes if would_find(durable, node, now_ms)]
    for node in nodes:
        assert openings.has_one_for(node) == (node in finders), node
        seen[node in finders] += 1
    takers = list(openings.takers(but=0))
    assert takers == finders[: len(takers)]
    assert bool(takers) == bool(finders)
    assert list(openings.takers(but=1)) in (takers, takers[:-1])


def would_find(durable: DurableState, node: NodeId, now_ms: int) -> bool:
    facts = durable.nodes.get(node)
    if facts is None or durable.is_drained(node):
        return False
    ask = Ask(node=node, free_memory_bytes=facts.free_memory_bytes, held=frozenset(), now_ms=now_ms, host=facts.host)
    return not isinstance(choose_or_help(durable, ask, SETTINGS), NothingFits)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(STEP, min_size=20, max_size=80), PACES)
def check_lives(steps: Steps, paces: list[float]) -> None:
    world = lived(steps, paces)
    for later_ms in LATER_MS:
        assert_openings_are_what_each_node_would_find(world.machine.durable, world.now_ms + later_ms)


def test_a_node_is_woken_if_and_only_if_it_would_be_given_something() -> None:
    seen.clear()
    check_lives()
    assert min(seen.values()) > 1000, seen


@given(
    st.dictionaries(
        st.sampled_from([NodeId(f"n{number}") for number in range(7)]),
        st.sampled_from([0.0, 1.0, 1.5, 2.0, 3.5, 10.0]),
    ),
    st.sampled_from([NodeId("n0"), NodeId("n3"), NodeId("n9")]),
)
def test_the_usual_pace_is_the_lower_middle_one_of_all_nodes_but_the_holder(
    paces: dict[NodeId, float], holder: NodeId
) -> None:
    durable = DurableState(
        paces={node: {"expert": Pace(step_ms=step_ms, step_flops=1.0)} for node, step_ms in paces.items()}
    )
    usual, others = _UsualPaces(durable), [ms for node, ms in paces.items() if node != holder and ms]
    exact_ms = median_low(others or [0.0])
    assert usual.step_ms(("expert", 1.0), holder) == exact_ms
    assert usual.step_ms(("expert", 3.0), holder) == 3.0 * exact_ms
    assert not exact_ms or 0 < usual.least_ms(("expert", 1.0)) <= exact_ms
