"""Since when a node is away, as people are told."""

from __future__ import annotations

import pytest

from coordinator.core.events import InviteIssued, PeerEnrolled, SessionClosed, SessionOpened, TimePassed
from coordinator.core.machine import Machine
from coordinator.core.queries import node_infos
from potluck.ids import Digest, NodeId

NODE = NodeId("n2-x")


def silence(machine: Machine) -> tuple[str, int]:
    (info,) = node_infos(machine.state)
    return info.state, info.silent_ms


@pytest.mark.parametrize("orderly", [False, True])
def test_a_node_that_went_is_silent_since_it_was_last_heard_until_it_is_back(orderly: bool) -> None:
    machine = Machine()
    token = Digest("t" * 64)
    machine.handle(InviteIssued(now_ms=0, token_digest=token, role="node", expires_unix_ms=1))
    enrolled = PeerEnrolled(now_ms=0, node=NODE, role="node", name="x", curve_public_key="k", token_digest=token)
    machine.handle(enrolled)
    machine.handle(TimePassed(now_ms=500))
    assert silence(machine) == ("gone", 0)
    opened = SessionOpened(
        now_ms=1_000, node=NODE, role="node", boot_id="b", hostname="h", cores=1, memory_bytes=1, version="0.1.0"
    )
    machine.handle(opened)
    machine.handle(TimePassed(now_ms=2_000))
    assert silence(machine) == ("live", 1_000)
    machine.handle(SessionClosed(now_ms=3_000, node=NODE, boot_id="b", orderly=orderly))
    machine.handle(TimePassed(now_ms=15_000))
    assert silence(machine) == ("gone", 14_000)
    machine.handle(opened)
    assert silence(machine) == ("live", 0)
