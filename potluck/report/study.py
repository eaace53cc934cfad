"""results.json and report.html of a reproduction: the verdict of each claim first, then what it rests on."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from typing import Any

from potluck.formatting import TABLE_WIDTH, format_table, human_count, human_seconds
from potluck.ids import short
from potluck.lab.study import Budget, Found, Lines, Plot, Study
from potluck.report import svg
from potluck.report.page import facts, page, section, table
from potluck.specs.run import DEFAULT_METHOD

SCHEMA_VERSION = 1
MARKS = {"held": "✓", "not held": "✗", "not decidable": "·"}


def study_report(
    study: Study,
    budget: Budget,
    found: Mapping[str, Found],
    *,
    machine: Mapping[str, Any],
    cost: Mapping[str, Any],
    repeat: str,
) -> dict[str, Any]:
    """What results.json holds; docs/reproduce.md lists its keys.

    Args:
        found: every cell that the study wanted, by key.
        machine: the coordinator's and its nodes', names and versions.
        cost: expected and taken.
        repeat: the command that does it again.
    """
    cells = [found[cell.key] for cell in study.cells(budget, found)]
    return {
        "schema_version": SCHEMA_VERSION,
        "study": study.name,
        "paper": study.paper,
        "title": study.title,
        "budget": asdict(budget),
        "claims": [asdict(judgement) for judgement in study.claims(budget, found)],
        "tables": [asdict(one) for one in study.tables(budget, found)],
        "plots": [{"kind": _kind(plot), **asdict(plot)} for plot in study.plots(budget, found)],
        "quoted": [asdict(one) for one in study.quoted],
        "cells": [_cell(one) for one in cells],
        "machine": dict(machine),
        "cost": dict(cost),
        "repeat": repeat,
    }


def render_study(report: Mapping[str, Any]) -> str:
    """Plain text of at most 80 columns."""
    rows = [[one["claim"], one["verdict"], *_effect(one)] for one in report["claims"]]
    lines = [format_table(["claim", "verdict", "effect", "interval", "smallest"], rows, left=2), ""]
    for one in report["claims"]:
        words = f"{one['claim']}: {one['words']}. {_units(one)}"
        lines.append(textwrap.fill(words, TABLE_WIDTH, subsequent_indent="  "))
    lines += ["", *(textwrap.fill(remark, TABLE_WIDTH) for remark in remarks(report))]
    return "\n".join(lines)


def remarks(report: Mapping[str, Any]) -> list[str]:
    """What a reader must know beside the verdicts."""
    budget, cells = report["budget"], report["cells"]
    told = [f"{len(cells)} cells, {len(budget['seeds'])} seed(s), up to {human_count(_trained(report))} tokens a side."]
    if len(budget["seeds"]) == 1:
        told.append("One seed: it shows that everything runs, and makes no claim.")
    else:
        told.append(
            "Effects are means over seeds with 95% t intervals, on one division of the text; an effect below the "
            "smallest that could be seen is not decided."
        )
    failed = [f"{cell['key']} {cell['state']}: {cell['reason']}" for cell in cells if cell["state"] != "finished"]
    return [*told, *(f"Without a figure: {one}." for one in failed)]


def study_page(report: Mapping[str, Any]) -> str:
    """report.html as text."""
    head = [
        f"<h1>{escape(report['title'])}</h1>",
        f'<p class="quiet">arXiv {escape(report["paper"])} at small scale, budget {escape(report["budget"]["name"])}. '
        "Nothing here was trained or scored outside a run.</p>",
        *(f"<p>{escape(remark)}</p>" for remark in remarks(report)),
    ]
    verdicts = [
        [f"{MARKS[one['verdict']]} {one['verdict']}", f"{one['claim']}. {one['words']}", *_effect(one)]
        for one in report["claims"]
    ]
    columns = ["verdict", "claim", "effect", "interval", "smallest seen"]
    quoted = [(one["what"], escape(one["value"])) for one in report["quoted"]]
    body = [
        *head,
        section("Verdicts", _wide(columns, verdicts) + _units_note(report)),
        *(section(_titled(one["claim"]), _claim(one)) for one in report["claims"]),
        *(section(plot["title"], _plot(plot)) for plot in report["plots"]),
        *(section(one["title"], _table(one)) for one in report["tables"]),
        section("What the paper reports", facts(quoted)) if quoted else "",
        section("Cells", _cells(report["cells"])),
        section("Machine and cost", facts(_circumstances(report))),
        section("Again", f"<p><code>{escape(report['repeat'])}</code></p>"),
    ]
    return page(f"Potluck: {report['title']}", "".join(body))


def _kind(plot: Plot) -> str:
    return "lines" if isinstance(plot, Lines) else "bars"


def _cell(found: Found) -> dict[str, Any]:
    kept = {key: value for key, value in found.results.items() if key != "lineages"}
    return {
        "key": found.cell.key,
        "run": found.run,
        "state": found.state,
        "reason": found.reason,
        "method": str(found.cell.body.get("method", DEFAULT_METHOD)),
        "data": found.cell.data,
        "target": list(found.cell.target),
        "spec": dict(found.cell.body),
        "seconds": round(found.seconds, 1),
        "figures": kept,
    }


def _trained(report: Mapping[str, Any]) -> int:
    return max((one["tokens"] for one in report["claims"]), default=0)


def _effect(one: Mapping[str, Any]) -> list[str]:
    bounded = one["low"] is not None and one["high"] is not None
    return [
        _number(one["effect"]),
        f"[{one['low']:+.4f}, {one['high']:+.4f}]" if bounded else "-",
        "-" if one["smallest_effect"] is None else f"{one['smallest_effect']:.4f}",
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:+.4f}"


def _units(one: Mapping[str, Any]) -> str:
    return f"[{one['unit']}, {one['seeds']} seed(s)]" if one["effect"] is not None else "[not measured]"


def _units_note(report: Mapping[str, Any]) -> str:
    units = dict.fromkeys(one["unit"] for one in report["claims"] if one["effect"] is not None)
    return f'<p class="quiet">Effects in {escape(", ".join(units))}.</p>' if units else ""


def _titled(claim: str) -> str:
    return f"Claim {claim}" if claim[:1].isdigit() else _sentence(claim)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _claim(one: Mapping[str, Any]) -> str:
    effect, interval, smallest = _effect(one)
    told = f"{effect} {one['unit']}, interval {interval}, smallest effect {smallest}, {one['seeds']} seed(s)"
    measured = (
        f"<p>{escape(told)}; {human_count(one['tokens'])} tokens a side.</p>" if one["effect"] is not None else ""
    )
    numbers = list(one["numbers"])
    rows = [[_shown(value) for value in row.values()] for row in numbers]
    by_seed = table(list(numbers[0]), rows) if numbers else ""
    verdict = f'<p class="verdict">{MARKS[one["verdict"]]} {escape(one["verdict"])}: {escape(one["words"])}.</p>'
    return f'{verdict}{measured}<p class="quiet">{escape(_sentence(one["note"]))}.</p>{by_seed}'


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) and abs(value) < 1e-2 else _fixed(value)


def _fixed(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _table(one: Mapping[str, Any]) -> str:
    rows = [[_shown(value) for value in row] for row in one["rows"]]
    note = f'<p class="quiet">{escape(one["note"])}</p>' if one["note"] else ""
    return table(list(one["columns"]), rows) + note


def _wide(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose second column is a sentence and wraps."""
    wraps = ("", ' class="wrap"')
    head = "".join(f"<th{wraps[at == 1]}>{escape(column)}</th>" for at, column in enumerate(columns))
    cells = ("".join(f"<td{wraps[at == 1]}>{escape(cell)}</td>" for at, cell in enumerate(row)) for row in rows)
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _plot(plot: Mapping[str, Any]) -> str:
    if plot["kind"] == "bars":
        names = list(dict.fromkeys(name for members in plot["groups"].values() for name in members))
        return svg.grouped_bars(plot["groups"], y_label=plot["y_label"]) + svg.legend(names)
    lines = {name: [(float(x), float(y)) for x, y in line] for name, line in plot["series"].items() if line}
    chart = svg.line_chart(
        lines,
        x_label=plot["x_label"],
        y_label=plot["y_label"],
        x_log=plot["x_log"] and all(x > 0 for line in lines.values() for x, _ in line),
        dots=max((len(line) for line in lines.values()), default=0) <= 16,
    )
    return chart + svg.legend(list(lines))


def _cells(cells: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [one["key"], one["method"], short(one["run"]), one["state"], human_seconds(one["seconds"])] for one in cells
    ]
    return table(["cell", "method", "spec digest", "state", "by the clock"], rows)


def _circumstances(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    cost = report["cost"]
    taken = f"{human_seconds(cost['core_s'])} of cores in {human_seconds(cost['wall_s'])}, {cost['calls']} call(s)"
    told = [("expected", f"{human_seconds(cost['expected_core_s'])} of one core"), ("taken", taken)]
    machine = [(name, escape(str(value))) for name, value in report["machine"].items()]
    return [*machine, *((name, escape(value)) for name, value in told)]
