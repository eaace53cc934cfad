"""Several processes that train one lineage on one node: real ranks over gloo on the loopback interface."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from potluck.errors import ResourceError, SpecError
from potluck.lm.config import ModelConfig
from potluck.lm.parallel import RANK_MODULE, READY, Head, open_trainer, order
from potluck.lm.train import Trainer
from potluck.recipe import AdamWConfig, Profile, Recipe, Schedule, require_shares

RECIPE = Recipe(
    role="expert",
    index=0,
    model=ModelConfig(vocab=300, hidden=24, layers=2, heads=2, ffn=64, context=33),
    optimizer=AdamWConfig(),
    schedule=Schedule(kind="cosine", learning_rate=3e-3, warmup_steps=2, total_steps=40),
    batch_size=6,
    columns=33,
    init_seed=7,
    data_rule="{}",
    commit_every=4,
)
TWO = Profile(processes=2)
GONE_S = 10.0

PARENT = """
import sys
from potluck.lm.parallel import open_trainer
from potluck.recipe import Profile, Recipe
with open_trainer(Recipe.from_json(sys.argv[1]), Profile(processes=2)):
    print("up", flush=True)
    sys.stdin.read()
"""


def rows_of(step: int) -> np.ndarray:
    return np.random.default_rng(step).integers(0, 300, (6, 33)).astype(np.uint16)


def train(trainer: Trainer, steps: range) -> list[float]:
    return [trainer.train_step(rows_of(step)).loss for step in steps]


def test_two_processes_train_as_one_does_and_twice_to_the_same_bits(tmp_path: Path) -> None:
    alone = Trainer(RECIPE, Profile())
    wanted = train(alone, range(20))
    digests = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        with open_trainer(RECIPE, TWO) as trainer:
            found = train(trainer, range(20))
            files = trainer.save(tmp_path / name)
        assert found == pytest.approx(wanted, rel=1e-5)
        for one, other in zip(trainer.model.parameters(), alone.model.parameters(), strict=True):
            assert torch.allclose(one, other, rtol=0, atol=1e-5)
        digests.append((files.weights_digest, files.optimizer_digest))
    assert digests[0] == digests[1]
    assert not psutil.Process().children()


def test_a_continued_run_of_two_processes_is_bit_equal_to_one_that_never_stopped(tmp_path: Path) -> None:
    for name in ("half", "straight", "resumed"):
        (tmp_path / name).mkdir()
    with open_trainer(RECIPE, TWO) as trainer:
        train(trainer, range(3))
        half = trainer.save(tmp_path / "half")
        train(trainer, range(3, 6))
        straight = trainer.save(tmp_path / "straight")
    with open_trainer(RECIPE, TWO, Head(step=3, weights=half.weights, optimizer=half.optimizer)) as trainer:
        train(trainer, range(3, 6))
        resumed = trainer.save(tmp_path / "resumed")
    assert (resumed.weights_digest, resumed.optimizer_digest) == (straight.weights_digest, straight.optimizer_digest)


def test_three_processes_honour_the_weights_of_rows_and_micro_batches() -> None:
    weights = np.array([0.5, 2.0, 0.0, 1.0, 3.0, 0.25], dtype=np.float32)
    wanted = Trainer(RECIPE, Profile()).train_step(rows_of(0), weights)
    with open_trainer(RECIPE, Profile(processes=3, micro_batch=1)) as trainer:
        found = trainer.train_step(rows_of(0), weights)
    assert found.loss == pytest.approx(wanted.loss, rel=1e-5)
    assert found.grad_norm == pytest.approx(wanted.grad_norm, rel=1e-4)


def test_a_killed_rank_is_reported_and_leaves_no_process() -> None:
    with open_trainer(RECIPE, Profile(processes=3)) as trainer:
        train(trainer, range(2))
        first, second = sorted(psutil.Process().children(), key=lambda p: p.pid)
        first.kill()
        with pytest.raises(ResourceError, match="rank 1 of 3 was killed by signal 9") as caught:
            train(trainer, range(2, 4))
    assert caught.value.error_id == "resource.rank-died"
    assert not first.is_running()
    assert not second.is_running()


def test_a_rank_that_fails_says_why(tmp_path: Path) -> None:
    head = Head(step=1, weights=tmp_path / "lost.safetensors", optimizer=tmp_path / "lost.safetensors")
    command = [sys.executable, "-m", RANK_MODULE]
    ranks = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        for _ in range(2)
    ]
    for index, rank in enumerate(ranks):
        assert rank.stdin is not None
        rank.stdin.write(order(RECIPE, TWO, head, rank=index, store=tmp_path / "store").encode())
        rank.stdin.flush()
    for rank in ranks:
        with rank:
            assert rank.stdout is not None
            ready, why = rank.stdout.read().splitlines(keepends=True)
            assert ready == READY
            assert b"FileNotFoundError" in why
            assert b"lost.safetensors" in why
        assert rank.returncode == 1


def test_ranks_end_when_the_process_that_started_them_is_killed() -> None:
    command = [sys.executable, "-c", PARENT, RECIPE.to_json()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "up\n"
        ranks = psutil.Process(parent.pid).children()
        assert len(ranks) == 1
        os.kill(parent.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(ranks, timeout=GONE_S)
    assert not alive


def test_ranks_listen_on_the_loopback_interface_only() -> None:
    with open_trainer(RECIPE, TWO):
        processes = [psutil.Process(), *psutil.Process().children()]
        places = {c.laddr.ip for p in processes for c in p.net_connections("inet")}
    assert places <= {"127.0.0.1"}


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        (Profile(processes=4), r"profile\.processes = 4 with a batch of 6 rows"),
        (Profile(processes=2, micro_batch=2), r"profile\.micro_batch = 2 with a batch of 6 rows, 3 a process"),
    ],
)
def test_processes_that_cannot_share_a_batch_are_refused_by_name(profile: Profile, message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught, open_trainer(RECIPE, profile):
        pass
    assert caught.value.error_id == "spec.bad-value"


def test_one_process_divides_every_batch() -> None:
    require_shares(7, Profile())
