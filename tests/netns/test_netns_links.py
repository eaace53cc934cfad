"""Machines apart: nodes that can only dial out, and links that are cut."""

from __future__ import annotations

import socket
import time

import pytest

from tests.chaos.world import Job, Outcome, begin, outcome
from tests.netns.fleet import HUB, HUB_ADDRESS, Fleet, is_live, is_missed, listening, say, works


def test_a_machine_that_only_dials_refuses_whoever_dials_it(fleet: Fleet) -> None:
    fleet.add_machine("a")
    address = ("10.77.0.11", 7470)

    def come_in() -> None:
        with socket.create_connection(address, 5.0):
            pass

    say("machines", **fleet.made)
    if not fleet.made["a"].startswith("no firewall"):
        listener = fleet.spaces.inside("a", lambda: socket.create_server(address))
        with listener, pytest.raises(ConnectionRefusedError):
            fleet.spaces.inside(HUB, come_in)
    with pytest.raises(ConnectionRefusedError):
        fleet.spaces.inside(HUB, come_in)


def test_nodes_that_can_only_dial_join_train_to_the_end_and_serve_a_client_elsewhere(
    fleet: Fleet, job: Job, undisturbed: Outcome
) -> None:
    for name in ("a", "b", "visitor"):
        fleet.add_machine(name)
    fleet.start_hub()
    began = time.monotonic()
    nodes = [fleet.start_node("a")]
    joined_s = time.monotonic() - began
    nodes.append(fleet.start_node("b"))
    run = begin(fleet, job)
    assert outcome(fleet, run) == undisturbed
    with fleet.client() as client:
        counted = client.get_ledger(run)
    on_link = sum(fleet.spaces.bytes_on(HUB))
    router = fleet.start_hub_router()
    answer = fleet.ask("visitor", f"{HUB_ADDRESS}:{router.ready['port']}", "the quick brown fox")
    assert answer["ids"]
    assert all(not listening(node) for node in nodes)
    # The corpus came over the hub's loopback, and went out from there; all else is between the hub and its nodes.
    between = counted.bytes_weights + counted.bytes_scores
    say("join, train, serve", joined_s=joined_s, weights_and_scores=between, all_on_link=on_link, **fleet.made)
    assert 0 < between < on_link


@pytest.mark.parametrize(
    "cut_s", [pytest.param(2, marks=pytest.mark.long), 12, pytest.param(60, marks=pytest.mark.long)]
)
def test_a_run_whose_only_node_is_cut_off_for_a_while_ends_as_if_nothing_had_been(
    fleet: Fleet, job: Job, undisturbed: Outcome, cut_s: int
) -> None:
    """Shorter than the silence that makes a suspect (5 s), longer, and longer than a lease (30 s)."""
    fleet.add_machine("a")
    coordinator = fleet.start_hub()
    node = fleet.start_node("a")
    run = begin(fleet, job)
    fleet.wait_until(run, lambda info: works(info, "a"))
    fleet.spaces.cut("a")
    cut_at = time.monotonic()
    noticed_s = fleet.wait_state("a", is_missed) if cut_s > 10 else None
    time.sleep(max(0.0, cut_at + cut_s - time.monotonic()))
    with fleet.client() as client:
        assert client.get_run(run).state == "running"
    fleet.spaces.mend("a")
    back_s = fleet.wait_state("a", is_live)
    assert outcome(fleet, run) == undisturbed
    assert node.stop() == 0
    assert coordinator.stop() == 0
    lapses = fleet.lapses()
    say(f"cut for {cut_s} s", noticed_s=noticed_s, back_s=back_s, lapses=lapses)
    assert ("suspect" in lapses) == (noticed_s is not None)
    assert "Traceback" not in node.tail() + coordinator.tail()


def test_the_others_do_the_work_of_a_node_that_is_cut_off_and_what_it_brings_later_counts_once(
    fleet: Fleet, job: Job, undisturbed: Outcome
) -> None:
    for name in ("a", "b"):
        fleet.add_machine(name)
    coordinator = fleet.start_hub()
    node = fleet.start_node("b")
    run = begin(fleet, job)
    fleet.wait_until(run, lambda info: works(info, "b"))
    fleet.spaces.cut("b", silently=True)
    fleet.start_node("a")
    assert outcome(fleet, run) == undisturbed
    fleet.spaces.mend("b")
    back_s = fleet.wait_state("b", is_live)
    assert node.stop() == 0
    assert outcome(fleet, run) == undisturbed
    assert coordinator.stop() == 0
    lapses = fleet.lapses()
    say("cut off while others work", back_s=back_s, lapses=lapses)
    assert "suspect" in lapses
    assert "Traceback" not in node.tail() + coordinator.tail()
