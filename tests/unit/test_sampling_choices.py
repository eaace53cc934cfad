"""Questions as tasks: what is scored of which context, by whom, and what is counted."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from potluck.choices import Item, items_text
from potluck.config import to_mapping
from potluck.ids import Digest, Json
from potluck.lm.config import ModelConfig
from potluck.lm.model import init_decoder
from sampling.bpe import encode, load_tokenizer, train_bpe
from sampling.choices import SCORED, build_choices, wilson
from sampling.compare import Bootstrap
from sampling.taskio import LocalBlobs, TaskOutput, load_array
from sampling.tasks import run_task

S, M, VOCAB = 16, 4, 300
MODEL = ModelConfig(vocab=VOCAB, hidden=16, layers=1, heads=2, ffn=16, context=S + 1)
RUNNING: dict[str, Json] = {"batch_size": 3, "dtype": "float32", "model": to_mapping(MODEL)}
BOOTSTRAP = Bootstrap(samples=200, confidence=0.95, seed=0)
TEXT = "the sky is blue and the sea is loud; grass is green, and größer is not schöner. " * 9


def item(context: str, *choices: str, answer: int = 0, name: str = "", group: str = "all") -> Item:
    return Item(id=name or context, context=context, choices=choices, answer=answer, group=group)


ITEMS = (
    item("the sky is", " blue", " loud and green", answer=0),
    item("the sea is ", "loud", "größer", answer=1, group="trailing"),
    item("", "the sky", "grass is green", answer=0, name="empty"),
    item(TEXT[:200], " blue", " loud", answer=1, name="long"),
)


class Bench:
    """A tokenizer and two models; tasks run on questions as on a node."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.blobs = LocalBlobs()
        path = folder / "tokenizer.json"
        path.write_text(train_bpe([TEXT], VOCAB).to_str(), encoding="utf-8")
        self.tokenizer = self.blobs.add(path)
        self.bpe = load_tokenizer(path)
        self.weights: list[Digest] = []
        for seed in range(2):
            path = folder / f"{seed}.safetensors"
            save_file({n: p.detach() for n, p in init_decoder(MODEL, seed=seed).named_parameters()}, path)
            self.weights.append(self.blobs.add(path))
        self.items = self.write(ITEMS)
        self.text = self.run("tokenise", TOKENISE, {"items": self.items, "tokenizer": self.tokenizer})

    def write(self, items: tuple[Item, ...]) -> Digest:
        path = self.folder / f"items-{len(list(self.folder.iterdir()))}.jsonl"
        path.write_text(items_text(items), encoding="utf-8")
        return self.blobs.add(path)

    def output(self, kind: str, params: Mapping[str, Json], inputs: Mapping[str, Digest]) -> TaskOutput:
        out = self.folder / f"out-{len(list(self.folder.iterdir()))}"
        out.mkdir()
        return run_task(kind, params, inputs, self.blobs, out, lambda _: None)

    def run(self, kind: str, params: Mapping[str, Json], inputs: Mapping[str, Digest]) -> dict[str, Digest]:
        return {name: self.blobs.add(path) for name, path in self.output(kind, params, inputs).files.items()}

    def array(self, digest: Digest) -> np.ndarray:
        return np.asarray(load_array(self.blobs.path(digest)))

    def scores(self, model: int, **more: Digest) -> Digest:
        spans = {name: self.text[name] for name in ("tokens", "spans")}
        params: dict[str, Json] = {"what": "choice_scores", **RUNNING, **({"expert": model} if more else {})}
        return self.run("eval", params, {"weights": self.weights[model], **spans, **more})["scores"]


TOKENISE: dict[str, Json] = {"what": "choices", "sequence_length": S, "prefix_length": M}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    torch.set_num_threads(1)
    return Bench(tmp_path_factory.mktemp("bench"))


def naive_score(bench: Bench, model: int, context: str, choice: str) -> float:
    """By plain torch over one text at a time, as the docstring of `sampling.choices` has it."""
    bare = context.rstrip()
    before, whole = (ids.tolist() for ids in encode(bench.bpe, [bare, context + choice]))
    scored = len(whole) - len(before)
    ids = torch.tensor(([] if before else [0]) + whole)[-(S + 1) :]
    decoder = init_decoder(MODEL, seed=model)
    with torch.no_grad():
        log_p = torch.log_softmax(decoder(ids[None, :-1])[0] @ decoder.embedding.weight.T, dim=-1)
    each = log_p.gather(1, ids[1:, None])[:, 0]
    return float(each[-scored:].sum())


