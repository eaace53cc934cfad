"""Whatever text a stranger or a joined peer sends is a value or a refusal with a stable id."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.collector import closure
from potluck.errors import PotluckError, SpecError
from potluck.ids import digest_bytes
from potluck.jsontext import MAX_CONTAINERS, MAX_DEPTH, read_json
from potluck.net.blobs.store import BlobStore
from potluck.recipe import Recipe
from tests.fuzz.bending import RAW, bent, shapeless, spoilt
from tests.fuzz.seeds import JSON, seeds_of
from tests.fuzz.seeds import TEXTS as SOUND_TEXTS
from tests.fuzz.targets import TEXTS


@pytest.mark.parametrize("name", sorted(JSON))
@settings(max_examples=80)
@given(data=st.data())
def test_a_sound_json_with_parts_bent_is_a_value_or_refused_with_a_stable_id(name: str, data: st.DataObject) -> None:
    TEXTS[name](data.draw(bent(JSON[name])))


@pytest.mark.parametrize("name", sorted(SOUND_TEXTS))
@settings(max_examples=60)
@given(data=st.data())
def test_a_sound_text_with_bytes_changed_is_a_value_or_refused_with_a_stable_id(name: str, data: st.DataObject) -> None:
    TEXTS[name](data.draw(spoilt(SOUND_TEXTS[name])))


@pytest.mark.parametrize("name", sorted(TEXTS))
@settings(max_examples=30)
@given(data=shapeless())
def test_shapeless_text_is_a_value_or_refused_with_a_stable_id(name: str, data: bytes) -> None:
    TEXTS[name](data)


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_every_target_takes_its_sound_input(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the bent ones would all be refused at the door."""

    def no_error(self: PotluckError, error_id: str, message: str, fix: str = "") -> None:
        pytest.fail(f"{error_id}: {message}")

    monkeypatch.setattr(PotluckError, "__init__", no_error)
    for sound in seeds_of(name):
        TEXTS[name](sound)


@pytest.mark.parametrize("text", [text for text in RAW if text != '{"a":1,"a":[]}'])
def test_what_no_peer_of_ours_writes_is_a_value_error(text: str) -> None:
    for wrapped in (text, f'{{"a": {text}}}'):
        with pytest.raises(ValueError):
            read_json(wrapped)


def test_json_of_very_many_lists_is_refused_before_it_is_parsed() -> None:
    for text in ("[" + "[]," * MAX_CONTAINERS + "[]]", b"[" + b"{}," * MAX_CONTAINERS + b"[]]"):
        with pytest.raises(ValueError, match="lists and objects"):
            read_json(text)
    assert len(read_json(json.dumps({"text": "[" * (MAX_CONTAINERS - 100)}))["text"]) == MAX_CONTAINERS - 100


def test_json_may_nest_so_deep_and_no_deeper() -> None:
    assert read_json("[" * MAX_DEPTH + "1" + "]" * MAX_DEPTH) is not None
    with pytest.raises(ValueError):
        read_json("[" * (MAX_DEPTH + 1) + "1" + "]" * (MAX_DEPTH + 1))


@pytest.mark.parametrize("tag", [{}, [], None, 3, {"name": "adamw"}])
def test_a_tag_of_another_type_is_refused_with_the_tags_that_there_are(tag: object) -> None:
    recipe = {**JSON["recipe"], "optimizer": {"name": tag}}
    with pytest.raises(SpecError) as caught:
        Recipe.from_json(json.dumps(recipe))
    assert (caught.value.error_id, caught.value.fix) == ("spec.bad-value", "allowed: adamw, ademamix")


@settings(max_examples=60)
@given(data=bent(JSON["labels"]) | shapeless())
def test_no_blob_that_a_node_put_stops_the_collector(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store, digest = BlobStore(Path(folder)), digest_bytes(data)
        place = Path(folder) / digest[:2] / digest
        place.parent.mkdir()
        place.write_bytes(data)
        assert digest in closure(store, [digest])
