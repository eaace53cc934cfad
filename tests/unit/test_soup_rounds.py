"""A spread soup's tasks, run without daemons: what one node would have made, whoever does what in which order."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from coordinator.core.values import Finished
from potluck.errors import DataError
from potluck.ids import Digest, digest_file
from potluck.lm.soup_spread import Spread
from potluck.lm.tensors import load_tensors
from potluck.recipe import AdEMAMixConfig, OptimizerConfig
from potluck.specs.soup import SoupSpec
from sampling.ingest import Ingested
from sampling.soup_rounds import average, nesterov
from sampling.tasks import run_task
from tests.integration.mixture_runs import corpus_of
from tests.integration.soup_runs import soup_spec
from tests.unit.soup_worlds import RealFold


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Ingested:
    return corpus_of(tmp_path_factory.mktemp("corpus"), documents=30)


class Done:
    """A run to its end, in an order of chance."""

    def __init__(self, spec: SoupSpec, corpus: Ingested, folder: Path, seed: int = 0) -> None:
        self.fold = RealFold(spec, corpus, folder)
        self.wanted = self.fold.run(seed)
        assert isinstance(self.wanted.outcome, Finished), self.wanted
        self.figures: Mapping[str, Any] = self.wanted.outcome.figures
        self.weights = Digest(self.figures["soup"]["weights"])

    def tensors(self) -> dict[str, Tensor]:
        return load_tensors(self.fold.blobs.path(self.weights))


@pytest.fixture(scope="module")
def one_node(corpus: Ingested, tmp_path_factory: pytest.TempPathFactory) -> Done:
    return Done(soup_spec(corpus.digest), corpus, tmp_path_factory.mktemp("one"))


@pytest.mark.parametrize("parts", [2, 4])
def test_with_one_local_step_the_weights_are_those_of_one_node_bit_by_bit(
    parts: int, one_node: Done, corpus: Ingested, tmp_path: Path
) -> None:
    """Of four parts the blocks of a product round otherwise than the whole product: see the decision page."""
    spread = Done(soup_spec(corpus.digest, spread=Spread(parts=parts)), corpus, tmp_path, seed=parts)
    assert spread.weights == one_node.weights
    assert spread.figures["headline"] == one_node.figures["headline"]


def test_ademamix_spreads_as_exactly(corpus: Ingested, tmp_path: Path) -> None:
    optimizer: OptimizerConfig = AdEMAMixConfig(alpha=4.0)
    one, two = (
        Done(soup_spec(corpus.digest, optimizer=optimizer, spread=Spread(parts=parts)), corpus, tmp_path / str(parts))
        for parts in (1, 2)
    )
    assert one.weights == two.weights


def test_with_local_steps_the_order_of_tasks_changes_nothing(corpus: Ingested, tmp_path: Path) -> None:
    spec = soup_spec(corpus.digest, spread=Spread(parts=2, local_steps=5, outer_rate=0.7, outer_momentum=0.9))
    one, other = (Done(spec, corpus, tmp_path / str(seed), seed=seed) for seed in (1, 2))
    assert one.weights == other.weights
    assert dict(one.figures) == dict(other.figures)
    steps = [point[0] for point in one.figures["lineages"]["soup"]]
    assert steps == [5, 10, 12]


def test_local_steps_train_every_expert_and_what_is_shared(one_node: Done, corpus: Ingested, tmp_path: Path) -> None:
    far = Done(soup_spec(corpus.digest, spread=Spread(parts=2, local_steps=4)), corpus, tmp_path)
    tensors = far.tensors()
    assert set(tensors) == set(one_node.tensors())
    assert all(bool(row.any()) for row in tensors["bank.experts"])
    assert far.weights != one_node.weights
    losses = [point[1] for point in far.figures["lineages"]["soup"]]
    assert losses == sorted(losses, reverse=True)


def test_without_momentum_what_is_shared_becomes_the_average_of_the_parts(corpus: Ingested, tmp_path: Path) -> None:
    done = Done(soup_spec(corpus.digest, spread=Spread(parts=2, local_steps=6)), corpus, tmp_path)
    (first,) = done.fold.tasks_named("round 1: average")
    inputs = {name: load_tensors(done.fold.blobs.path(d)) for name, d in first.inputs if name.startswith("weights-")}
    after = load_tensors(done.fold.blobs.path(done.fold.done[first.id].blobs["common"]))
    for name, before in inputs["weights-common"].items():
        gone = [before - inputs[f"weights-delta-{part:03d}"][name] for part in range(2)]
        torch.testing.assert_close(after[name], (gone[0] + gone[1]) / 2, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("spread", [Spread(parts=2), Spread(parts=2, local_steps=4, outer_momentum=0.9)])
def test_a_round_puts_the_bytes_on_the_hub_that_the_spec_foretells(
    spread: Spread, corpus: Ingested, tmp_path: Path
) -> None:
    """But for files' headers, and the floats between two tensors of a model."""
    spec = soup_spec(corpus.digest, spread=spread)
    done = Done(spec, corpus, tmp_path)
    of_round = done.fold.tasks_named("round 2: ")
    made = {digest for task in of_round for digest in done.fold.done[task.id].blobs.values()}
    put = sum(done.fold.blobs.path(digest).stat().st_size for digest in made)
    assert 0 <= put - spec.round_bytes() < 0.05 * put


