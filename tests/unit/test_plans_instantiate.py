"""The plan of a soup's specialist: a mixture by name or by text, one model of it, and when it is refused."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from typing import Any

import pytest

from coordinator.core.values import Failed, Finished, TaskResult, TaskWanted
from coordinator.plans.base import CorpusFacts
from potluck.errors import SpecError
from potluck.ids import NO_DIGEST, Digest, digest_json
from potluck.lm.soup_config import SoupConfig
from potluck.specs.instantiate import DomainWeight, InstantiateSpec, SoupSource
from potluck.specs.run import parse_run_file, spec_from_json
from potluck.specs.sections import ModelShape, TextSpec
from tests.unit.plan_fold import Fold

TEXT = TextSpec(vocab_size=300, sequence_length=16, prefix_length=8)
TREE, ENCODER = Digest("7" * 64), Digest("8" * 64)
OUTPUTS = {
    "mixture": "mixture",
    "target_histogram": "mixture",
    "instantiate": "weights",
    "specialist": "report",
}


def source(**changes: Any) -> SoupSource:
    names = ("bank", "natural", "labels", "partition", "tokenizer")
    digests = {name: Digest(str(number) * 64) for number, name in enumerate(names)}
    model = ModelShape(preset="0.05M").resolved("").config(vocab=300, context=17)
    return SoupSource(model=model, config=SoupConfig(domains=2, experts=3), **{**digests, **changes})


def by_weights(**weights: float) -> InstantiateSpec:
    named = tuple(DomainWeight(name=name, weight=weight) for name, weight in sorted(weights.items()))
    return InstantiateSpec(method="instantiate", corpus=NO_DIGEST, soup=source(), text=TEXT, weights=named)


def by_text() -> InstantiateSpec:
    soup = source(tree=TREE, encoder=ENCODER, encoder_name="encoder")
    return InstantiateSpec(method="instantiate", corpus=Digest("c" * 64), soup=soup, text=TEXT)


class World(Fold):
    """A fold that knows a soup's tasks."""

    unplaced: float | None = 0.25

    def _result(self, task: TaskWanted) -> TaskResult:
        what = json.loads(task.params_json).get("what", "")
        if what not in OUTPUTS:
            return super()._result(task)
        figures: dict[str, Any] = {
            "target_histogram": {"windows": 9, "unplaced": self.unplaced, "warnings": []},
            "instantiate": {"coefficients": [0.5, -0.25, 0.0]},
        }.get(what, {})
        name = OUTPUTS[what]
        return TaskResult(blobs={name: digest_json([task.id, name])}, figures=figures)

    @property
    def kinds(self) -> list[str]:
        return [json.loads(task.params_json).get("what", task.kind) for task in self.seen_tasks.values()]

    def only(self, what: str) -> TaskWanted:
        (found,) = [task for task in self.seen_tasks.values() if json.loads(task.params_json).get("what") == what]
        return found


def told(world: World) -> dict[str, Any]:
    outcome = world.run().outcome
    assert isinstance(outcome, Finished), outcome
    figures = outcome.figures["specialist"]
    assert isinstance(figures, dict)
    return figures


def test_weights_make_one_mixture_and_one_model_and_compare_nothing() -> None:
    world = World(by_weights(a=0.25, b=0.75))
    world.corpus = CorpusFacts(shards=(), sources=())
    figures = told(world)
    assert world.kinds == ["mixture", "instantiate", "specialist"]
    assert not world.seen_lineages
    made = dict(world.only("instantiate").inputs)
    assert made == {"weights": source().bank, "labels": source().labels, "mixture": figures["mixture"]}
    assert json.loads(world.only("mixture").params_json)["weights"] == {"a": 0.25, "b": 0.75}
    assert figures["coefficients"] == [0.5, -0.25, 0.0]
    assert figures["histogram"] is figures["contest"] is None


def test_the_manifest_names_what_must_stay_with_a_specialist() -> None:
    world = World(by_weights(a=1.0))
    world.corpus = CorpusFacts(shards=(), sources=())
    figures = told(world)
    blobs = json.loads(world.only("specialist").params_json)["blobs"]
    assert blobs == {name: figures[name] for name in ("weights", "mixture", "tokenizer")}


