"""The plan of questions: one text, every model's scores, a mixture by its routers, refusals before anything runs."""

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
from potluck.specs.choices import ChoicesSpec, RoutedExperts
from potluck.specs.contest import Contestant
from potluck.specs.run import parse_run_file, spec_from_json
from potluck.specs.sections import ModelShape, TextSpec
from tests.unit.plan_fold import Fold

TEXT = TextSpec(vocab_size=300, sequence_length=16, prefix_length=8)
MODEL = ModelShape(preset="0.05M").resolved("").config(vocab=300, context=17)
OUTPUTS = {
    "choices": {"tokenise": ("tokens", "spans", "prefixes", "prefix_lengths"), "eval": ("report",)},
    "prefixes": {"score": ("column",)},
    "choice_scores": {"eval": ("scores",)},
    "least": {"assign": ("assignment",)},
}


def digest(name: str) -> Digest:
    return digest_json(name)


def spec(*names: str, routed: bool = False, **changes: Any) -> ChoicesSpec:
    mixture = RoutedExperts(
        routers=(digest("router 0"), digest("router 1")),
        router_model=replace(MODEL, context=8),
        experts=(digest("expert 0"), digest("expert 1")),
        expert_model=MODEL,
    )
    return ChoicesSpec(
        method="choices",
        corpus=NO_DIGEST,
        text=TEXT,
        items=digest("items"),
        tokenizer=digest("tokenizer"),
        models=tuple(Contestant(name=name, weights=digest(name), model=MODEL) for name in names),
        mixture=mixture if routed else None,
        **changes,
    )


class World(Fold):
    """A fold that knows the tasks of questions."""

    def __init__(self, spec: ChoicesSpec, **text: Any) -> None:
        super().__init__(spec)
        self.corpus = CorpusFacts(shards=(), sources=())
        self.text = {"cut": 3, "refused": 0, "refusals": [], **text}

    def _result(self, task: TaskWanted) -> TaskResult:
        params = json.loads(task.params_json)
        names = OUTPUTS[params.get("what") or params["rule"]][task.kind]
        figures = self.text if task.kind == "tokenise" else {"questions": 9} if "models" in params else {}
        return TaskResult(blobs={name: digest_json([task.id, name]) for name in names}, figures=figures)

    def tasks(self, what: str) -> list[tuple[dict[str, Any], dict[str, Digest]]]:
        found = [(json.loads(task.params_json), dict(task.inputs)) for task in self.seen_tasks.values()]
        return [(params, inputs) for params, inputs in found if what in (params.get("what"), params.get("rule"))]


@pytest.mark.parametrize("seed", [0, 1, None])
def test_every_model_scores_the_same_tokens_and_one_table_counts_them(seed: int | None) -> None:
    world = World(spec("one", "two"))
    outcome = world.run(seed).outcome
    assert isinstance(outcome, Finished)
    assert outcome.figures == {"headline": {"questions": 9}}
    scored = world.tasks("choice_scores")
    assert [inputs["weights"] for _, inputs in scored] == [digest("one"), digest("two")]
    assert len({inputs["spans"] for _, inputs in scored}) == 1
    assert not any("assignment" in inputs for _, inputs in scored)
    _, (params, inputs) = world.tasks("choices")
    assert params["models"] == ["one", "two"]
    assert params["cut"] == 3
    assert set(inputs) == {"items", "spans", "model-000", "model-001"}
    assert not world.seen_lineages


@pytest.mark.parametrize("seed", [0, 1, None])
def test_a_mixture_is_routed_by_prefixes_and_each_expert_answers_its_share(seed: int | None) -> None:
    world = World(spec("dense", routed=True))
    assert isinstance(world.run(seed).outcome, Finished)
    assert {inputs["weights"] for _, inputs in world.tasks("prefixes")} == {digest("router 0"), digest("router 1")}
    ((_, columns),) = world.tasks("least")
    assert list(columns) == ["column-000", "column-001"]
    experts = {params["expert"]: inputs for params, inputs in world.tasks("choice_scores") if "expert" in params}
    assert {number: inputs["weights"] for number, inputs in experts.items()} == {
        0: digest("expert 0"),
        1: digest("expert 1"),
    }
    assert all("assignment" in inputs for inputs in experts.values())
    _, (_, inputs) = world.tasks("choices")
    assert set(inputs) == {"items", "spans", "assignment", "expert-000", "expert-001", "model-000"}


def test_a_refused_choice_ends_the_run_before_a_model_is_asked() -> None:
    refusals = [["a", 0, "no-token"], ["b", 3, "too-long"]]
    world = World(spec("one"), refused=7, refusals=refusals)
    outcome = world.run().outcome
    assert isinstance(outcome, Failed)
    assert outcome.error_id == "corpus.bad-choices"
    assert "choice 0 of question 'a' has no token of its own" in outcome.message
    assert "choice 3 of question 'b' is, with the spaces before it, longer" in outcome.message
    assert "7 choices in all" in outcome.message
    assert not world.tasks("choice_scores")


def test_equal_questions_to_equal_models_are_one_run() -> None:
    for each in (spec("one"), spec("one", routed=True)):
        assert spec_from_json(each.to_json()) == each
    assert spec("one").id == spec("one").id != spec("one", routed=True).id


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("models", {"models": ()}),
        ("models", {"models": spec("one").models * 2}),
        ("items", {"items": Digest("x")}),
        ("models.one", {"text": replace(TEXT, sequence_length=32)}),
    ],
)
def test_a_spec_names_models_of_its_text_each_once(key: str, change: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=key):
        replace(spec("one"), **change)


def test_a_mixture_has_an_expert_for_each_router() -> None:
    mixture = spec(routed=True).mixture
    assert mixture is not None
    with pytest.raises(SpecError, match=r"mixture\.experts"):
        replace(mixture, experts=mixture.experts[:1])


def test_a_spec_file_of_questions_is_refused_with_the_command_that_asks_them() -> None:
    with pytest.raises(SpecError) as raised:
        parse_run_file(tomllib.loads('method = "choices"\ndata = "text"\n'))
    assert raised.value.error_id == "spec.no-file"
    assert "potluck eval" in raised.value.fix
