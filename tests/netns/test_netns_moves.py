"""A coordinator whose machine gets another address, in the middle of a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.world import Job, Outcome, begin, outcome
from tests.netns.fleet import HUB, HUB_ADDRESS, Fleet, is_live, is_missed, say, works

HOST = "hub.potluck.test"
OTHER_ADDRESS = "10.77.0.2"


@pytest.fixture
def home(fleet: Fleet, tmp_path: Path) -> Iterator[str]:
    """Of a node that is started by its person's commands on machine `a`, and ended with the test."""
    fleet.add_machine("a")
    yield str(tmp_path / "person")
    fleet.command("a", "down", "--home", str(tmp_path / "person"), "--now")


def test_nodes_and_clients_find_a_coordinator_whose_name_has_come_to_mean_another_address(
    fleet: Fleet, job: Job, undisturbed: Outcome
) -> None:
    for name in ("a", "visitor"):
        fleet.add_machine(name)
    fleet.spaces.name_hosts({HOST: HUB_ADDRESS})
    coordinator = fleet.start_hub(advertise=HOST)
    router = fleet.start_hub_router(advertise=HOST)
    node = fleet.start_node("a")
    run = begin(fleet, job)
    fleet.wait_until(run, lambda info: works(info, "a"))
    fleet.spaces.give_address(HUB, OTHER_ADDRESS)
    noticed_s = fleet.wait_state("a", is_missed)
    fleet.spaces.name_hosts({HOST: OTHER_ADDRESS})
    back_s = fleet.wait_state("a", is_live)
    assert outcome(fleet, run) == undisturbed
    assert fleet.ask("visitor", f"{HOST}:{router.ready['port']}", "the quick brown fox")["ids"]
    say("another address", noticed_s=noticed_s, back_s=back_s)
    assert "Traceback" not in node.tail() + coordinator.tail() + router.tail()


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_node_that_is_told_the_new_address_comes_back_and_the_run_goes_on(
    fleet: Fleet, job: Job, undisturbed: Outcome, home: str
) -> None:
    coordinator = fleet.start_hub()
    fleet.command("a", "join", fleet.invite("node"), "--home", home, "--name", "a", "--detach")
    run = begin(fleet, job)
    fleet.wait_until(run, lambda info: works(info, "a"))
    fleet.spaces.give_address(HUB, OTHER_ADDRESS)
    noticed_s = fleet.wait_state("a", is_missed)
    fleet.command("a", "down", "--home", home)
    fleet.command(
        "a", "join", "--home", home, "--coordinator", f"{OTHER_ADDRESS}:{coordinator.ready['control']}", "--detach"
    )
    back_s = fleet.wait_state("a", is_live)
    assert outcome(fleet, run) == undisturbed
    say("another address, told", noticed_s=noticed_s, back_s=back_s)
