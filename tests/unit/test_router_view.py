"""Views: their JSON, when they are full and served, and which replaces which."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from potluck.errors import DataError, NotReachable, UsageError
from potluck.ids import Digest, RunId
from potluck.lm.config import ModelConfig
from router.book import MAX_RUNS, Loaded, ViewBook
from router.choose import choose
from router.view import View, may_replace

MODEL = ModelConfig(vocab=300, hidden=8, layers=1, heads=1, ffn=8, context=9)
A, B, C = (Digest(letter * 64) for letter in "abc")
VIEW = View(
    run=RunId("1" * 64),
    name="demo",
    method="smalltalk",
    tokenizer=A,
    sequence_length=8,
    prefix_length=4,
    router_model=MODEL,
    routers=(A, B),
    expert_model=MODEL,
    slots={"expert-0": A, "expert-1": B, "dense": C},
)
ONE = View(
    run=RunId("3" * 64),
    name="alone",
    method="single",
    route_by="one",
    default_slot="model",
    tokenizer=A,
    sequence_length=8,
    prefix_length=4,
    expert_model=MODEL,
    slots={"model": A},
)
CLUSTERED = replace(ONE, route_by="partition", default_slot="", partition=C, experts=2, slots={"expert-0": A})
SCORER: Any = object()


def loaded(view: View, version: int = 1) -> Loaded:
    return Loaded(view=view, version=version, scorer=SCORER)


@pytest.mark.parametrize("view", [VIEW, ONE, replace(ONE, partition=B), replace(VIEW, partition=B), CLUSTERED])
def test_a_view_survives_its_json(view: View) -> None:
    assert View.from_json(view.to_json()) == view


def test_a_view_that_does_not_say_what_decides_is_by_routers() -> None:
    raw = json.loads(VIEW.to_json())
    assert set(raw) == {
        "run", "name", "method", "tokenizer", "sequence_length", "prefix_length", "router_model", "routers",
        "expert_model", "slots",
    }  # fmt: skip
    assert View.from_json(json.dumps(raw)).route_by == "routers"


@pytest.mark.parametrize("change", [{"slots": {"expert-0": "no"}}, {"routers": []}, {"prefix_length": 1}, {"more": 1}])
def test_a_view_that_cannot_be_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(DataError) as caught:
        View.from_json(json.dumps({**json.loads(VIEW.to_json()), **change}))
    assert caught.value.error_id == "data.bad-view"


def test_a_view_is_full_with_every_expert_and_served_with_every_replica() -> None:
    partial = replace(VIEW, slots={"expert-0": A, "dense": C})
    ready = set(VIEW.expert_keys)
    assert (VIEW.is_full, partial.is_full) == (True, False)
    assert VIEW.is_served(ready)
    assert not VIEW.is_served(list(ready)[:1])
    assert not partial.is_served(ready)


@pytest.mark.parametrize("change", [{"default_slot": ""}, {"routers": [A]}, {"route_by": "dice"}, {"partition": "no"}])
def test_a_view_of_one_model_has_a_default_slot_and_no_routers(change: dict[str, Any]) -> None:
    with pytest.raises(DataError) as caught:
        View.from_json(json.dumps({**json.loads(ONE.to_json()), **change}))
    assert caught.value.error_id == "data.bad-view"


def test_a_view_of_one_model_is_full_and_served_with_its_default_slot() -> None:
    more = replace(ONE, slots={"model": A, "specialist": B})
    other = replace(ONE, slots={"specialist": B})
    assert (ONE.is_full, more.is_full, other.is_full) == (True, True, False)
    assert (more.num_experts, more.expert_slots) == (1, ("model",))
    assert more.is_served({more.key("model")})
    assert not more.is_served({more.key("specialist")})


@pytest.mark.parametrize("change", [{"partition": ""}, {"experts": 0}, {"experts": -1}, {"default_slot": "expert-0"}])
def test_a_view_by_partition_has_one_and_says_how_many_experts(change: dict[str, Any]) -> None:
    with pytest.raises(DataError) as caught:
        View.from_json(json.dumps({**json.loads(CLUSTERED.to_json()), **change}))
    assert caught.value.error_id == "data.bad-view"


def test_a_view_by_partition_is_full_with_every_expert() -> None:
    assert not CLUSTERED.is_full
    assert replace(CLUSTERED, slots={"expert-0": A, "expert-1": B}).is_full


def test_only_a_partition_that_decides_is_held() -> None:
    assert CLUSTERED.digests == {A, C}
    assert replace(ONE, partition=C).digests == {A}
    assert replace(VIEW, partition=C).digests == {A, B}
    book = ViewBook(lambda: None)
    book.install(replace(loaded(CLUSTERED), listed=frozenset((B,))), set())
    assert book.digests == {A, B, C}


def test_a_served_view_gives_way_only_to_a_served_one() -> None:
    new = replace(VIEW, slots={"expert-0": C, "expert-1": C})
    old_keys, new_keys = set(VIEW.expert_keys), set(new.expert_keys)
    assert may_replace(None, new, set())
    assert not may_replace(VIEW, new, old_keys)
    assert may_replace(VIEW, new, old_keys | new_keys)
    assert may_replace(VIEW, new, set())


def test_the_newest_run_is_meant_unless_one_is_named() -> None:
    book = ViewBook(lambda: None)
    with pytest.raises(NotReachable):
        book.pick("")
    second = replace(VIEW, run=RunId("2" * 64), name="second")
    book.install(loaded(VIEW), set())
    book.install(loaded(second), set())
    book.install(loaded(VIEW, 2), set())  # a new version does not make a run the newest
    assert book.pick("").view == second
    assert book.pick("demo").version == 2
    assert book.pick("1" * 64).view == VIEW
    assert book.pick("2222222").view == second
    with pytest.raises(UsageError, match="not served here"):
        book.pick("2")


def test_only_so_many_runs_are_held() -> None:
    book = ViewBook(lambda: None)
    for i in range(MAX_RUNS + 2):
        book.install(loaded(replace(VIEW, run=RunId(f"{i:064x}"))), set())
    assert [int(held.view.run, 16) for held in book.current] == list(range(2, MAX_RUNS + 2))


def test_ties_after_quantising_go_to_the_lower_expert_and_nan_never_wins() -> None:
    assert choose(np.array([2.00001, 2.0], dtype=np.float32)) == 0
    assert choose(np.array([2.001, 2.0], dtype=np.float32)) == 1
    assert choose(np.array([np.nan, 9.0], dtype=np.float32)) == 1
    assert choose(np.array([np.inf, np.nan], dtype=np.float32)) == 0
