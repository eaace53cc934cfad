"""What a model card says, from specs and reports of each method, whole or not there yet."""

from __future__ import annotations

import json
from typing import Any

from potluck.commands.cards import described, held_out, routed_shares, tokens_trained
from potluck.ids import Digest
from potluck.lm.card import HeldOut, RoutedShare
from potluck.specs.run import spec_from_json
from potluck.specs.single import SingleSpec
from potluck.specs.smalltalk import SmallTalkSpec
from potluck.specs.soup import SoupSpec

CORPUS = Digest("c" * 64)
SMALLTALK: dict[str, Any] = {
    "method": "smalltalk",
    "text": {"sequence_length": 32},
    "experts": {"num": 2, "batch_size": 8},
    "dense": {"batch_size": 16},
    "search": {"mode": "none"},
}
SINGLE: dict[str, Any] = {"method": "single", "text": {"sequence_length": 32}, "training": {"batch_size": 4}}
CONTEST: dict[str, Any] = {
    "facts": {"method": "single", "steps": 10, "tokens": 1280},
    "models": {"model": {"nll": 2.25}},
    "rows": 7,
    "split": "test",
}
COMPARED: dict[str, Any] = {
    "facts": {
        "experts": {"trained": 2, "steps": 10, "tokens": 10_240},
        "dense": {"trained": 1, "steps": 20, "tokens": 5_120},
    },
    "rows": 9,
    "dense": {"nll_all": 3.0, "nll_suffix": 2.9},
    "by_expert": [
        {"rows": 5, "mixture": {"nll_all": 2.0, "nll_suffix": 1.9}},
        {"rows": 0, "mixture": {"nll_all": None, "nll_suffix": None}},
    ],
    "routing": {"sources": ["a", "b"], "table": [[4, 1], [0, 4]]},
}


def test_a_card_of_an_export_counts_the_tokens_of_one_model_up_to_its_step() -> None:
    assert tokens_trained(SMALLTALK, {}, "expert-1", 5) == 5 * 8 * 32
    assert tokens_trained(SMALLTALK, {}, "dense", 5) == 5 * 16 * 32
    assert tokens_trained(SMALLTALK, COMPARED, "expert-1", 5) == 2_560
    assert tokens_trained(SMALLTALK, COMPARED, "dense", 5) == 1_280
    assert tokens_trained(SINGLE, {}, "model", 5) == tokens_trained(SINGLE, CONTEST, "model", 5) == 640


def test_a_card_of_an_export_counts_no_tokens_while_a_search_has_not_chosen_the_batch() -> None:
    searched = {**SMALLTALK, "search": {"mode": "grid"}}
    assert tokens_trained(searched, {}, "expert-1", 5) is None
    assert tokens_trained(searched, COMPARED, "expert-1", 5) == 2_560


def test_a_card_of_an_export_takes_an_experts_loss_from_the_rows_routed_to_it() -> None:
    found = held_out(COMPARED, "expert-0")
    on = "the test rows that the routers send to it"
    assert found == HeldOut(on=on, rows=5, nll_all=2.0, nll_suffix=1.9)
    assert held_out(COMPARED, "dense") == HeldOut(on="all test rows", rows=9, nll_all=3.0, nll_suffix=2.9)
    assert held_out(CONTEST, "model") == HeldOut(on="all test rows", rows=7, nll_all=2.25, nll_suffix=None)
    assert held_out(COMPARED, "expert-1") == HeldOut(on=on, rows=0, nll_all=None, nll_suffix=None)
    assert held_out({}, "expert-0") is held_out({}, "dense") is held_out(COMPARED, "soup") is None


def test_a_card_of_an_export_shows_which_share_of_each_source_is_routed_to_an_expert() -> None:
    assert routed_shares(COMPARED, "expert-0") == (
        RoutedShare(source="a", rows=4, of_rows=4),
        RoutedShare(source="b", rows=1, of_rows=5),
    )
    assert routed_shares(COMPARED, "dense") == routed_shares({}, "expert-0") == routed_shares(CONTEST, "x") == ()


def test_a_card_of_an_export_knows_every_method_by_its_real_spec() -> None:
    smalltalk = json.loads(SmallTalkSpec(corpus=CORPUS).to_json())
    single = json.loads(SingleSpec(corpus=CORPUS, method="single").to_json())
    assert spec_from_json(json.dumps(single)).method == "single"
    assert "4 experts" in described(smalltalk, "expert-0")
    assert "dense twin" in described(smalltalk, "dense")
    assert "One model" in described(single, "model")
    soup = json.loads(SoupSpec(corpus=CORPUS, method="soup").to_json())
    assert "model of its corpus" in described(soup, "soup")
    assert "No step was trained" in described(soup, "bank")
    assert tokens_trained(soup, {}, "bank", 2) == 2 * 16 * 128
    assert "published as x" in described({"method": "another"}, "x")
    assert tokens_trained(smalltalk, {}, "expert-0", 1) == 16 * 128
    assert tokens_trained(single, {}, "model", 1) == 16 * 128
