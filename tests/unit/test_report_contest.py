"""The tables and the page of a run whose result is a contest of models."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pytest

from potluck.errors import DataError
from potluck.formatting import TABLE_WIDTH
from potluck.report.contest import contest_page, contest_report, render_contest, sentence

LEVEL = {"nll": 2.5, "perplexity": 12.18, "bits_per_byte": 1.25}


def science(*models: str, sources: tuple[str, ...] = ("a",), **changes: Any) -> dict[str, Any]:
    levels = dict.fromkeys(models, LEVEL)
    return {
        "models": levels,
        "pairs": {},
        "by_source": {source: {"rows": 9, "models": levels} for source in sources},
        "rows": 9,
        "packs": 3,
        "targets": 4000,
        "split": "test",
        "facts": {"method": "single", "steps": 40, "optimizer": {"name": "adamw", "beta1": 0.9}},
        **changes,
    }


def report(blob: dict[str, Any], *, name: str = "first", curves: dict[str, Any] | None = None) -> Any:
    return contest_report(blob, run="f" * 64, name=name, spec={}, curves=curves or {})


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_tables_tell_each_model_over_all_text_and_by_source() -> None:
    text = render_contest(report(science("model", sources=("law", "mail"))))
    assert "test NLL" in text
    lines = [line.split() for line in text.splitlines()]
    assert ["model", "2.5000", "12.18", "1.2500"] in lines
    assert [line for line in lines if line[:1] in (["law"], ["mail"])] == [
        ["law", "9", "2.5000"],
        ["mail", "9", "2.5000"],
        ["law", "1.2500"],
        ["mail", "1.2500"],
    ]
    page = contest_page(report(science("model", sources=("law",))))
    cells = "".join(f"<td>{cell}</td>" for cell in ("law", "model", "2.5000", "12.18", "1.2500"))
    assert f"<tr>{cells}</tr>" in page


def test_a_report_from_before_bits_per_byte_is_shown_without_them() -> None:
    blob = science("model")
    blob["models"] = {"model": {"nll": 2.5, "perplexity": 12.18}}
    assert ["model", "2.5000", "12.18", "-"] in [line.split() for line in render_contest(report(blob)).splitlines()]


def test_the_tables_have_at_most_80_columns_whatever_the_names() -> None:
    models = tuple(f"a-model-with-a-long-name-{number}" for number in range(5))
    text = render_contest(report(science(*models, sources=("s" * 70, "another-source"))))
    assert max(map(len, text.splitlines())) <= TABLE_WIDTH


def test_a_model_that_blew_up_is_shown_without_a_figure() -> None:
    blob = science("model")
    blob["models"] = {"model": None}
    assert "model         -" in render_contest(report(blob))
    assert "<td>-</td>" in contest_page(report(blob))


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(-0.2, -0.1, "a is better than b"), (0.1, 0.2, "a is worse than b"), (-0.1, 0.1, "undecided")],
)
def test_a_difference_is_told_by_its_interval(low: float, high: float, said: str) -> None:
    value = {"mean": (low + high) / 2, "low": low, "high": high, "smallest_effect": 0.1}
    assert said in sentence("a - b", value)


@pytest.mark.parametrize("value", [None, {"mean": 0.1, "low": None, "high": None, "smallest_effect": None}])
def test_too_little_text_decides_nothing(value: Any) -> None:
    assert "too little text" in sentence("a - b", value)


def test_the_page_escapes_every_name_and_loads_nothing() -> None:
    evil = "<script>x</script>"
    blob = science(evil, sources=("<i>",), facts={"method": "single", "<u>": "<s>"})
    text = contest_page(report(blob, name="<b>&", curves={"<em>": [[1, 3.0], [2, 2.5]]}))
    tags = _Tags()
    tags.feed(text)
    assert not {"script", "i", "u", "s", "b", "em", "link", "img"} & {tag for tag, _ in tags.found}
    assert not any({"src", "href"} & set(attributes) for _, attributes in tags.found)
    assert "&lt;b&gt;&amp;" in text


@pytest.mark.parametrize("key", ["models", "facts", "split"])
def test_a_blob_that_is_no_contest_is_refused_by_the_missing_key(key: str) -> None:
    blob = science("model")
    del blob[key]
    with pytest.raises(DataError, match=key):
        report(blob)
