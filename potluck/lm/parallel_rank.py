"""One rank besides the first of a lineage that several processes train; `potluck.lm.parallel` starts it.

    python -m potluck.lm.parallel_rank

Its input is a line of JSON (`parallel.order`), then batches (`parallel.encode_batch`); at its end the rank
ends, whatever it is doing. Its output is `ready`, later perhaps why it failed.
"""

from __future__ import annotations

import json
import os
import queue
import threading
import traceback
from pathlib import Path
from typing import IO, Any

import numpy as np

from potluck.config import from_mapping
from potluck.recipe import Profile, Recipe

MAX_WAITING = 2
"""Batches read ahead; rank 0 is never further ahead than that."""

Batch = tuple[np.ndarray, np.ndarray | None]


class Batches:
    """The input after its first line. A thread reads it, so that its end is seen in the middle of a step."""

    def __init__(self, stream: IO[bytes], shape: tuple[int, int]) -> None:
        self._stream = stream
        self._shape = shape
        self._waiting: queue.Queue[Batch] = queue.Queue(MAX_WAITING)
        threading.Thread(target=self._read, name="stdin", daemon=True).start()

    def next(self) -> Batch:
        return self._waiting.get()

    def _read(self) -> None:
        try:
            while True:
                weighted = self._exactly(1) != b"\0"
                rows = np.frombuffer(self._exactly(2 * self._shape[0] * self._shape[1]), np.uint16).reshape(self._shape)
                weights = np.frombuffer(self._exactly(4 * self._shape[0]), np.float32) if weighted else None
                self._waiting.put((rows, weights))
        except EOFError:
            pass  # Rank 0 closed it, or is gone.
        finally:
            os._exit(0)

    def _exactly(self, size: int) -> bytes:
        data = self._stream.read(size)
        if len(data) < size:
            raise EOFError
        return data


def main() -> None:
    # Prints of libraries must not reach rank 0 as words of ours: the pipe keeps a number of its own.
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    stream = os.fdopen(0, "rb")
    line = stream.readline()
    if not line:
        return
    order = json.loads(line)
    recipe = Recipe.from_json(order["recipe"])
    batches = Batches(stream, (recipe.batch_size, recipe.columns))
    try:
        train(recipe, order, batches, out)
    except Exception as error:  # The boundary of the process: rank 0 reports it.
        traceback.print_exc()
        out.write(f"{type(error).__name__}: {error}".encode())
    finally:
        os._exit(1)  # The thread that reads may hold what an orderly end waits for.


def train(recipe: Recipe, order: dict[str, Any], batches: Batches, out: IO[bytes]) -> None:
    """Takes part in step after step; ends with the process."""
    from potluck.lm.parallel import READY, Head, Share, join, trainer_at

    profile, state = from_mapping(Profile, order["profile"]), order["head"]
    optimizer = state and state["optimizer"] and Path(state["optimizer"])
    head = state and Head(step=state["step"], weights=Path(state["weights"]), optimizer=optimizer)
    out.write(READY)
    group = join(profile, rank=order["rank"], store=Path(order["store"]))
    trainer = trainer_at(recipe, profile, head, Share(order["rank"], profile.processes, group))
    while True:
        trainer.train_step(*batches.next())


if __name__ == "__main__":
    main()
