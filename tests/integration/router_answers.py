"""What tests of a router's answers share."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import torch

from potluck.client import Generated


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        torch.set_num_threads(1)
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), 60))

    return run


async def collect(pieces: AsyncIterator[Generated], ids: list[int]) -> None:
    async for piece in pieces:
        ids += piece.ids


async def pieces_of(stream: AsyncIterator[Generated]) -> list[Generated]:
    return [piece async for piece in stream]
