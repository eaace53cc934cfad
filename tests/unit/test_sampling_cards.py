"""Cluster cards: counts that add up, words and rows that are typical, a file that stays small."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from potluck.errors import DataError
from sampling import cards
from sampling.cards import domain_names, excerpt, projection, top_terms
from sampling.rows import TokenRows
from sampling.taskio import load_array
from tests.reference.clustered_topics import Clustered, K
from tests.reference.topics import TOPICS


@pytest.fixture(scope="module")
def clustered(tmp_path_factory: pytest.TempPathFactory) -> Clustered:
    return Clustered(tmp_path_factory.mktemp("clustered"))


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_the_cards_count_every_row_and_token_once(clustered: Clustered) -> None:
    topics = clustered.topics
    told = read(clustered.cards.files["cards"])
    rows = TokenRows(topics.manifest, topics.blobs, "train")
    meta = rows.meta(np.arange(len(rows)))
    labels = np.concatenate([load_array(topics.blobs.path(d)) for _, d in sorted(clustered.labels.items())])
    assert [card["index"] for card in told["cards"]] == list(range(K))
    for k, card in enumerate(told["cards"]):
        inside = labels == k
        assert (card["rows"], card["tokens"]) == (inside.sum(), meta[inside, 2].sum())
        assert sum(card["sources"].values()) + card["other_sources"] == card["rows"]
        assert list(card["sources"].values()) == sorted(card["sources"].values(), reverse=True)
        assert card["mean_squared_distance"] > 0
    assert sum(card["share"] for card in told["cards"]) == pytest.approx(1.0)
    assert (told["rows"], told["tokens"]) == (len(rows), meta[:, 2].sum())


def test_the_words_and_excerpts_of_a_card_are_those_of_its_topic(clustered: Clustered) -> None:
    seen = set()
    for card in read(clustered.cards.files["cards"])["cards"]:
        source = max(card["sources"], key=card["sources"].get)
        seen.add(source)
        assert set(card["terms"][:5]) <= set(TOPICS[source])
        assert card["name"] == "-".join([f"c{card['index']:03d}", *card["terms"][:2]])
        assert len(card["excerpts"]) == 3
        assert all(set(text.split()) & set(TOPICS[source]) for text in card["excerpts"])
    assert seen == set(TOPICS)


def test_the_excerpts_are_the_rows_nearest_to_the_centroid(
    clustered: Clustered, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sampling.cluster_tree import Tree
    from sampling.cluster_vectors import Vectors

    topics = clustered.topics
    tree = Tree.load(topics.blobs.path(clustered.tree))
    vectors = Vectors([topics.blobs.path(clustered.inputs[f"vectors-{i:05d}"]) for i in range(2)])
    labels = np.concatenate([load_array(topics.blobs.path(d)) for _, d in sorted(clustered.labels.items())]).astype(int)
    rows = TokenRows(topics.manifest, topics.blobs, "train")
    monkeypatch.setattr(cards, "BLOCK", 37)
    found = cards.census(rows, vectors, labels, tree, K)
    distance = ((vectors[:] - tree.levels[0].centroids[labels]) ** 2).sum(axis=1)
    for k in range(K):
        inside = np.flatnonzero(labels == k)
        assert found.nearest[k].tolist() == inside[np.argsort(distance[inside], kind="stable")][:3].tolist()
        assert found.squared[k] == pytest.approx(distance[inside].sum(), rel=1e-5)


def test_the_map_holds_a_sample_of_rows_with_their_domains(clustered: Clustered) -> None:
    told = read(clustered.cards.files["cards"])["map"]
    assert np.array(told["centroids"]).shape == (K, 2)
    assert np.array(told["points"]).shape == (50, 2)
    to_each = ((np.array(told["points"])[:, None] - np.array(told["centroids"])) ** 2).sum(axis=2)
    assert (to_each.argmin(axis=1) == told["point_domains"]).mean() > 0.6


def test_equal_inputs_give_equal_cards(clustered: Clustered) -> None:
    again = clustered.topics.output("eval", clustered.params(), clustered.inputs)
    for name in ("cards", "partition"):
        assert again.files[name].read_bytes() == clustered.cards.files[name].read_bytes()


def test_languages_are_told_where_the_package_is_and_the_reason_where_not(
    clustered: Clustered, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "py3langid", None)
    without = read(clustered.topics.output("eval", clustered.params(), clustered.inputs).files["cards"])
    assert without["language_skipped"] == "py3langid is not installed"
    assert {card["language"] for card in without["cards"]} == {None}
    package = types.ModuleType("py3langid")
    package.classify = lambda text: ("en" if "sail" in text or "the" in text else "fr", -1.0)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "py3langid", package)
    told = read(clustered.topics.output("eval", clustered.params(), clustered.inputs).files["cards"])
    assert told["language_skipped"] is None
    assert {card["language"] for card in told["cards"]} <= {"en", "fr"}


def test_cards_that_would_be_too_large_say_less(clustered: Clustered, monkeypatch: pytest.MonkeyPatch) -> None:
    full = clustered.cards.files["cards"].stat().st_size
    monkeypatch.setattr(cards, "MAX_BYTES", full - 1)
    less = clustered.topics.output("eval", clustered.params(), clustered.inputs).files["cards"]
    assert less.stat().st_size < full
    assert [len(card["excerpts"]) for card in read(less)["cards"]] == [1] * K
    monkeypatch.setattr(cards, "MAX_CARDS", 2)
    done = clustered.topics.output("eval", clustered.params(points=0), clustered.inputs)
    told = read(done.files["cards"])
    largest = sorted(range(K), key=lambda k: (-read(clustered.cards.files["cards"])["cards"][k]["rows"], k))[:2]
    assert [card["index"] for card in told["cards"]] == sorted(largest)
    assert len(told["map"]["centroids"]) == told["listed"] == 2


def test_labels_that_miss_a_part_are_refused(clustered: Clustered) -> None:
    inputs = {name: digest for name, digest in clustered.inputs.items() if name != "labels-00001"}
    with pytest.raises(DataError, match="100 labels, 240 vectors, 240 rows") as caught:
        clustered.topics.output("eval", clustered.params(), inputs)
    assert caught.value.error_id == "data.bad-labels"


def test_words_common_to_all_rank_below_words_of_one() -> None:
    texts = ["common apple apple", "common pear", "common pear plum plum"]
    ranked = top_terms(texts, np.array([0, 2, 2]), 3, 2)
    assert ranked == [["apple", "common"], [], ["pear", "plum"]]
    assert top_terms(["12 + 7", "and the of"], np.array([0, 1]), 2, 3) == [[], []]
    assert top_terms([], np.array([], dtype=np.int64), 1, 3) == [[]]


def test_names_are_numbers_with_words() -> None:
    assert domain_names([["sail", "mast", "deck"], []]) == ("c000-sail-mast", "c001")
    assert domain_names([[]] * 1001)[7] == "c0007"


def test_an_excerpt_is_one_line_without_broken_characters() -> None:
    assert excerpt("\ufffdab\n c\ufffd", 100) == "ab c"
    assert excerpt("a b c", 3) == "a b"


def test_the_map_is_the_plane_of_the_centroids_largest_spread() -> None:
    rng = np.random.default_rng(0)
    centroids = (rng.standard_normal((50, 4)) * np.array([1.0, 9.0, 0.1, 3.0])).astype(np.float32)
    mean, axes = projection(centroids)
    assert np.allclose(mean, centroids.mean(axis=0), atol=1e-5)
    assert np.abs(axes).argmax(axis=0).tolist() == [1, 3]
    assert axes.max(axis=0).min() > 0.9
    assert projection(centroids[:1, :1])[1].shape == (1, 2)
