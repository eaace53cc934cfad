"""`potluck eval RUN --choices` through real daemons: every model of a run, the second call for nothing, refusals."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from potluck.formatting import TABLE_WIDTH
from tests.integration.command_home import CommandHome
from tests.reference.languages import write_languages

LANGUAGES = 2
QUESTIONS = 60
CHOICES = 4
TEXT = """
data = "corpus.jsonl"
name = "{name}"
method = "{name}"
[text]
vocab_size = 300
sequence_length = 32
prefix_length = 8
[evaluation]
bootstrap_samples = 200
"""
SHAPE = "{ hidden = 16, layers = 1, heads = 2, ffn = 32 }"
SMALLTALK = f"""
[routers]
model = {SHAPE}
rounds = 2
chunk_sequences = 256
batch_size = 8
learning_rate = 0.01
[experts]
model = {SHAPE}
num = 2
chunks = 2
chunk_sequences = 512
batch_size = 8
learning_rate = 0.01
[dense]
batch_size = 8
learning_rate = 0.01
"""
SOUP = """
[model]
hidden = 16
layers = 1
heads = 2
ffn = 32
[training]
steps = 60
batch_size = 16
learning_rate = 0.01
[partition]
by = "source"
[bank]
experts = 4
hidden = 16
support = 2
expert_rate = 1.0
[controls]
generic = false
constant = false
"""


@dataclass(frozen=True, kw_only=True)
class World(CommandHome):
    """A mixture with its dense twin, and a soup, of the same text; questions on text that neither has seen."""

    @property
    def questions(self) -> Path:
        return self.folder / "questions.jsonl"

    def asked(self, run: str, *more: str) -> dict[str, Any]:
        return self.answer("eval", run, "--choices", self.questions, *more)

    @property
    def tasks_done(self) -> int:
        return sum(
            int(self.answer("run", "status", run["run"])["tasks"]["done"]) for run in self.answer("run", "list")["runs"]
        )


def held_out_questions(documents: list[dict[str, str]], count: int, rng: random.Random) -> list[dict[str, Any]]:
    """How a document goes on: as it does, or as documents of the other language do, at the same place."""
    items: list[dict[str, Any]] = []
    for number in range(count):
        mine = rng.choice(documents)
        others = rng.sample([one for one in documents if one["domain"] != mine["domain"]], CHOICES - 1)
        place = mine["text"].index(" ", 60)
        ends = [mine["text"][place : place + 30], *(f" {one['text'][place : place + 29]}" for one in others)]
        answer = rng.randrange(CHOICES)
        ends[0], ends[answer] = ends[answer], ends[0]
        items.append(
            {
                "id": f"q{number}",
                "context": mine["text"][:place],
                "choices": ends,
                "answer": answer,
                "group": mine["domain"],
            }
        )
    return items


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(folder=tmp_path_factory.mktemp("home"))
    write_languages(made.folder / "corpus.jsonl", documents=60, seed=0, languages=LANGUAGES)
    longer = write_languages(made.folder / "longer.jsonl", documents=80, seed=0, languages=LANGUAGES)
    documents = [json.loads(line) for line in longer.read_text().splitlines()]
    unseen = [one for one in documents if int(one["id"].partition("/")[2]) >= 60]
    items = held_out_questions(unseen, QUESTIONS, random.Random(0))
    made.questions.write_text("\n".join(map(json.dumps, items)))
    try:
        made.daemons("up", "--host", "127.0.0.1", "--port", "0", "--detach")
        made.daemons("join", "--name", "first", "--detach")
        for name, body in (("smalltalk", SMALLTALK), ("soup", SOUP)):
            path = made.folder / f"{name}.toml"
            path.write_text(TEXT.format(name=name) + body)
            made.daemons("run", "start", str(path), "--watch")
        yield made
    finally:
        made.daemons("down", "--now")


@pytest.fixture(scope="module")
def told(world: World) -> dict[str, Any]:
    return world.asked("smalltalk")


def test_trained_models_beat_chance_on_text_they_have_not_seen(told: dict[str, Any]) -> None:
    assert told["names"] == ["mixture", "dense"]
    assert told["questions"] == QUESTIONS
    assert told["chance"] == pytest.approx(1 / CHOICES)
    assert all(level["acc"]["low"] > told["chance"] for level in told["models"].values())
    assert set(told["pairs"]) == {"mixture - dense"}
    assert set(told["by_group"]) == {f"language-{number}" for number in range(LANGUAGES)}


def test_the_mixture_answers_by_the_expert_that_the_contexts_prefix_chooses(world: World, told: dict[str, Any]) -> None:
    experts = told["routing"]["experts"]
    assert sum(told["routing"]["shares"]) == len(experts) == QUESTIONS
    assert min(told["routing"]["shares"]) > 0
    world.daemons("router", "--detach")
    contexts = [json.loads(line)["context"] for line in world.questions.read_text().splitlines()[:8]]
    routed = [world.answer("route", context, "--run", "smalltalk")["expert"] for context in contexts]
    assert routed == experts[:8]


def test_equal_questions_are_answered_once(world: World, told: dict[str, Any]) -> None:
    before = world.tasks_done
    assert world.asked("smalltalk") == told
    assert world.tasks_done == before
    assert "found again" in world.potluck("eval", "smalltalk", "--choices", world.questions)[2]


def test_the_run_of_the_questions_has_tables_and_a_page_of_its_own(world: World, told: dict[str, Any]) -> None:
    code, shown, _ = world.potluck("eval", told["run"])
    assert code == 0
    assert "mixture is better than chance" in shown
    assert max(map(len, shown.splitlines())) <= TABLE_WIDTH
    written = world.answer("report", told["run"], "--out", world.folder / "out")
    assert json.loads(Path(written["json"]).read_text()) == told
    assert "acc_norm" in Path(written["html"]).read_text()


def test_a_soup_answers_as_its_model_of_the_corpus_and_as_any_mixture(world: World) -> None:
    model = "soup:language-0=0.25,language-1=0.75"
    told = world.asked("soup", "--model", model)
    assert told["names"] == [model, "soup"]
    assert told["models"]["soup"]["acc"]["low"] > told["chance"]
    assert told["routing"] is None


def test_an_export_answers_alike(world: World, told: dict[str, Any], tmp_path: Path) -> None:
    """By transformers alone, each choice with its context in one call."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    world.answer("export", "smalltalk/dense", tmp_path / "dense")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "dense").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "dense")
    items = [json.loads(line) for line in world.questions.read_text().splitlines()]
    for item, answer in list(zip(items, told["answers"], strict=True))[:5]:
        context = len(tokenizer.encode(item["context"]))
        for choice, score in zip(item["choices"], answer["scores"]["dense"], strict=True):
            ids = tokenizer.encode(item["context"] + choice)
            scored = len(ids) - context
            ids = ids[-33:]
            with torch.no_grad():
                rows = model(torch.tensor([ids[:-1]])).logits[0].log_softmax(-1)
            assert score == pytest.approx(
                sum(float(rows[place, ids[place + 1]]) for place in range(len(ids) - 1 - scored, len(ids) - 1)),
                abs=1e-3,
            )


