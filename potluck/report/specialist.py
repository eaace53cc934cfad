"""What a person reads about a specialist: how it does beside the generalist, on what, and what that rests on."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from html import escape
from typing import Any

from potluck.formatting import TABLE_WIDTH, format_table, human_count
from potluck.report import svg
from potluck.report.contest import UNITS, bits_rows, level_cells, shown_fact, source_rows, source_table
from potluck.report.page import facts, page, section, table

SPECIALIST, GENERALIST = "specialist", "generalist"
PAIR = f"{SPECIALIST} - {GENERALIST}"
TUNED = "fine-tuned"
TUNED_PAIR = f"{SPECIALIST} {TUNED} - {GENERALIST} {TUNED}"
GOOD_REPEATS = 4.0
"""Reading text more often is worth clearly less than new text (2305.16264)."""
MIN_PACKS = 6
"""Independent pieces of text: of fewer, all fall on one side by chance more often than in one case of 20."""
EXPLAINED = {
    "windows": "pieces of the target's training text, placed in the corpus' clusters",
    "effective clusters": "as many equal ones would be as hard to estimate; there should be far more windows",
    "expected noise": "how far the histogram is off by chance, in L1 distance, of at most 2",
    "repeats": f"how often the specialist reads its text; above {GOOD_REPEATS:g} on average that is worth clearly less",
    "unplaced": "share of the target further out than nearly all of the corpus: text the corpus does not have",
    "near-duplicates": "rows of the corpus that hold the target's test text; neither model has seen them",
}


def render_specialist(report: Mapping[str, Any]) -> str:
    """Plain text of at most 80 columns."""
    report = _specialist_first(report)
    blocks = [format_table(["model", "text of the", "test NLL", *UNITS], result_rows(report), left=2)]
    if len(report["by_source"]) > 1:
        blocks.append(format_table(["target's source, NLL", "rows", *report["models"]], source_rows(report)))
        blocks.append(format_table(["target's source, bits/byte", *report["models"]], bits_rows(report)))
    blocks.append("\n".join(textwrap.fill(line, TABLE_WIDTH) for line in sentences(report)))
    return "\n\n".join(blocks)


def specialist_page(report: Mapping[str, Any]) -> str:
    """report.html as text."""
    report = _specialist_first(report)
    told = sentences(report)
    names = list(report["models"])
    groups = {
        source: {model: _nll(values["models"].get(model)) for model in names}
        for source, values in report["by_source"].items()
    }
    curves = {name: [(float(x), float(y)) for x, y in line] for name, line in report["curves"].items() if line}
    columns = ["model", "text of the", "nats per token", *UNITS]
    note = (
        f'<p class="quiet">Nats per token on held-out test text; lower is better. The target: '
        f"{human_count(report['targets'])} tokens in {report['packs']} packs of rows, the unit of the interval.</p>"
    )
    body = [
        f"<h1>{escape(report['name'])}</h1>",
        f'<p class="verdict">{escape(told[0])}</p>',
        f'<p class="quiet">Run <code>{escape(report["run"][:12])}</code>. Both models have the same size, start alike '
        "and read equally many tokens.</p>",
        section(
            "Result",
            table(columns, result_rows(report)) + note + "".join(f"<p>{escape(line)}</p>" for line in told[1:]),
        ),
        section("What it rests on", _histogram_section(report)),
        section(
            "By the target's sources",
            svg.grouped_bars(groups, y_label="nats per token") + svg.legend(names) + source_table(report),
        )
        if len(groups) > 1
        else "",
        section(
            "Loss while training",
            svg.line_chart(curves, x_label="step", y_label="nats per token")
            + svg.legend(list(curves))
            + '<p class="quiet">Each on the text it reads itself: the two lines are not a comparison.</p>',
        ),
        section("How it was run", facts(_run_facts(report))),
    ]
    return page(f"Potluck: {report['name']}", "".join(body))


def sentences(report: Mapping[str, Any]) -> list[str]:
    """The verdict, and what else the intervals say; never rounded to a win."""
    told = [verdict(report["pairs"].get(PAIR), report)]
    if TUNED_PAIR in report["pairs"]:
        told.append(
            "After fine-tuning both on the target: " + difference(report["pairs"][TUNED_PAIR], report["packs"]) + "."
        )
    general = (report["facts"].get("on_the_corpus") or {}).get("pairs") or {}
    if PAIR in general:
        told.append("On the corpus' own test text: " + difference(general[PAIR]) + ".")
    return told


def verdict(pair: Mapping[str, Any] | None, report: Mapping[str, Any]) -> str:
    """One sentence: better or not, by how much, and what so much text could have shown."""
    if pair is None:
        return "Not shown to be better: a model's loss is not finite."
    if pair["low"] is None or report["packs"] < MIN_PACKS:
        return (
            f"Not shown to be better: {pair['mean']:+.4f} nats a token on held-out target text, but its "
            f"{report['packs']} independent piece(s) are too few for an interval ({MIN_PACKS} are needed); "
            "give more target text."
        )
    interval = f"{report['bootstrap']['confidence']:.0%} interval [{pair['low']:+.4f}, {pair['high']:+.4f}]"
    seen = f"so much text shows differences from {pair['smallest_effect']:.4f} on"
    if pair["high"] < 0:
        less = 1 - math.exp(pair["mean"])
        return (
            f"The specialist is better on held-out target text: {pair['mean']:+.4f} nats a token, "
            f"{less:.1%} less perplexity, {interval}; {seen}."
        )
    if pair["low"] > 0:
        return (
            f"The specialist is not better on held-out target text but worse: {pair['mean']:+.4f} nats a token, "
            f"{interval}; {seen}."
        )
    return (
        f"The specialist is not shown to be better on held-out target text: {pair['mean']:+.4f} nats a token, "
        f"{interval}; {seen}."
    )


def difference(pair: Mapping[str, Any] | None, packs: int = MIN_PACKS) -> str:
    """The specialist's difference from the generalist in words."""
    if pair is None or pair["low"] is None or packs < MIN_PACKS:
        return "too little text for an interval"
    word = "better" if pair["high"] < 0 else "worse" if pair["low"] > 0 else "not clearly different"
    interval = f"[{pair['low']:+.4f}, {pair['high']:+.4f}]"
    return f"the specialist is {word}, {pair['mean']:+.4f} nats a token, interval {interval}"


