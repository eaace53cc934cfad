"""The page and the tables of a soup run."""

from __future__ import annotations

from typing import Any

from potluck.report.soup import matrix_of, render_soup, sentences, soup_page

SOURCES = ("code", "law", "verse")


def level(nll: float) -> dict[str, float]:
    return {"nll": nll, "perplexity": 2.0, "bits_per_byte": nll / 2}


def report(*, right: float = 2.0, wrong: float = 3.0) -> dict[str, Any]:
    """A soup of three sources; `right` on a source's own text, `wrong` on the others'."""
    names = [f"soup for {name}" for name in SOURCES]
    models = {name: level(2.7) for name in [*names, "soup", "generic", "constant"]}
    difference = {"mean": -0.5, "low": -0.6, "high": -0.4, "smallest_effect": 0.1}
    by_source = {
        source: {
            "rows": 9,
            "models": {
                **{f"soup for {name}": level(right if name == source else wrong) for name in SOURCES},
                **{name: level(2.5) for name in ("soup", "generic", "constant")},
            },
            "pairs": {f"soup for {source} - {other}": difference for other in ("soup", "generic", "constant")},
        }
        for source in SOURCES
    }
    config = {"experts": 8, "rank": 0, "coefficients": "mlp", "domains": 3}
    return {
        "name": "a soup",
        "run": "f" * 64,
        "split": "test",
        "targets": 1000,
        "packs": 12,
        "models": models,
        "pairs": {},
        "by_source": by_source,
        "curves": {"soup": [[0, 4.0], [10, 3.0]]},
        "facts": {
            "method": "soup",
            "steps": 100,
            "soup": {"config": config, "bank_parameters": 1000, "traffic_bytes": 10_000},
            "targets": {"sources": list(SOURCES), "windows": [5, 6, 7], "expected_noise": [0.1, 0.2, 0.3]},
        },
    }


def test_the_matrix_counts_texts_whose_own_mixture_is_best() -> None:
    assert matrix_of(report()).right == 3
    assert matrix_of(report(right=3.0, wrong=2.0)).right == 0


def test_a_soup_that_does_not_specialise_is_told_as_such() -> None:
    assert sentences(report(right=3.0, wrong=2.0))[0].startswith("On 0 of 3 sources")


def test_a_source_without_test_text_is_left_out_of_the_matrix() -> None:
    told = report()
    told["by_source"]["verse"]["models"] = {}
    assert matrix_of(told).sources == ("code", "law")


def test_the_tables_of_a_soup_fit_eighty_columns_and_mark_the_best() -> None:
    text = render_soup(report())
    assert max(len(line) for line in text.splitlines()) <= 80
    assert text.count("2.00*") == 3
    assert text.count("-0.500±0.100") == 9
    assert ["code", "1.0000", "1.2500", "1.2500", "1.2500"] in [line.split() for line in text.splitlines()]


def test_a_difference_whose_interval_holds_zero_is_marked() -> None:
    told = report()
    told["by_source"]["law"]["pairs"]["soup for law - generic"] = {"mean": -0.1, "low": -0.3, "high": 0.1}
    assert "-0.100±0.200?" in render_soup(told)


def test_the_page_of_a_soup_draws_every_mixture_on_every_text() -> None:
    page = soup_page(report())
    for mixture in SOURCES:
        for text in SOURCES:
            assert f"the mixture of {mixture} on text of {text}: " in page
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")


def test_names_from_the_corpus_are_escaped_in_the_page() -> None:
    told = report()
    text = str(told).replace("law", "<law>")
    assert "<law>" not in soup_page(eval(text))
