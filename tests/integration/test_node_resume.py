"""What an interrupted training owes: the chain of an unbroken one, and few steps done twice."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from potluck.ids import Digest
from potluck.net.blobs.store import BlobStore
from potluck.recipe import AdamWConfig, AdEMAMixConfig, OptimizerConfig, Recipe
from tests.integration.test_node_leases import MODEL, put_tokens, recipe, two_segments
from tests.integration.worker_process import Lineage, WorkerProcess

STEPS = 72
RECIPE = recipe(total_steps=STEPS, commit_every=10)
SLOW_AVERAGE = AdEMAMixConfig(beta3=0.92, slow_dtype="bfloat16", from_fraction=0.25, until_fraction=0.75)
"""It is taken up and retires on the way."""
MIB = 1 << 20


@pytest.fixture
def lineages(tmp_path: Path) -> Lineages:
    return Lineages(tmp_path)


class Lineages:
    """Lineages over one set of tokens, each with folders of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        store = BlobStore(folder / "store")
        tokens = put_tokens(store, folder, 2 * STEPS)
        manifest = json.loads(store.path(tokens).read_text())
        self._blobs = {digest: store.path(Digest(digest)) for digest in (tokens, *manifest["blobs"].values())}
        self._segments = two_segments(tokens, 36, STEPS - 36)
        self.log = folder / "log"

    def new(self, name: str, what: Recipe = RECIPE) -> Lineage:
        return Lineage(self._folder / name, what, self._segments, self._blobs)

    def worker(self, **environment: str) -> WorkerProcess:
        return WorkerProcess(self.log, **environment)

    def killed(self, lineage: Lineage, at_pass: int) -> None:
        """Has a worker train that is killed before its step number `at_pass`, and loses what it had in memory."""
        with self.worker(POTLUCK_CRASH_AT=f"worker.mid-step:{at_pass}") as worker:
            assert lineage.train(worker) == "killed"

    def unbroken(self, what: Recipe = RECIPE) -> list[tuple[object, ...]]:
        lineage = self.new("unbroken", what)
        with self.worker() as worker:
            assert lineage.train(worker, local_every_ms=1 << 40) == "done"
        return lineage.chain()

    def facts(self, event: str) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if f" {event} " in line]


@pytest.mark.parametrize("optimizer", [AdamWConfig(), SLOW_AVERAGE], ids=lambda config: config.name)
def test_a_worker_killed_at_ten_random_steps_resumes_to_the_chain_of_one_that_never_was(
    optimizer: OptimizerConfig, lineages: Lineages
) -> None:
    """Weights, optimizer state, schedule, data position and figures, digest by digest, at every commit."""
    what = replace(RECIPE, optimizer=optimizer)
    rng = random.Random(7)
    lineage = lineages.new("broken", what)
    for _ in range(10):
        lineages.killed(lineage, at_pass=rng.randint(4, 8))
    with lineages.worker() as worker:
        assert lineage.train(worker) == "done"
    assert lineage.chain() == lineages.unbroken(what)
    assert len(lineages.facts("resumed-locally")) >= 5
    assert not list(lineage.local.iterdir())


def saved(lineage: Lineage) -> list[Path]:
    """Its local checkpoints, oldest first."""
    (folder,) = (path for path in lineage.local.iterdir() if len(path.name) == 64)
    return sorted(folder.iterdir())


def test_a_killed_worker_resumes_from_the_local_checkpoint_before_a_damaged_one(lineages: Lineages) -> None:
    lineage = lineages.new("damaged")
    lineages.killed(lineage, at_pass=8)
    older, newer = saved(lineage)
    weights = newer / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    with lineages.worker() as worker:
        assert lineage.train(worker) == "done"
    (skipped,) = lineages.facts("local-checkpoint-skipped")
    assert f"checkpoint={newer.name}" in skipped
    (resumed,) = lineages.facts("resumed-locally")
    assert resumed.endswith(f" step={int(older.name.partition('-')[0])}")


def test_a_worker_without_memory_says_so_names_the_setting_and_works_on(lineages: Lineages) -> None:
    wide = replace(RECIPE, model=replace(MODEL, vocab=64, hidden=2048, heads=8, ffn=8192))
    with lineages.worker() as worker:
        process = psutil.Process(worker.popen.pid)
        process.rlimit(psutil.RLIMIT_AS, (process.memory_info().vms + 200 * MIB,) * 2)
        ended = lineages.new("wide", wide).train(worker)
        assert ended.startswith("failed: resource.out-of-memory: the worker ran out of memory")
        first, second = ended.index("memory_mib"), ended.index("micro_batch")
        assert first < second < ended.index("batch_size, text.sequence_length")
        assert lineages.new("small").train(worker) == "done"
