"""A worker whose profile has two processes: real frames, a real second rank."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from expert_node.frames import Message, encode, read_frame
from potluck.config import to_mapping
from potluck.ids import NO_DIGEST, Digest, canonical_json, digest_file
from potluck.lm.checkpoint import CheckpointManifest
from potluck.lm.config import ModelConfig
from potluck.recipe import AdamWConfig, Profile, Recipe, Schedule, Segment, Stream

PROFILE = Profile(processes=2)
MODEL = ModelConfig(vocab=64, hidden=16, layers=1, heads=2, ffn=24, context=9)
GONE_S = 10.0
HOUR_MS = 3_600_000


class Worker:
    """One end of the frames of `python -m expert_node.worker`."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        self.process = process
        self._folder = folder
        self._rows = _rows(folder)

    def train(self, fence: int, steps: int) -> None:
        manifest, blobs = self._rows
        recipe = Recipe(
            role="expert",
            index=0,
            model=MODEL,
            optimizer=AdamWConfig(),
            schedule=Schedule(kind="constant", learning_rate=1e-3, warmup_steps=1, total_steps=steps),
            batch_size=4,
            columns=MODEL.context,
            init_seed=3,
            data_rule="{}",
            commit_every=steps,
        )
        segment = Segment(index=0, start_step=0, end_step=steps, data=Stream(tokens=manifest, key=1, start=0))
        self._send(
            type="train",
            fence=fence,
            out=str(self._folder / str(fence)),
            local=str(self._folder / "local"),
            local_every_ms=HOUR_MS,
            blobs={digest: str(path) for digest, path in blobs.items()},
            recipe_json=recipe.to_json(),
            segments_json=f"[{segment.to_json()}]",
            profile_json=canonical_json(to_mapping(PROFILE)),
            head_step=0,
            head="",
            weights="",
            optimizer="",
            target_step=steps,
        )

    def until(self, kind: str) -> Message:
        """The next frame of a kind, or of one that ends the work."""
        assert self.process.stdout is not None
        while (message := read_frame(self.process.stdout)) is not None:
            if message["type"] in (kind, "failed", "done"):
                return message
        raise AssertionError(f"the worker ended before it said {kind}")

    def ranks(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def _send(self, **message: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(encode(message))
        self.process.stdin.flush()


@contextmanager
def worker(folder: Path) -> Iterator[Worker]:
    command = [sys.executable, "-m", "expert_node.worker", str(os.getpid()), canonical_json(to_mapping(PROFILE))]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, start_new_session=True, **pipes) as process:
        yield Worker(process, folder)


def _rows(folder: Path) -> tuple[Digest, dict[Digest, Path]]:
    """A tokens manifest over one shard of random rows of 9 tokens; its digest, and all blobs by digest."""
    count = 200_000
    arrays = {
        "rows": np.random.default_rng(7).integers(1, MODEL.vocab, size=(count, MODEL.context), dtype=np.uint16),
        "meta": np.tile(np.array([0, -1, MODEL.context - 1], dtype=np.int32), (count, 1)),
    }
    blobs: dict[Digest, Path] = {}
    part: dict[str, Any] = {"count": count, "pack_offset": 0}
    for name, array in arrays.items():
        path = folder / f"{name}.npy"
        np.save(path, array, allow_pickle=False)
        part[name] = digest_file(path)
        blobs[part[name]] = path
    empty: dict[str, Any] = {"rows": 0, "parts": []}
    splits = {"train": {"rows": count, "parts": [part]}, "valid": empty, "test": empty}
    head = {"kind": "tokens", "version": 1, "sequence_length": MODEL.context - 1, "vocab_size": MODEL.vocab}
    path = folder / "manifest.json"
    path.write_text(canonical_json({**head, "tokenizer": NO_DIGEST, "sources": ["all"], "splits": splits}))
    blobs[digest_file(path)] = path
    return digest_file(path), blobs


def test_a_lease_of_two_processes_is_trained_to_its_target_and_ends_its_second_rank(tmp_path: Path) -> None:
    with worker(tmp_path) as one:
        one.train(1, steps=6)
        checkpoint = one.until("checkpoint")
        manifest = CheckpointManifest.from_json((Path(checkpoint["folder"]) / "checkpoint.json").read_text())
        assert (checkpoint["end_step"], manifest.profile) == (6, PROFILE)
        assert json.loads(checkpoint["figures_json"])["tokens"] == 6 * 4 * (MODEL.context - 1)
        assert one.until("done")["type"] == "done"
        assert one.ranks() == []


def test_a_killed_rank_fails_its_lease_by_name_and_a_closed_input_ends_all_ranks(tmp_path: Path) -> None:
    with worker(tmp_path) as one:
        one.train(1, steps=50_000)
        assert one.until("progress")["type"] == "progress"
        (rank,) = one.ranks()
        rank.kill()
        failed = one.until("failed")
        assert (failed["fence"], failed["error_id"]) == (1, "resource.rank-died")
        assert "rank 1 of 2 was killed by signal 9" in failed["message"]
        assert one.ranks() == []
        one.train(2, steps=50_000)
        assert one.until("progress")["fence"] == 2
        (rank,) = one.ranks()
    _, alive = psutil.wait_procs([rank], timeout=GONE_S)
    assert not alive
