"""The unary calls of a node, each with its deadline. Errors come as `PotluckError`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc.aio

from expert_node import events as on
from expert_node import wire
from expert_node.values import FinishedCommit, FinishedTask
from potluck.ids import Digest, Fence
from potluck.net.guard import rpc_errors
from potluck.v1 import node_pb2, node_pb2_grpc

DEADLINE_S = 10.0
MAX_HELD = 256
MAX_ERROR_TEXT = 2000


class CoordinatorCalls:
    """Stateless: ids and repeats are the machine's affair."""

    def __init__(self, channel: grpc.aio.Channel, *, boot_id: str) -> None:
        self._stub: Any = node_pb2_grpc.NodeServiceStub(channel)
        self._boot_id = boot_id

    async def acquire(
        self, request_id: int, *, free_memory_bytes: int, held: Sequence[Digest]
    ) -> on.GrantReceived | on.NothingReceived:
        """Raises:
        NotReachable, Refused, JoinError: no answer, or no.
        DataError: ``data.bad-lease``.
        """
        request = node_pb2.AcquireLeaseRequest(
            request_id=request_id,
            boot_id=self._boot_id,
            free_memory_bytes=free_memory_bytes,
            held=list(held[:MAX_HELD]),
        )
        with rpc_errors():
            answer = await self._stub.AcquireLease(request, timeout=DEADLINE_S)
        return wire.grant_of(request_id, answer)

    async def renew(self, fence: Fence) -> str | None:
        """None when renewed, else why not."""
        with rpc_errors():
            answer = await self._stub.RenewLease(node_pb2.RenewLeaseRequest(fence=fence), timeout=DEADLINE_S)
        return None if answer.renewed else answer.reason or "the lease has lapsed"

    async def commit(self, request_id: int, commit: FinishedCommit) -> on.CommitAnswered:
        with rpc_errors():
            answer = await self._stub.Commit(wire.commit_request(request_id, commit), timeout=DEADLINE_S)
        return wire.commit_answer(request_id, answer)

    async def complete(self, request_id: int, result: FinishedTask) -> on.TaskAnswered:
        with rpc_errors():
            answer = await self._stub.CompleteTask(wire.complete_request(request_id, result), timeout=DEADLINE_S)
        return wire.task_answer(request_id, answer)

    async def give_back(self, request_id: int, fence: Fence, error_id: str, message: str) -> on.ReturnAnswered:
        request = node_pb2.ReturnLeaseRequest(
            request_id=request_id, fence=fence, error_id=error_id, message=message[:MAX_ERROR_TEXT]
        )
        with rpc_errors():
            await self._stub.ReturnLease(request, timeout=DEADLINE_S)
        return on.ReturnAnswered(request_id=request_id)