def test_a_choice_scores_the_log_likelihood_of_its_tokens_after_the_context(bench: Bench) -> None:
    wanted = [naive_score(bench, 0, each.context, choice) for each in ITEMS for choice in each.choices]
    assert bench.array(bench.scores(0)).tolist() == pytest.approx(wanted, abs=1e-4)


def test_every_byte_of_a_choice_and_the_spaces_before_it_is_scored_once(bench: Bench) -> None:
    scored = bench.array(bench.text["spans"])[:, SCORED].tolist()
    texts = [each.context[len(each.context.rstrip()) :] + choice for each in ITEMS for choice in each.choices]
    assert scored == [len(ids) for ids in encode(bench.bpe, texts)]  # spaces part the words, so they are cut alike


def test_a_long_context_loses_its_beginning_and_is_counted(bench: Bench) -> None:
    done = bench.output("tokenise", TOKENISE, {"items": bench.items, "tokenizer": bench.tokenizer})
    assert done.figures == {"cut": 2, "refused": 0, "refusals": []}
    spans = bench.array(bench.text["spans"])
    assert spans[-2:, 2].tolist() == [S + 1, S + 1]


@pytest.mark.parametrize(("choice", "why"), [(" blue" * 40, "too-long"), ("", "no-token")])
def test_a_choice_that_cannot_be_scored_is_told_by_its_question(bench: Bench, choice: str, why: str) -> None:
    # "th" and "e" are one token: after "th" nothing is left for the choice "e".
    bad = item("is", " blue", choice, name="bad") if choice else item("th", "e", " blue", name="bad")
    inputs = {"items": bench.write((ITEMS[0], bad)), "tokenizer": bench.tokenizer}
    figures = bench.output("tokenise", TOKENISE, inputs).figures
    assert figures["refused"] == 1
    assert figures["refusals"] == [["bad", 1 if choice else 0, why]]


def test_routers_see_the_beginning_of_the_context_and_nothing_of_the_choices(bench: Bench) -> None:
    prefixes, lengths = bench.array(bench.text["prefixes"]), bench.array(bench.text["prefix_lengths"])
    params: dict[str, Json] = {"what": "prefixes", **RUNNING}
    named = {name: bench.text[name] for name in ("prefixes", "prefix_lengths")}
    columns = [bench.run("score", params, {"weights": weights, **named})["column"] for weights in bench.weights]
    for number, each in enumerate(ITEMS):
        ids = encode(bench.bpe, [each.context.rstrip()])[0][:M].tolist() or [0]
        assert prefixes[number, : lengths[number]].tolist() == ids
        for model, column in enumerate(columns):
            decoder = init_decoder(MODEL, seed=model)
            nll = 0.0
            if len(ids) > 1:
                with torch.no_grad():
                    log_p = torch.log_softmax(decoder(torch.tensor([ids[:-1]]))[0] @ decoder.embedding.weight.T, -1)
                nll = -float(log_p.gather(1, torch.tensor(ids)[1:, None]).mean())
            assert bench.array(column)[number] / 4096 == pytest.approx(nll, abs=2e-4)
    given = {f"column-{n:03d}": column for n, column in enumerate(columns)}
    done = bench.output("assign", {"rule": "least"}, given)
    chosen = np.stack([bench.array(column) for column in columns], axis=1).argmin(axis=1)
    assert np.load(done.files["assignment"]).tolist() == chosen.tolist()
    assert chosen[2] == 0  # an empty context says nothing: the first expert


