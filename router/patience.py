"""How long a request may wait for what a young router is still getting: its first view, then ready replicas."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LONGEST_WAIT_S = 20.0
"""Of one request; below the clients' deadline of a call, so that the real cause reaches them."""
MAX_WAITING = 256
"""Requests that may wait at once; each holds its text in memory. The next is answered with what there is."""


class Patience:
    """Requests wait while models load, and for a while after the start and after each new view.

    Everything else that is missing stays missing: it is answered at once. Make it inside the event loop.
    """

    def __init__(self, longest_s: float = LONGEST_WAIT_S) -> None:
        self._longest_s = longest_s
        self._changed = asyncio.Event()
        self._num_loading = 0
        self._num_waiting = 0
        self._until = 0.0
        self.renew()

    def renew(self) -> None:
        """Something new may be worth waiting for: the router has started, or nodes must attach for a new view."""
        self._until = asyncio.get_running_loop().time() + self._longest_s
        self.notify()

    def notify(self) -> None:
        """What somebody waits for may have come: looks again."""
        self._changed.set()
        self._changed = asyncio.Event()

    @contextmanager
    def loading(self) -> Iterator[None]:
        """While it is open, models of a view load; its replicas are worth waiting for afterwards."""
        self._num_loading += 1
        try:
            yield
        finally:
            self._num_loading -= 1
            self.renew()

    async def wait_for(self, is_there: Callable[[], bool]) -> None:
        """Returns once `is_there` holds, or once there is no reason to wait any more."""
        give_up = asyncio.get_running_loop().time() + self._longest_s
        if self._num_waiting >= MAX_WAITING:
            return
        self._num_waiting += 1
        try:
            while not is_there():
                deadline = give_up if self._num_loading else min(give_up, self._until)
                if asyncio.get_running_loop().time() >= deadline:
                    return
                await self._next_change(deadline)
        finally:
            self._num_waiting -= 1

    async def _next_change(self, deadline: float) -> None:
        changed = self._changed
        try:
            async with asyncio.timeout_at(deadline):
                await changed.wait()
        except TimeoutError:
            pass  # The caller looks at the clock.
