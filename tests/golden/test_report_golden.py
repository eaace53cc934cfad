"""A report of version 1 is read by today's code."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from potluck.formatting import TABLE_WIDTH
from potluck.report.html import render_page
from potluck.report.schema import check_report
from potluck.report.table import render

REPORT: dict[str, Any] = json.loads((Path(__file__).parent / "report_v1.json").read_text())


class _Balanced(HTMLParser):
    """Collects what is open, and everything that would make a reader fetch something."""

    VOID = frozenset({"meta", "rect", "line", "polyline", "circle"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [f"{tag} {name}={value}" for name, value in attrs if name in ("src", "href", "srcset")]
        if tag in ("script", "link", "iframe", "img"):
            self.fetched.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_a_report_of_version_1_passes_the_schema() -> None:
    check_report(REPORT)


def test_its_table_fits_80_columns() -> None:
    assert max(len(line) for line in render(REPORT).splitlines()) <= TABLE_WIDTH


def test_bits_per_byte_that_it_does_not_have_are_told_by_later_reports_of_its_version() -> None:
    report = json.loads(json.dumps(REPORT))
    assert "  -" in render(report).splitlines()[4]
    for line in (report, *report["by_source"].values()):
        for side in ("mixture", "dense", "random_split", "oracle"):
            line[side] |= {"bits_per_byte_all": 2.125, "bits_per_byte_suffix": 2.0625}
    report["target_bytes"] = {"all": 900, "prefix": 200, "suffix": 700}
    check_report(report)
    first = next(line for line in render(report).splitlines() if line.startswith("mixture"))
    assert ("2.0625" in first, "2.1250" in first) == (True, True)
    assert max(len(line) for line in render(report).splitlines()) <= TABLE_WIDTH
    assert "<td>2.0625</td>" in render_page(report)


def test_its_page_is_balanced_and_loads_nothing() -> None:
    parser = _Balanced()
    page = render_page(REPORT)
    parser.feed(page)
    assert not parser.open
    assert not parser.fetched
    assert "url(" not in page
    assert "@import" not in page


def test_its_page_has_light_and_dark() -> None:
    assert "prefers-color-scheme: dark" in render_page(REPORT)


@pytest.mark.parametrize("side", ["dense", "random_split"])
def test_a_run_without_an_opponent_has_table_and_page_too(side: str) -> None:
    report = json.loads(json.dumps(REPORT))
    report[side] = report["mixture_minus_dense"] = None
    for line in report["by_source"].values():
        line[side] = None
    check_report(report)
    assert render(report)
    assert render_page(report)


def test_names_of_sources_cannot_break_the_page() -> None:
    report = json.loads(json.dumps(REPORT))
    report["by_source"]["<script>alert(1)</script>"] = report["by_source"].pop("legal")
    report["name"] = "<b>"
    assert "<script>" not in render_page(report)
    assert "<b>" not in render_page(report)
