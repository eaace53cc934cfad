"""One lineage trained by several processes of a node: data-parallel, with equal weights in all of them.

The process that asks is rank 0. It starts the others (`potluck.lm.parallel_rank`) and hands every batch
to each. A rank takes the gradients of its own equal share of the rows; their average over the ranks is
made by torch's process group: gloo on the loopback interface, nccl between CUDA devices, one a rank.
Clip and update are then the same arithmetic on the same numbers, so the weights need no exchange.

A rank ends when its input closes. One that ends before takes the others with it: rank 0 says which.
"""

from __future__ import annotations

import contextlib
import importlib
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from potluck.config import to_mapping
from potluck.errors import ResourceError
from potluck.ids import canonical_json
from potluck.lm.learners import Peers
from potluck.lm.train import Trainer
from potluck.recipe import Profile, Recipe, require_shares

RANK_MODULE = "potluck.lm.parallel_rank"
READY = b"ready\n"
JOIN_TIMEOUT = timedelta(minutes=1)
"""All ranks have loaded torch by then."""
STEP_TIMEOUT = timedelta(minutes=10)
"""How far behind a rank may be, compiling included. Gloo notices at once a rank that ends, nccl only then."""
END_SECONDS = 5.0
"""For a rank to be gone once its input or a connection has closed."""
BUCKET_BYTES = 25 << 20
"""Gradients averaged at once: bounds the copy that is made of them (DDP's size, 2006.15704)."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """The files of a checkpoint to continue from."""

    step: int
    weights: Path
    optimizer: Path | None
    """None: a fresh one, as some origins ask for."""


@contextlib.contextmanager
def open_trainer(recipe: Recipe, profile: Profile, head: Head | None = None) -> Iterator[Trainer]:
    """The trainer of a lineage at its head, or at its start; with it `profile.processes` - 1 other ranks live and end.

    Raises:
        SpecError: ``spec.bad-value``, the processes do not divide the batch.
        DataError: the head's files do not belong to the recipe.
        ResourceError: ``resource.device``, there is no device for each rank; ``resource.rank-died``, here or in
            any later step.
    """
    if profile.processes == 1:
        yield trainer_at(recipe, profile, head)
        return
    require_shares(recipe.batch_size, profile)
    _require_devices(profile)
    with tempfile.TemporaryDirectory(prefix="potluck-ranks-") as folder:
        store = Path(folder) / "store"
        ranks = _Ranks([order(recipe, profile, head, rank=rank, store=store) for rank in range(1, profile.processes)])
        try:
            with ranks.explained():
                ranks.wait_until_ready()
                group = join(profile, rank=0, store=store)
            yield trainer_at(recipe, profile, head, _Leader(ranks, Share(0, profile.processes, group)))
        finally:
            ranks.close()


def trainer_at(recipe: Recipe, profile: Profile, head: Head | None, peers: Peers | None = None) -> Trainer:
    """A trainer in this process, alone or with peers."""
    if head is None:
        return Trainer(recipe, profile, peers)
    return Trainer.load(recipe, profile, step=head.step, weights=head.weights, optimizer=head.optimizer, peers=peers)


def order(recipe: Recipe, profile: Profile, head: Head | None, *, rank: int, store: Path) -> str:
    """The line of JSON that a rank reads first."""
    state = head and {
        "step": head.step,
        "weights": str(head.weights),
        "optimizer": head.optimizer and str(head.optimizer),
    }
    told = {"recipe": recipe.to_json(), "profile": to_mapping(profile), "head": state, "rank": rank}
    return canonical_json({**told, "store": str(store)}) + "\n"


def join(profile: Profile, *, rank: int, store: Path) -> Any:
    """The process group of all ranks; returns once each has come.

    Args:
        store: a file that all ranks can reach and that does not exist before.
    """
    dist: Any = importlib.import_module("torch.distributed")  # Its stubs lack half of what is used here.
    meeting = dist.FileStore(str(store), profile.processes)
    meeting.set_timeout(JOIN_TIMEOUT)
    if profile.device == "cuda":
        torch.cuda.set_device(rank)
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = STEP_TIMEOUT
        return dist.ProcessGroupNCCL(meeting, rank, profile.processes, options)
    options = dist.ProcessGroupGloo._Options()
    options._devices = [dist.ProcessGroupGloo.create_device(hostname="127.0.0.1")]
    options._timeout = STEP_TIMEOUT
    return dist.ProcessGroupGloo(meeting, rank, profile.processes, options)


class Share:
    """A rank's part in every step (a `Peers`)."""

    def __init__(self, rank: int, processes: int, group: Any) -> None:
        self._rank = rank
        self._processes = processes
        self._group = group

    def share(self, rows: np.ndarray, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
        size = len(rows) // self._processes
        mine = slice(self._rank * size, (self._rank + 1) * size)
        return rows[mine], None if weights is None else weights[mine]

    def average(self, parameters: Iterable[nn.Parameter], loss: Tensor) -> Tensor:
        mean_loss = loss.clone()
        gradients = [p.grad for p in parameters if p.grad is not None]
        for bucket in _buckets([*gradients, mean_loss]):
            flat = torch.cat([tensor.flatten() for tensor in bucket])
            self._group.allreduce([flat]).wait()
            flat.div_(self._processes)
            for tensor, mean in zip(bucket, flat.split_with_sizes([t.numel() for t in bucket]), strict=True):
                tensor.copy_(mean.view_as(tensor))
        return mean_loss


class _Leader:
    """Rank 0's part: it hands out the batches, and says which rank's end broke a step."""

    def __init__(self, ranks: _Ranks, own: Share) -> None:
        self._ranks = ranks
        self._own = own

    def share(self, rows: np.ndarray, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
        with self._ranks.explained():
            self._ranks.hand_out(rows, weights)
        return self._own.share(rows, weights)

    def average(self, parameters: Iterable[nn.Parameter], loss: Tensor) -> Tensor:
        with self._ranks.explained():
            return self._own.average(parameters, loss)


class _Ranks:
    """The other ranks' processes. They live in this one's process group, so that what ends it ends them."""

    def __init__(self, orders: Sequence[str]) -> None:
        command = [sys.executable, "-m", RANK_MODULE]
        self._ended: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._watches: list[threading.Thread] = []
        for rank, words in enumerate(orders, 1):
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            watch = threading.Thread(target=self._watch, args=(rank, process), name=f"rank {rank}", daemon=True)
            self._processes.append(process)
            self._watches.append(watch)
            watch.start()
            with contextlib.suppress(BrokenPipeError):  # Its end is noticed when it should be ready.
                _write(process, words.encode())

    def wait_until_ready(self) -> None:
        """Raises: EOFError, a rank ended instead."""
        for process in self._processes:
            assert process.stdout is not None
            if process.stdout.readline() != READY:
                raise EOFError

    def hand_out(self, rows: np.ndarray, weights: np.ndarray | None) -> None:
        batch = encode_batch(rows, weights)
        for process in self._processes:
            _write(process, batch)

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Turns a broken pipe or connection into the end of the rank that caused it, if one has ended.

        Raises:
            ResourceError: ``resource.rank-died``.
        """
        try:
            yield
        except (RuntimeError, OSError, EOFError) as error:
            try:
                rank = self._ended.get(timeout=END_SECONDS)
            except queue.Empty:
                raise error from None
            raise self._died(rank) from error

    def close(self) -> None:
        """Ends all of them, and waits until they are gone."""
        for process in self._processes:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        for process, watch in zip(self._processes, self._watches, strict=True):
            watch.join(END_SECONDS)
            process.kill()
            watch.join()
            assert process.stdout is not None
            process.stdout.close()

    def _watch(self, rank: int, process: subprocess.Popen[bytes]) -> None:
        process.wait()
        self._ended.put(rank)

    def _died(self, rank: int) -> ResourceError:
        process = self._processes[rank - 1]
        assert process.stdout is not None
        code, said = process.returncode, process.stdout.read().decode(errors="replace").strip()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        fix = "see the node's log; for want of memory lower profile.processes, batch_size or the model preset"
        what = f"rank {rank} of {len(self._processes) + 1} {how}{': ' if said else ''}{said}"
        return ResourceError("resource.rank-died", what, fix)


def encode_batch(rows: np.ndarray, weights: np.ndarray | None) -> bytes:
    """A byte that says whether there are weights, the rows as uint16, the weights as float32."""
    told = b"" if weights is None else weights.astype(np.float32).tobytes()
    return bytes([weights is not None]) + rows.astype(np.uint16).tobytes() + told


def _write(process: subprocess.Popen[bytes], data: bytes) -> None:
    assert process.stdin is not None
    process.stdin.write(data)
    process.stdin.flush()


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of one type, at most `BUCKET_BYTES` together or one alone."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        size = sum(t.nbytes for t in bucket) + tensor.nbytes
        if bucket and (size > BUCKET_BYTES or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(tensor)
    yield bucket


def _require_devices(profile: Profile) -> None:
    if profile.device == "cuda" and torch.cuda.device_count() < profile.processes:
        what = f"profile.processes = {profile.processes}, but this node has {torch.cuda.device_count()} cuda device(s)"
        raise ResourceError("resource.device", what, "lower profile.processes, or add a node that has the devices")