def test_a_mixture_answers_each_question_by_its_expert(bench: Bench) -> None:
    np.save(bench.folder / "assignment.npy", np.array([0, 1, 1, 0], dtype="<u2"))
    assignment = bench.blobs.add(bench.folder / "assignment.npy")
    alone = [bench.scores(model) for model in range(2)]
    routed = [bench.scores(model, assignment=assignment) for model in range(2)]
    item_of = bench.array(bench.text["spans"])[:, 0]
    for model in range(2):
        mine = np.isin(item_of, np.flatnonzero(np.array([0, 1, 1, 0]) == model))
        assert np.isnan(bench.array(routed[model])[~mine]).all()
        assert bench.array(routed[model])[mine] == pytest.approx(bench.array(alone[model])[mine], abs=1e-5)
    params: dict[str, Json] = {"what": "choices", "models": ["dense"], "mixture": "mixture", "cut": 2, "facts": {}}
    params |= {"bootstrap_samples": 100, "confidence": 0.95, "seed": 0}
    inputs = {"items": bench.items, "spans": bench.text["spans"], "model-000": alone[0], "assignment": assignment}
    inputs |= {f"expert-{n:03d}": digest for n, digest in enumerate(routed)}
    report = json.loads(bench.output("eval", params, inputs).files["report"].read_text())
    assert report["names"] == ["mixture", "dense"]
    assert report["routing"] == {"shares": [2, 2], "experts": [0, 1, 1, 0]}
    assert report["cut"] == 2
    for number, answer in enumerate(report["answers"]):
        expert = [0, 1, 1, 0][number]
        wanted = bench.array(alone[expert])[item_of == number].tolist()
        assert answer["scores"]["mixture"] == pytest.approx(wanted, abs=1e-5)


def test_the_greatest_score_wins_as_it_is_by_character_and_by_byte() -> None:
    # Four characters, eight bytes, against six of each.
    items = (item("x", "öööö", "abcdef", answer=0),)
    by_score = build_choices(items, {"m": np.array([-5.0, -6.5])}, bootstrap=BOOTSTRAP)
    assert right(by_score) == {"acc": 1, "acc_norm": 0, "acc_bytes": 1}
    by_byte = build_choices(items, {"m": np.array([-4.5, -4.0])}, bootstrap=BOOTSTRAP)
    assert right(by_byte) == {"acc": 0, "acc_norm": 0, "acc_bytes": 1}
    tied = build_choices(items, {"m": np.array([-1.0, -1.0])}, bootstrap=BOOTSTRAP)
    assert right(tied)["acc"] == 1


def right(report: dict[str, Any]) -> dict[str, float]:
    return {metric: share["mean"] for metric, share in report["models"]["m"].items()}


def test_groups_chance_and_differences_are_counted_over_their_questions() -> None:
    items = (
        item("a", "x", "y", answer=0, group="two"),
        item("b", "x", "y", answer=1, group="two"),
        item("c", "x", "y", "z", "w", answer=3, group="four"),
    )
    first = np.array([2.0, 1.0, 2.0, 1.0, 0.0, 0.0, 0.0, 1.0])
    report: Any = build_choices(items, {"first": first, "second": -first}, bootstrap=BOOTSTRAP)
    assert report["chance"] == pytest.approx((0.5 + 0.5 + 0.25) / 3)
    assert report["by_group"]["four"]["chance"] == 0.25
    assert report["models"]["first"]["acc"]["mean"] == pytest.approx(2 / 3)
    assert report["by_group"]["two"]["models"]["first"]["acc"]["mean"] == 0.5
    assert report["pairs"]["first - second"]["acc"]["mean"] == pytest.approx(1 / 3)
    assert report["by_group"]["four"]["pairs"]["first - second"]["acc"]["low"] is None


def test_a_model_that_blew_up_is_null_and_so_is_what_it_is_compared_in() -> None:
    items = (item("a", "x", "y"),)
    scores = {"m": np.array([1.0, 0.0]), "broken": np.array([np.nan, 0.0])}
    report: Any = build_choices(items, scores, bootstrap=BOOTSTRAP)
    assert report["models"]["broken"] is report["pairs"]["m - broken"] is None
    assert report["answers"][0]["scores"]["broken"] is None
    json.dumps(report, allow_nan=False)


def test_wilsons_interval_is_the_books_and_holds_where_all_or_none_are_right() -> None:
    share = wilson(81, 263, 0.95)  # Newcombe (1998), table I, method 3
    assert (share.low, share.high) == (pytest.approx(0.2553, abs=1e-4), pytest.approx(0.3662, abs=1e-4))
    none, every = wilson(0, 20, 0.95), wilson(20, 20, 0.95)
    assert none.low == 0
    assert none.high == pytest.approx(0.1611, abs=1e-4)
    assert (every.low, every.high) == (pytest.approx(1 - none.high), 1.0)
    assert math.isclose(wilson(5, 10, 0.95).mean, 0.5)
