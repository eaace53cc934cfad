"""Models of finished runs against each other: a run of its own, which asks what their own runs asked."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from coordinator.core.values import Finished
from potluck.errors import SpecError
from potluck.ids import Digest
from potluck.specs.contest import ContestSpec
from potluck.specs.run import RunSpec, parse_run_file, spec_from_json, spec_from_mapping
from potluck.specs.sections import CommonSpec, EvalSpec, ModelShape, TextSpec
from potluck.specs.single import SingleSpec, TrainingSpec
from potluck.specs.smalltalk import ControlSpec, ExpertSpec, RouterSpec, SmallTalkSpec
from tests.unit.plan_fold import Fold

TEXT = TextSpec(vocab_size=300, sequence_length=16, prefix_length=8)
SMALL = ModelShape(preset="0.05M").resolved("")
CORPUS = Digest("c" * 64)


def single(rate: float = 1e-3) -> SingleSpec:
    training = TrainingSpec(steps=64, batch_size=4, learning_rate=rate)
    return SingleSpec(method="single", corpus=CORPUS, seed=3, text=TEXT, model=SMALL, training=training)


def mixture() -> SmallTalkSpec:
    return SmallTalkSpec(
        corpus=CORPUS,
        seed=3,
        text=TEXT,
        routers=RouterSpec(model=SMALL, rounds=2, chunk_sequences=64, batch_size=8),
        experts=ExpertSpec(model=SMALL, num=2, chunks=1, chunk_sequences=64, batch_size=8),
        controls=ControlSpec(random_split="all"),
    )


def ended(fold: Fold) -> dict[str, Any]:
    """The figures of a finished run."""
    outcome = fold.run().outcome
    assert isinstance(outcome, Finished)
    return dict(json.loads(json.dumps(outcome.figures)))


def contest(made: dict[str, dict[str, Any]], **changes: Any) -> ContestSpec:
    """Of runs' first models, by name."""
    first = next(iter(made.values()))
    models = [{"name": name, **next(iter(each["models"].values()))} for name, each in made.items()]
    body = {"method": "contest", "corpus": CORPUS, "seed": 3, "tokens": first["tokens"], "models": models}
    body["text"] = {"vocab_size": 300, "sequence_length": 16, "prefix_length": 8}
    spec = spec_from_mapping({**body, **changes})
    assert isinstance(spec, ContestSpec)
    return spec


def nll_tasks(fold: Fold, split: str = "test") -> set[str]:
    params = {task.id: json.loads(task.params_json) for task in fold.seen_tasks.values()}
    return {each for each, told in params.items() if told.get("what") == "nll" and told["split"] == split}


def test_a_contest_asks_the_very_tasks_of_the_runs_that_trained_its_models() -> None:
    runs = {rate: Fold(single(rate)) for rate in (1e-3, 2e-3)}
    made = {f"lr {rate}": ended(fold)["made"] for rate, fold in runs.items()}
    held = Fold(contest(made, pairs=[["lr 0.001", "lr 0.002"]]))
    figures = ended(held)
    assert nll_tasks(held) == nll_tasks(runs[1e-3]) | nll_tasks(runs[2e-3])
    assert len(nll_tasks(held)) == 2
    (table,) = (task for task in held.seen_tasks.values() if task.label == "test table")
    assert json.loads(table.params_json)["pairs"] == [["lr 0.001", "lr 0.002"]]
    assert not held.seen_lineages
    assert set(figures["made"]["models"]) == set(made)


def test_other_ways_to_evaluate_are_other_tasks() -> None:
    fold = Fold(single())
    made = {"a": ended(fold)["made"]}
    other = Fold(replace(contest(made), evaluation=EvalSpec(batch_size=32)))
    other.run()
    assert not nll_tasks(other) & nll_tasks(fold)
    on_valid = Fold(contest(made, split="valid"))
    on_valid.run()
    assert nll_tasks(on_valid, "valid") == nll_tasks(fold, "valid")


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        (single(), {"model"}),
        (mixture(), {"expert-0", "expert-1", "random_split-0", "random_split-1", "dense"}),
    ],
)
def test_a_finished_run_says_what_it_made(spec: RunSpec, names: set[str]) -> None:
    fold = Fold(spec)
    made = ended(fold)["made"]
    assert set(made["models"]) == names
    heads = {chain[max(chain)].weights for chain in fold.chains.values()}
    assert {each["weights"] for each in made["models"].values()} <= heads
    assert isinstance(spec, CommonSpec)
    collected = [fold.done[task.id] for task in fold.seen_tasks.values() if "collect" in task.params_json]
    assert made["tokens"] == collected[0].blobs["tokens"]


def test_the_canonical_form_is_read_back_as_it_was() -> None:
    spec = contest({"a": ended(Fold(single()))["made"]})
    assert spec_from_json(spec.to_json()) == spec
    assert spec.digests == (spec.tokens, spec.models[0].weights)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pairs": [["a", "b"]]}, "pairs"),
        ({"pairs": [["a"]]}, "pairs"),
        ({"models": []}, "models"),
        ({"tokens": "x"}, "tokens"),
        ({"split": "train"}, "split"),
        ({"text": {"vocab_size": 400, "sequence_length": 16, "prefix_length": 8}}, "models.a.model"),
    ],
)
def test_nonsense_is_refused_by_its_key(changes: dict[str, Any], said: str) -> None:
    made = {"a": ended(Fold(single()))["made"]}
    with pytest.raises(SpecError, match=said):
        contest(made, **changes)


def test_a_contest_may_be_written_as_a_file() -> None:
    body = json.loads(contest({"a": ended(Fold(single()))["made"]}).to_json())
    del body["corpus"]
    file = parse_run_file({"data": "text", **body})
    assert isinstance(file.canonical(CORPUS), ContestSpec)