def result_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """Each model on the target's test text, then on the corpus'."""
    general = (report["facts"].get("on_the_corpus") or {}).get("models") or {}
    texts = {"target": report["models"], "corpus": general}
    return [[name, text, *level_cells(models[name])] for text, models in texts.items() for name in models]


def histogram_rows(histogram: Mapping[str, Any], duplicates: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """What is known before anything is trained; names are keys of `EXPLAINED`."""
    unplaced = histogram.get("unplaced")
    rows = [
        ("windows", f"{histogram['windows']:,} in {histogram['occupied_domains']} of {histogram['domains']} clusters"),
        ("effective clusters", f"{histogram['effective_domains']:.1f}"),
        ("expected noise", f"{histogram['expected_noise']:.2f}"),
        ("repeats", f"{histogram['repeats']:.2f} on average, {histogram['max_repeats']:.1f} in one cluster"),
        ("unplaced", "-" if unplaced is None else f"{unplaced:.1%}"),
    ]
    if duplicates is not None:
        counted = f"{duplicates['excluded']:,} of {duplicates['rows']:,} rows left out"
        rows.append(("near-duplicates", counted))
    return rows


def fewer_steps(histogram: Mapping[str, Any], steps: int) -> int | None:
    """So many steps would read the text `GOOD_REPEATS` times; None where it is not read more often."""
    repeats = histogram["repeats"]
    return max(1, int(steps * GOOD_REPEATS / repeats)) if repeats > GOOD_REPEATS else None


def _specialist_first(report: Mapping[str, Any]) -> dict[str, Any]:
    """Models and curves in one order, so that a model has one colour everywhere."""
    order = (SPECIALIST, GENERALIST, f"{SPECIALIST} {TUNED}", f"{GENERALIST} {TUNED}")
    sorted_parts = {
        part: {name: report[part][name] for name in order if name in report[part]} for part in ("models", "curves")
    }
    return {**report, **sorted_parts}


def _histogram_section(report: Mapping[str, Any]) -> str:
    known = report["facts"]
    rows = [
        f'<tr><td>{escape(name)}</td><td>{escape(value)}</td><td class="wrap quiet">{escape(EXPLAINED[name])}</td></tr>'
        for name, value in histogram_rows(known["histogram"], known.get("near_duplicates"))
    ]
    warnings = "".join(f"<li>{escape(str(text))}</li>" for text in known["histogram"].get("warnings") or [])
    mind = f'<p>Mind:</p><ul class="quiet">{warnings}</ul>' if warnings else ""
    return f'<div class="scroll"><table>{"".join(rows)}</table></div>{mind}'


def _run_facts(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    hidden = ("histogram", "near_duplicates", "on_the_corpus")
    return [(key, escape(shown_fact(value))) for key, value in report["facts"].items() if key not in hidden]


def _nll(level: Mapping[str, Any] | None) -> float | None:
    return None if level is None else level["nll"]
