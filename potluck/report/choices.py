"""Reports of multiple-choice questions that models answered by likelihood (`sampling.choices`)."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from html import escape
from typing import Any

from potluck.formatting import TABLE_WIDTH, format_table
from potluck.report import svg
from potluck.report.page import facts, page, section, table

METRICS = ("acc", "acc_norm", "acc_bytes")
EXPLAINED = {
    "acc": "share of questions whose right choice is the likeliest",
    "acc_norm": "the same by likelihood per character of the choice",
    "acc_bytes": "the same by likelihood per byte of the choice",
}


def render_choices(report: Mapping[str, Any]) -> str:
    """Plain text of at most 80 columns."""
    blocks = [format_table(["model", *METRICS], model_rows(report), title=_title(report))]
    if len(report["by_group"]) > 1:
        columns = ["acc by group", "questions", "chance", *report["names"]]
        blocks.append(format_table(columns, group_rows(report)))
    blocks.append("\n".join(textwrap.fill(line, TABLE_WIDTH) for line in sentences(report)))
    return "\n\n".join(blocks)


def choices_page(report: Mapping[str, Any]) -> str:
    """report.html as text."""
    names = report["names"]
    groups = {
        group: {name: _mean(values["models"][name]) for name in names} for group, values in report["by_group"].items()
    }
    rows = [
        [group, str(values["questions"]), f"{values['chance']:.3f}", name, *_cells(values["models"][name])]
        for group, values in report["by_group"].items()
        for name in names
    ]
    told = "".join(f"<p>{escape(line)}</p>" for line in sentences(report))
    body = [
        f"<h1>{escape(report['name'])}</h1>",
        f'<p class="quiet">{escape(_title(report))} Run <code>{escape(report["run"][:12])}</code>.</p>',
        section("Result", table(["model", *METRICS], model_rows(report)) + told),
        section(
            "By group",
            svg.grouped_bars(groups, y_label="acc")
            + svg.legend(names)
            + table(["group", "questions", "chance", "model", *METRICS], rows),
        ),
        section("What the figures are", facts([(key, escape(text)) for key, text in EXPLAINED.items()])),
    ]
    return page(f"Potluck: {report['name']}", "".join(body))


def model_rows(report: Mapping[str, Any]) -> list[list[str]]:
    return [[name, *_cells(report["models"][name])] for name in report["names"]]


def group_rows(report: Mapping[str, Any]) -> list[list[str]]:
    return [
        [group, str(values["questions"]), f"{values['chance']:.3f}", *(_acc(values, name) for name in report["names"])]
        for group, values in report["by_group"].items()
    ]


def sentences(report: Mapping[str, Any]) -> list[str]:
    """Each model against chance, models against each other, and what was cut: never rounded to a win."""
    told = [_against_chance(name, report["models"][name], report["chance"]) for name in report["names"]]
    told += [_difference(pair, value) for pair, value in report["pairs"].items()]
    if report["cut"]:
        told.append(f"{report['cut']} of {report['choices']} choices did not fit: their contexts lost their beginning.")
    if report["routing"] is not None:
        told.append(f"Questions by expert: {', '.join(map(str, report['routing']['shares']))}.")
    return told


def _title(report: Mapping[str, Any]) -> str:
    confidence = report["bootstrap"]["confidence"]
    return (
        f"{report['questions']} questions, {report['choices']} choices, chance {report['chance']:.3f}; "
        f"{confidence:.0%} intervals."
    )


def _against_chance(name: str, level: Mapping[str, Any] | None, chance: float) -> str:
    if level is None:
        return f"{name} blew up: no figures."
    acc = level["acc"]
    if acc["low"] > chance:
        return f"{name} is better than chance (acc)."
    if acc["high"] < chance:
        return f"{name} is worse than chance (acc)."
    return f"{name} is not told apart from chance by so few questions (acc)."


def _difference(pair: str, value: Mapping[str, Any] | None) -> str:
    first, second = pair.split(" - ")
    if value is None or value["acc"]["low"] is None:
        return f"{first} against {second}: no interval."
    acc = value["acc"]
    verdict = "is better than" if acc["low"] > 0 else "is worse than" if acc["high"] < 0 else "is undecided against"
    return f"{first} {verdict} {second}: acc {acc['mean']:+.3f}, interval [{acc['low']:+.3f}, {acc['high']:+.3f}]."


def _cells(level: Mapping[str, Any] | None) -> list[str]:
    if level is None:
        return ["-"] * len(METRICS)
    return [f"{level[key]['mean']:.3f} [{level[key]['low']:.3f}, {level[key]['high']:.3f}]" for key in METRICS]


def _acc(values: Mapping[str, Any], name: str) -> str:
    mean = _mean(values["models"][name])
    return "-" if mean is None else f"{mean:.3f}"


def _mean(level: Mapping[str, Any] | None) -> float | None:
    return None if level is None else float(level["acc"]["mean"])
