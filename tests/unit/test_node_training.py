"""A train lease inside the worker, without its pipes: what is kept, handed over and resumed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from expert_node.training import train
from expert_node.worker import GivenBlobs, StopRequested
from potluck.clock import Clock, ManualClock
from potluck.config import to_mapping
from potluck.ids import NO_DIGEST, Digest, canonical_json, digest_file
from potluck.lm.config import ModelConfig
from potluck.lm.local_checkpoints import MANIFEST_FILE
from potluck.recipe import AdamWConfig, Profile, Recipe, Schedule, Segment, Stream

COLUMNS, STEPS, ROWS = 9, 24, 64
RECIPE = Recipe(
    role="expert",
    index=0,
    model=ModelConfig(vocab=64, hidden=16, layers=1, heads=2, ffn=24, context=COLUMNS),
    optimizer=AdamWConfig(),
    schedule=Schedule(kind="cosine", learning_rate=1e-3, warmup_steps=1, total_steps=STEPS),
    batch_size=2,
    columns=COLUMNS,
    init_seed=3,
    data_rule="{}",
    commit_every=10,
)
GRID = [(0, 10), (10, 12), (12, 20), (20, 24)]


class Tape:
    """The node's side of a lease: keeps what it is told, and may want the work to end before a step."""

    def __init__(self, stop_at_look: int = 0) -> None:
        self.commits: list[dict[str, Any]] = []
        self.tokens_total = 0
        self.parent_pid = 0
        self._stop_at_look = stop_at_look
        self._looks = 0

    def look(self) -> None:
        self._looks += 1
        if self._looks == self._stop_at_look:
            raise StopRequested

    def progress_due(self) -> bool:
        return True

    def progress(self, **fields: object) -> None:
        assert fields["step"]

    def checkpoint(self, limit: int, **fields: Any) -> None:
        assert limit > 1
        self.commits.append(fields)


class Lease:
    """One lineage on one node: its blobs, its commits, and folders that outlive an interruption."""

    def __init__(self, folder: Path, recipe: Recipe = RECIPE) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.local = folder / "local"
        self.recipe = recipe
        self.commits: list[dict[str, Any]] = []
        self._blobs: dict[str, str] = {}
        tokens = self._put_tokens()
        self.segments = [
            Segment(index=0, start_step=0, end_step=12, data=Stream(tokens=tokens, key=1, start=0)),
            Segment(index=1, start_step=12, end_step=STEPS, data=Stream(tokens=tokens, key=1, start=24)),
        ]

    def train(
        self,
        *,
        stop_before: int = 0,
        clock: Clock | None = None,
        local_every_ms: int = 0,
        profile: Profile | None = None,
        target: int = STEPS,
    ) -> int:
        """Trains from the last commit, until before its step number `stop_before`; the number of steps it did."""
        head = self.commits[-1] if self.commits else {"end_step": 0, "child": NO_DIGEST, "weights": "", "optimizer": ""}
        tape = Tape(stop_before)
        command = {
            "out": str(self.folder / f"out-{len(self.commits)}"),
            "local": str(self.local),
            "local_every_ms": local_every_ms,
            "recipe_json": self.recipe.to_json(),
            "segments_json": f"[{','.join(segment.to_json() for segment in self.segments)}]",
            "profile_json": canonical_json(to_mapping(profile or Profile())),
            "head_step": head["end_step"],
            "head": head["child"],
            "weights": head["weights"],
            "optimizer": head["optimizer"],
            "target_step": target,
        }
        try:
            train(command, GivenBlobs(self._blobs), tape, clock or ManualClock())
            assert not stop_before
        except StopRequested:
            assert stop_before
        finally:
            for commit in tape.commits:
                self._take(commit)
        return tape.tokens_total // (self.recipe.batch_size * (COLUMNS - 1))

    def chain(self) -> list[tuple[object, ...]]:
        names = ("start_step", "end_step", "parent", "child", "weights", "optimizer", "figures_json")
        return [tuple(commit[name] for name in names) for commit in self.commits]

    def saved_steps(self) -> list[int]:
        return [int(path.name.partition("-")[0]) for path in self.saved()]

    def saved(self) -> list[Path]:
        """Its local checkpoints, oldest first."""
        return sorted(self.local.glob("*/0*"))

    def _take(self, commit: dict[str, Any]) -> None:
        for digest, name in commit["files"]:
            path = Path(commit["folder"]) / name
            assert digest_file(path) == digest
            self._blobs[digest] = str(path)
        self.commits.append(commit)

    def _put_tokens(self) -> Digest:
        arrays = {
            "rows": np.random.default_rng(7).integers(1, 64, size=(ROWS, COLUMNS), dtype=np.uint16),
            "meta": np.tile(np.array([0, -1, COLUMNS - 1], dtype=np.int32), (ROWS, 1)),
        }
        part: dict[str, Any] = {"count": ROWS, "pack_offset": 0}
        for name, array in arrays.items():
            np.save(self.folder / f"{name}.npy", array, allow_pickle=False)
            part[name] = self._put(self.folder / f"{name}.npy")
        empty: dict[str, Any] = {"rows": 0, "parts": []}
        splits = {"train": {"rows": ROWS, "parts": [part]}, "valid": empty, "test": empty}
        manifest = {"kind": "tokens", "version": 1, "sequence_length": COLUMNS - 1, "vocab_size": 64}
        manifest |= {"tokenizer": NO_DIGEST, "sources": ["all"], "splits": splits, "blobs": {}}
        (self.folder / "tokens.json").write_text(canonical_json(manifest))
        return self._put(self.folder / "tokens.json")

    def _put(self, path: Path) -> Digest:
        digest = digest_file(path)
        self._blobs[digest] = str(path)
        return digest


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[object, ...]]:
    lease = Lease(tmp_path_factory.mktemp("unbroken"))
    assert lease.train(local_every_ms=1) == STEPS
    return lease.chain()


