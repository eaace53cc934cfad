"""Two nodes on machines of their own, over the wire: what the slow one holds is given to the fast one, who wins."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

from coordinator.core.events import PlanAdvanced
from coordinator.core.machine import Machine
from coordinator.core.values import Running
from potluck.ids import LineageId, RunId
from potluck.net.channels import open_channel
from potluck.net.identity import Identity
from potluck.net.join import enrol
from potluck.net.version import make_hello
from potluck.v1 import admin_pb2, admin_pb2_grpc, node_pb2, node_pb2_grpc
from tests.integration.test_coord_run import DEADLINE_S, LINEAGE, World, in_loop, spec_json, start

LINEAGES = tuple(replace(LINEAGE, id=LineageId(letter * 64), label=f"expert {letter}") for letter in "ab")


def two_experts(machine: Machine, run: RunId, now_ms: int) -> PlanAdvanced:
    return PlanAdvanced(
        now_ms=now_ms, run=run, lineages=LINEAGES, tasks=(), publish=(), stage="experts", outcome=Running()
    )


class HandNode:
    """A node with a session, whose every word is said by the test."""

    def __init__(self, w: World, identity: Identity, channel: Any, host: str) -> None:
        self._w = w
        self._identity = identity
        self._stub: Any = node_pb2_grpc.NodeServiceStub(channel)
        self._host = host
        self._session: Any = None

    async def open(self) -> None:
        self._session = self._stub.Session()
        hello = node_pb2.SessionHello(hello=make_hello(boot_id="boot", hostname=self._host))
        await self._session.write(node_pb2.SessionUp(items=[node_pb2.UpItem(hello=hello)]))
        await self.hears("welcome")

    async def hears(self, kind: str) -> Any:
        """Waits for an item of this kind; says that it lives while it waits."""
        while True:
            beat = node_pb2.Heartbeat(activity="idle")
            await self._session.write(node_pb2.SessionUp(items=[node_pb2.UpItem(heartbeat=beat)]))
            for item in (await self._session.read()).items:
                if item.WhichOneof("item") == kind:
                    return getattr(item, kind)

    async def asks(self) -> node_pb2.AcquireLeaseResponse:
        request = node_pb2.AcquireLeaseRequest(
            request_id=self._w.next_request(), boot_id="boot", free_memory_bytes=1 << 30
        )
        answer: node_pb2.AcquireLeaseResponse = await self._stub.AcquireLease(request, timeout=DEADLINE_S)
        return answer

    async def commits(self, lease: node_pb2.Lease, parent: str, steps: tuple[int, int], bits: str) -> Any:
        child = await self._w.put(self._identity, f"{lease.train.lineage} {steps} {bits}".encode())
        request = node_pb2.CommitRequest(
            request_id=self._w.next_request(),
            fence=lease.fence,
            lineage=lease.train.lineage,
            parent=parent,
            start_step=steps[0],
            end_step=steps[1],
            child=child,
            weights=child,
            optimizer=child,
            figures_json="{}",
        )
        return await self._stub.Commit(request, timeout=DEADLINE_S)

    async def trains(self, lease: node_pb2.Lease, bits: str) -> None:
        """All the steps of its lease, as fast as they can be told."""
        head, wanted = lease.train.head, LINEAGES[0]
        for step in range(lease.train.head_step, wanted.known_steps, wanted.commit_every):
            answer = await self.commits(lease, head, (step, step + wanted.commit_every), bits)
            assert answer.accepted
            head = answer.head


@in_loop
async def test_the_fast_node_is_woken_for_what_the_slow_one_holds_and_the_loser_is_told(tmp_path: Path) -> None:
    w = World(tmp_path, two_experts)
    async with w.running():
        corpus = await w.put_corpus()
        fast_identity = await w.join()
        async with open_channel(w.admin) as admin:
            invite = admin_pb2.InviteRequest(count=1, role="node")
            (string,) = (await admin_pb2_grpc.AdminServiceStub(admin).Invite(invite, timeout=DEADLINE_S)).join_strings
            slow_identity = await asyncio.to_thread(enrol, string, name="old box", hello=make_hello(boot_id="boot"))
            run = (await start(admin, spec_json(corpus), "q1")).run
            async with open_channel(fast_identity) as one, open_channel(slow_identity) as other:
                fast, slow = HandNode(w, fast_identity, one, "fast"), HandNode(w, slow_identity, other, "slow")
                await fast.open()
                await slow.open()
                own, held = (await fast.asks()).lease, (await slow.asks()).lease
                await fast.trains(own, "x")
                assert (await fast.asks()).none.reason
                await fast.hears("wake")
                spare = (await fast.asks()).lease
                assert (spare.train.lineage, spare.train.head_step) == (held.train.lineage, 0)
                await fast.trains(spare, "x")
                assert (await slow.hears("revoke")).fence == held.fence
                late = await slow.commits(held, "", (0, 10), "y")
                assert (late.accepted, late.head_step) == (False, 20)
            ledger = await admin_pb2_grpc.AdminServiceStub(admin).GetLedger(
                admin_pb2.GetLedgerRequest(run=run), timeout=DEADLINE_S
            )
    assert ledger.ok
    assert [[(r.start_step, r.fence) for r in line.ranges] for line in ledger.lineages] == [
        [(0, own.fence), (10, own.fence)],
        [(0, spare.fence), (10, spare.fence)],
    ]