def test_what_cannot_be_asked_is_refused_by_line_or_by_question(world: World, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"id": 1, "context": "ta", "choices": [" pi", " ta"], "answer": 2}\n')
    refused = world.refusal("eval", "smalltalk", "--choices", path)
    assert refused["id"] == "corpus.bad-choices"
    assert "mine.jsonl, line 1: answer = 2" in refused["message"]
    path.write_text('{"id": "long", "context": "ta", "choices": [" pi", "%s"], "answer": 0}\n' % (" ta" * 200))
    refused = world.refusal("eval", "smalltalk", "--choices", path)
    assert refused["id"] == "corpus.bad-choices"
    assert (
        "choice 1 of question 'long' is, with the spaces before it, longer than the models' context"
        in refused["message"]
    )
    assert world.refusal("eval", "smalltalk", "--choices", tmp_path / "none")["id"] == "corpus.missing"
    assert world.refusal("eval", "smalltalk", "--choices", path, "--model", "soup:a=1")["id"] == "usage.no-soup"
    assert world.refusal("eval", "smalltalk", "--model", "soup:a=1")["id"] == "usage.bad-arguments"
    asked = world.asked("smalltalk")["run"]
    assert world.refusal("eval", asked, "--choices", world.questions)["id"] == "usage.no-models"
