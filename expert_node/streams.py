"""A bidirectional gRPC stream with the few things we do to it, typed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Generic, TypeVar

import grpc
import grpc.aio

Up = TypeVar("Up")
Down = TypeVar("Down")

_END: Any = getattr(grpc.aio, "EOF")  # noqa: B009 - the type stubs do not know it


class Stream(Generic[Up, Down]):
    """One open call.

    Args:
        method: a stub's stream-stream method. It is called without wait_for_ready: with it every cause
            of failure reads "Deadline Exceeded".
    """

    def __init__(self, method: Any) -> None:
        self._call: Any = method()

    async def write(self, message: Up) -> None:
        """Raises:
        grpc.RpcError: the stream broke.
        asyncio.InvalidStateError: it has ended; `read` says why.
        """
        await self._call.write(message)

    async def read(self) -> Down | None:
        """The next message; None at an orderly end or after `cancel`.

        Raises:
            grpc.RpcError: the stream broke.
        """
        try:
            message = await self._call.read()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return None  # The call was cancelled on this side, not the task.
        if message is _END:
            return None
        answer: Down = message
        return answer

    async def done_writing(self) -> None:
        await self._call.done_writing()

    def cancel(self) -> None:
        self._call.cancel()

    @contextlib.asynccontextmanager
    async def writing(self, write: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
        """Runs a writer beside the block that reads, and ends both together."""
        writer = asyncio.create_task(write(), name="stream writer")
        try:
            yield
        finally:
            writer.cancel()
            # A stream that breaks is told by `read`; the writer has nothing to add.
            with contextlib.suppress(asyncio.CancelledError, grpc.RpcError, asyncio.InvalidStateError):
                await writer
            self.cancel()
