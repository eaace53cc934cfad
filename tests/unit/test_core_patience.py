"""How long a node may be silent before it is suspected: less where its heartbeats came steadily."""

from __future__ import annotations

from tests.unit.test_core_leases import A, Bench, lineage


def test_three_seconds_are_enough_of_a_node_whose_heartbeats_came_steadily_and_five_after_one_that_was_late() -> None:
    bench = Bench()
    bench.plan(lineage())
    bench.open(A)
    fence = bench.ask(A).fence

    def beats(number: int, every_ms: int) -> None:
        for _ in range(number):
            bench.now_ms += every_ms
            bench.beat(A, fence)

    beats(10, 1_000)
    assert bench.tick(3_001) == []  # too few to know it by
    beats(15, 1_000)
    beats(1, 2_000)
    assert bench.tick(3_001) == []
    beats(20, 1_100)
    assert bench.tick(3_000) == []
    assert [lapse.reason for lapse in bench.tick(1)] == ["suspect"]
