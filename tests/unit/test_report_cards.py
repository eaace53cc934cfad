"""What a person sees of clusters: in 80 columns, and on a page that is safe whatever the corpus holds."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import pytest

from potluck.errors import DataError
from potluck.formatting import TABLE_WIDTH
from potluck.report.cards import CARDS_SHOWN, LISTED, cards_page, cards_report, cluster_map, render_cards

NASTY = '<script>alert("x")</script> & more'


def card(index: int, rows: int, **changes: Any) -> dict[str, Any]:
    return {
        "index": index,
        "name": f"c{index:03d}-word-other",
        "rows": rows,
        "tokens": rows * 32,
        "share": rows / 1000,
        "mean_squared_distance": 0.5 if rows else None,
        "terms": ["word", "other", "third", "fourth"],
        "excerpts": ["a typical row"],
        "sources": {"a": rows // 4, "b": rows - rows // 4} if rows else {},
        "other_sources": 0,
        "language": None,
    } | changes


def report(*cards: dict[str, Any], points: int = 12) -> dict[str, Any]:
    blob = {
        "domains": len(cards),
        "listed": len(cards),
        "rows": 1000,
        "tokens": 32_000,
        "language_skipped": "py3langid is not installed",
        "map": {
            "centroids": [[float(c["index"]), 1.0] for c in cards],
            "points": [[i / 3, -i % 5 / 2] for i in range(points)],
            "point_domains": [i % len(cards) for i in range(points)],
        },
        "cards": list(cards),
    }
    return cards_report(blob, run="f" * 64, name="corpus", spec={})


@pytest.mark.parametrize("width", [3, 200])
def test_the_table_fits_80_columns_and_has_the_largest_first(width: int) -> None:
    found = report(card(0, 100), card(1, 900, name="n" * width, sources={"s" * width: 900}))
    lines = render_cards(found).splitlines()
    assert max(map(len, lines)) <= TABLE_WIDTH
    rows = [line.split()[-2] for line in lines[4:]]
    assert rows == ["900", "100"]


def test_a_row_has_the_words_that_the_name_has_not_and_the_largest_source_first() -> None:
    line = render_cards(report(card(0, 1000))).splitlines()[-1]
    assert "third, fourth" in line
    assert "b 75%, a 25%" in line
    assert line.endswith("1000  100.0%")


def test_only_the_largest_are_listed_unless_all_are_wanted() -> None:
    found = report(*(card(i, 10) for i in range(LISTED + 5)))
    assert render_cards(found).endswith("and 5 smaller ones")
    assert len(render_cards(found, everything=True).splitlines()) == LISTED + 5 + 4


def test_an_empty_cluster_is_counted_and_breaks_nothing() -> None:
    found = report(card(0, 1000), card(1, 0, terms=[], excerpts=[]))
    assert "2 clusters, 1 of them empty" in render_cards(found)
    assert 'id="c1"' in cards_page(found)


def test_text_of_the_corpus_is_escaped_wherever_it_stands() -> None:
    nasty = card(0, 1000, name=NASTY, terms=[NASTY] * 3, excerpts=[NASTY], sources={NASTY: 1000})
    text = cards_page({**report(nasty), "name": NASTY})
    assert "<script" not in text
    assert "&lt;script&gt;" in text


def test_the_page_loads_nothing_and_runs_nothing() -> None:
    text = cards_page(report(card(0, 600), card(1, 400)))
    assert not re.search(r"https?://|<script|<link|@import|url\(", text)
    assert "prefers-color-scheme: dark" in text


def test_the_map_has_a_dot_for_every_row_of_the_sample_inside_the_drawing_and_titles_it() -> None:
    drawing = ElementTree.fromstring(cluster_map(report(card(0, 600), card(1, 400), points=30)))
    width, height = map(float, drawing.attrib["viewBox"].split()[2:])
    groups = [group for group in drawing.iter("g") if group.attrib["class"] == "point"]
    dots = [dot for group in groups for dot in group.iter("circle")]
    assert len(dots) == 30
    assert all(0 <= float(dot.attrib["cx"]) <= width and 0 <= float(dot.attrib["cy"]) <= height for dot in dots)
    assert [group.findtext("title") for group in groups] == [
        f"c{i:03d}-word-other: word, other, third, fourth" for i in (0, 1)
    ]
    assert len({group.attrib["style"] for group in groups}) == 2
    assert {link.attrib["href"] for link in drawing.iter("a")} == {"#c0", "#c1"}


def test_a_map_of_one_place_or_of_nothing_is_drawn() -> None:
    found = report(card(0, 1000), points=1)
    assert "nan" not in cluster_map(found)
    assert "no rows" in cluster_map(report(card(0, 1000), points=0))


def test_very_many_clusters_are_all_in_the_table_and_the_largest_have_cards() -> None:
    text = cards_page(report(*(card(i, i) for i in range(CARDS_SHOWN + 10))))
    assert text.count("<article") == CARDS_SHOWN
    assert "c000-word-other" in text
    assert "10 smaller clusters" in text


def test_what_is_no_cards_is_refused() -> None:
    with pytest.raises(DataError, match="cards, domains"):
        cards_report({"models": {}}, run="r", name="n", spec={})