def test_commits_tile_the_steps_on_the_grid_along_one_chain(unbroken: list[tuple[object, ...]]) -> None:
    assert [commit[:2] for commit in unbroken] == GRID
    assert [commit[2] for commit in unbroken] == [NO_DIGEST, *(commit[3] for commit in unbroken[:-1])]
    assert all(one[3] == two[2] for one, two in pairwise(unbroken))


@pytest.mark.parametrize("stop_before", [2, 7, 10, 11, 12, 13, 20])
def test_resume_after_a_stop_anywhere_gives_the_chain_and_the_figures_of_an_unbroken_run(
    stop_before: int, tmp_path: Path, unbroken: list[tuple[object, ...]]
) -> None:
    lease = Lease(tmp_path)
    done = lease.train(stop_before=stop_before)
    assert done == stop_before - 1
    assert lease.train() == STEPS - done
    assert lease.chain() == unbroken
    assert not list(lease.local.iterdir())


def test_the_clock_decides_which_steps_resume_spares_and_no_bit(
    tmp_path: Path, unbroken: list[tuple[object, ...]]
) -> None:
    lease = Lease(tmp_path)
    assert lease.train(stop_before=10, clock=ManualClock(), local_every_ms=20_000) == 9
    assert not lease.saved()
    assert lease.train() == STEPS
    assert lease.chain() == unbroken


def test_two_local_checkpoints_are_kept_to_resume_from(tmp_path: Path) -> None:
    lease = Lease(tmp_path)
    lease.train(stop_before=9)
    assert lease.saved_steps() == [7, 8]
    lease.train(stop_before=4)
    assert lease.saved_steps() == [9, 11]


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def alter(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [tear, alter, Path.unlink])
@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", MANIFEST_FILE])
def test_resume_passes_over_a_damaged_local_checkpoint_says_why_and_takes_the_one_before(
    damage: Callable[[Path], None],
    name: str,
    tmp_path: Path,
    unbroken: list[tuple[object, ...]],
    capfd: pytest.CaptureFixture[str],
) -> None:
    lease = Lease(tmp_path)
    lease.train(stop_before=9)
    older, newer = lease.saved()
    damage(newer / name)
    assert lease.train() == STEPS - 7
    facts = capfd.readouterr().err.splitlines()
    (skipped,) = (line for line in facts if "local-checkpoint-skipped" in line)
    assert f"checkpoint={newer.name}" in skipped
    assert name in skipped
    assert any(f"resumed-locally lineage={RECIPE.id} head_step=0 step=7" in line for line in facts)
    assert lease.chain() == unbroken
    assert older.name.startswith("000000007-")


def test_resume_with_no_good_local_checkpoint_starts_from_the_head(
    tmp_path: Path, unbroken: list[tuple[object, ...]]
) -> None:
    lease = Lease(tmp_path)
    lease.train(stop_before=18)
    assert lease.commits[-1]["end_step"] == 12
    for path in lease.saved():
        alter(path / "weights.safetensors")
    assert lease.train() == STEPS - 12
    assert lease.chain() == unbroken


def test_resume_leaves_alone_what_is_not_on_top_of_the_leases_head(tmp_path: Path) -> None:
    """Another node has committed meanwhile, and its commit stands."""
    mine, other = Lease(tmp_path / "mine"), Lease(tmp_path / "other")
    mine.train(stop_before=9)
    other.train(stop_before=11)
    mine.commits = other.commits
    mine._blobs |= other._blobs
    assert mine.train(stop_before=2) == 1
    assert mine.saved_steps() == [11]


@pytest.mark.parametrize("profile", [Profile(micro_batch=1), Profile(activation_checkpointing=True)])
def test_resume_under_another_profile_starts_from_the_head(profile: Profile, tmp_path: Path) -> None:
    lease = Lease(tmp_path)
    lease.train(stop_before=9)
    assert lease.train(profile=profile) == STEPS


def test_resume_of_other_segments_starts_from_the_head(tmp_path: Path) -> None:
    lease = Lease(tmp_path)
    lease.train(stop_before=9)
    data = lease.segments[0].data
    assert isinstance(data, Stream)
    lease.segments[0] = replace(lease.segments[0], data=replace(data, start=2))
    assert lease.train() == STEPS


def test_resume_to_a_target_that_lies_before_what_was_kept_starts_where_it_can(tmp_path: Path) -> None:
    lease = Lease(tmp_path)
    lease.train(stop_before=20)
    assert lease.saved_steps() == [18, 19]
    lease.commits.clear()
    assert lease.train(target=12) == 12


def test_a_node_keeps_what_one_lineage_may_resume_from(tmp_path: Path) -> None:
    for seed in (4, 5):
        lease = Lease(tmp_path, replace(RECIPE, init_seed=seed))
        lease.train(stop_before=9)
        assert [path.name for path in lease.local.iterdir()] == [lease.recipe.id]


@pytest.mark.parametrize("place", ["out-0", "local"])
def test_a_checkpoint_that_cannot_be_written_ends_the_work(place: str, tmp_path: Path) -> None:
    lease = Lease(tmp_path)
    (tmp_path / place).touch()
    with pytest.raises(NotADirectoryError):
        lease.train(local_every_ms=0 if place == "local" else 1 << 40)
    assert not lease.commits


def test_figures_of_a_resumed_interval_count_every_step_once(unbroken: list[tuple[object, ...]]) -> None:
    for start, end, *_, figures in unbroken:
        assert isinstance(figures, str)
        assert isinstance(start, int)
        assert isinstance(end, int)
        assert [step for step, _ in json.loads(figures)["loss_curve"]] == list(range(start, end))