def test_the_inputs_of_two_soups_are_refused(one_node: Done, corpus: Ingested, tmp_path: Path) -> None:
    done = Done(soup_spec(corpus.digest, spread=Spread(parts=2)), corpus, tmp_path / "run")
    (task,) = done.fold.tasks_named("round 2: part 1 of 2")
    inputs = {**dict(task.inputs), "weights-common": one_node.weights}
    (tmp_path / "out").mkdir()
    done.fold.blobs.add(one_node.fold.blobs.path(one_node.weights))
    with pytest.raises(DataError) as refused:
        run_task("train", json.loads(task.params_json), inputs, done.fold.blobs, tmp_path / "out", lambda _: None)
    assert refused.value.error_id == "data.wrong-weights"


def test_a_task_done_twice_gives_the_same_bytes(corpus: Ingested, tmp_path: Path) -> None:
    done = Done(soup_spec(corpus.digest, spread=Spread(parts=2, local_steps=6)), corpus, tmp_path / "run")
    for number, task in enumerate(done.fold.tasks_named("round 2")):
        out = tmp_path / str(number)
        out.mkdir()
        again = run_task(
            task.kind, json.loads(task.params_json), dict(task.inputs), done.fold.blobs, out, lambda _: None
        )
        found = {name: digest_file(path) for name, path in again.files.items()}
        assert found == dict(done.fold.done[task.id].blobs), task.label


def deltas_of(seed: int, count: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [{"shared": torch.randn(33, generator=generator) * 10.0**part} for part in range(count)]


@given(seed=st.integers(0, 2**20), count=st.integers(1, 6))
def test_the_average_of_parts_is_one_number_for_one_order(seed: int, count: int) -> None:
    """Names give the order, not arrival: floats add up otherwise in another, if only in the last bits."""
    deltas = deltas_of(seed, count)
    (found,) = average(deltas).values()
    assert torch.equal(found, average([dict(delta) for delta in deltas])["shared"])
    shuffled = random.Random(seed).sample(deltas, count)
    torch.testing.assert_close(average(shuffled)["shared"], found, rtol=1e-5, atol=10.0**count * 1e-6)
    exact = torch.stack([delta["shared"].double() for delta in deltas]).mean(0)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=10.0**count * 1e-6)


@given(
    seed=st.integers(0, 2**20), rate=st.floats(0.1, 1.5), beta=st.sampled_from([0.0, 0.5, 0.9]), steps=st.integers(1, 4)
)
def test_the_outer_step_is_torchs_nesterov(seed: int, rate: float, beta: float, steps: int) -> None:
    weights, momentum = deltas_of(seed, 1)[0], None
    parameter = torch.nn.Parameter(weights["shared"].clone())
    theirs = torch.optim.SGD([parameter], lr=rate, momentum=beta, nesterov=beta > 0)
    for step in range(steps):
        delta = deltas_of(seed + step + 1, 1)[0]
        weights, momentum = nesterov(weights, delta, momentum, rate=rate, beta=beta)
        parameter.grad = delta["shared"].clone()
        theirs.step()
        assert (momentum is None) == (beta == 0)
        torch.testing.assert_close(weights["shared"], parameter.detach(), rtol=1e-5, atol=1e-5)