@pytest.mark.parametrize("seed", [0, 1, None])
def test_text_is_placed_by_its_train_rows_and_compared_on_its_test_rows(seed: int | None) -> None:
    world = World(by_text())
    outcome = world.run(seed).outcome
    assert isinstance(outcome, Finished)
    embedded = [task for task in world.seen_tasks.values() if task.kind == "embed"]
    assert {json.loads(task.params_json)["split"] for task in embedded} == {"train"}
    assert {dict(task.inputs)["encoder"] for task in embedded} == {ENCODER}
    scored = [task for task in world.seen_tasks.values() if '"nll"' in task.params_json]
    assert {json.loads(task.params_json)["split"] for task in scored} == {"test"}
    weights = {dict(task.inputs)["weights"] for task in scored}
    figures = outcome.figures["specialist"]
    assert isinstance(figures, dict)
    assert weights == {figures["weights"], source().natural}
    assert json.loads(world.only("contest").params_json)["pairs"] == [["specialist", "soup"]]


def test_text_is_tokenised_with_the_soups_tokenizer_and_none_is_fitted() -> None:
    world = World(by_text())
    world.run()
    assert "bpe" not in world.kinds
    tokenised = [dict(task.inputs) for task in world.seen_tasks.values() if task.kind == "tokenise"]
    assert {inputs["tokenizer"] for inputs in tokenised} == {source().tokenizer}


def test_with_few_held_out_rows_nothing_is_compared() -> None:
    world = World(by_text(), test_rows=19)
    figures = told(world)
    assert figures["contest"] is None
    assert figures["test_rows"] == 19
    assert "nll" not in world.kinds


@pytest.mark.parametrize("seed", [0, None])
def test_text_that_no_domain_holds_is_refused_before_a_model_is_made(seed: int | None) -> None:
    world = World(by_text())
    world.unplaced = 1.0
    outcome = world.run(seed).outcome
    assert isinstance(outcome, Failed)
    assert outcome.error_id == "corpus.outside-soup"
    assert "9 windows" in outcome.message
    assert "instantiate" not in world.kinds


def test_text_too_short_for_one_row_is_refused() -> None:
    outcome = World(by_text(), train_rows=0).run().outcome
    assert isinstance(outcome, Failed)
    assert outcome.error_id == "corpus.target-too-small"
    assert "one row of 16 tokens" in outcome.message


def test_what_lies_how_far_out_is_not_known_makes_a_model_all_the_same() -> None:
    world = World(by_text())
    world.unplaced = None
    assert told(world)["weights"]


def test_equal_wishes_are_one_run_in_whatever_order_they_are_said() -> None:
    assert by_weights(a=0.25, b=0.75).id == by_weights(b=0.75, a=0.25).id
    assert by_weights(a=0.25, b=0.75).id != by_weights(a=0.75, b=0.25).id
    for spec in (by_weights(a=1.0), by_text()):
        assert spec_from_json(spec.to_json()) == spec


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("weights", {"weights": ()}),
        ("weights", {"corpus": Digest("c" * 64)}),
        ("weights", {"weights": (DomainWeight(name="a", weight=0.5),)}),
        ("weights", {"weights": tuple(DomainWeight(name=name, weight=0.5) for name in "ba")}),
        ("corpus", {"weights": (), "corpus": Digest("c" * 64)}),
        ("text.sequence_length", {"text": replace(TEXT, sequence_length=32)}),
    ],
)
def test_a_spec_says_weights_or_text_and_text_needs_domains_that_place_it(key: str, change: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=rf"^\[?.*{key}") as raised:
        replace(by_weights(a=0.25, b=0.75), **change)
    assert raised.value.error_id == "spec.bad-value"


@pytest.mark.parametrize("change", [{"bank": Digest("x")}, {"tree": TREE}, {"tree": TREE, "encoder": ENCODER}])
def test_a_spec_names_a_soup_by_its_blobs_and_all_that_places_text_or_nothing(change: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=r"soup\.(bank|encoder)"):
        source(**change)


def test_a_spec_file_of_a_specialist_is_refused_with_the_command_that_makes_one() -> None:
    with pytest.raises(SpecError) as raised:
        parse_run_file(tomllib.loads('method = "instantiate"\ndata = "text"\n'))
    assert raised.value.error_id == "spec.no-file"
    assert "potluck soup" in raised.value.fix
