"""The table and the page of a sweep: chosen on valid text, test text beside it, nothing that failed left out."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from potluck.formatting import TABLE_WIDTH, format_table, human_count
from potluck.ids import short
from potluck.lm.flops import train_flops
from potluck.report import svg
from potluck.report.page import facts, page, section, table
from potluck.sizing import cost_of
from potluck.specs.run import RunSpec
from potluck.specs.single import SingleSpec
from potluck.specs.smalltalk import SmallTalkSpec
from potluck.sweeps import RATE, SEED, SHORT, Axis, Cell, shown

SCHEMA_VERSION = 1
TITLE = "NLL on held-out text, nats per token, best first."
FINISHED, DIVERGED = "finished", "diverged"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a cell's run."""

    cell: Cell
    run: str
    state: str
    """As `run status` has it."""
    reason: str
    results: Mapping[str, Any]
    """The run's small figures."""


def sweep_report(name: str, axes: Sequence[Axis], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What sweep.json holds. Settings are cells but for their seed; those with figures come first, best first."""
    cells = [_cell(outcome) for outcome in outcomes]
    groups: dict[str, list[dict[str, Any]]] = {}
    for cell in cells:
        groups.setdefault(_label(axes, cell["values"]), []).append(cell)
    settings = [_setting(label, group) for label, group in groups.items()]
    settings.sort(key=lambda one: (one["valid_nll"] is None, one["valid_nll"] or 0.0))  # stable: of equals the earlier
    best = settings[0] if settings[0]["valid_nll"] is not None else None
    return {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "method": outcomes[0].cell.draft.method,
        "axes": [{"name": axis.name, "keys": list(axis.keys), "values": list(axis.values)} for axis in axes],
        "seeds": max(len(group) for group in groups.values()),
        "best": best and best["label"],
        "edges": _edges(axes, best["values"]) if best else [],
        "settings": settings,
        "cells": cells,
    }


def figures_of(results: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """NLL on valid and test text in nats per token, None where the model blew up.

    A single model's over all targets; a mixture's, routed, over the targets after the prefix.
    """
    if "search" in results:
        mixture = results["headline"].get("mixture") or {}
        return results["search"]["experts"][0]["valid_nll_suffix"], mixture.get("nll_suffix")
    headline = results.get("headline", {})
    levels = [headline.get(split, {}).get("models", {}).get("model") or {} for split in ("valid", "test")]
    return levels[0].get("nll"), levels[1].get("nll")


def render_sweep(report: Mapping[str, Any]) -> str:
    """Plain text of at most 80 columns."""
    columns, rows = _columns(report), _rows(report)
    told = [*remarks(report), *failures(report)]
    lines = [format_table(columns, rows, left=len(_varied(report)), title=TITLE), ""]
    return "\n".join([*lines, *(textwrap.fill(line, TABLE_WIDTH, break_on_hyphens=False) for line in told)])


def remarks(report: Mapping[str, Any]) -> Iterator[str]:
    """What a reader must know beside the table."""
    best = report["settings"][0]
    if report["best"] is None:
        yield "No cell has a figure on valid text."
    else:
        test = "-" if best["test_nll"] is None else f"{best['test_nll']:.4f}"
        yield f"Best on valid text: {best['label']}, NLL {best['valid_nll']:.4f}; on test text {test}."
    if report["edges"]:
        ends = [f"{_words(edge['axis'])} {shown(edge['value'])} is the {edge['end']} tried" for edge in report["edges"]]
        yield f"It lies on an edge of the grid: {', '.join(ends)}. A better one may lie beyond."
    if report["seeds"] == 1:
        yield "One seed: no claim that one cell is better than another that lies close."
    else:
        yield f"Means over {report['seeds']} seeds; sd is between seeds."
    tokens = {setting["tokens"] for setting in report["settings"]}
    if len(tokens) == 1:
        yield f"Every cell trains on {human_count(tokens.pop())} tokens."
    else:
        yield "Cells train on different numbers of tokens: more text alone makes a model better."
    twins = {one["label"]: one["twin_valid_nll"] for one in report["settings"] if one["twin_valid_nll"] is not None}
    if twins:
        best_twin = min(twins, key=lambda label: twins[label])
        yield (
            "NLL is the routed mixture's, after the prefix. Rate and batch of the dense twin go in step; it is best on "
            f"valid text at {best_twin}, NLL {twins[best_twin]:.4f}: compare the sides each at its own best."
        )


def failures(report: Mapping[str, Any]) -> Iterator[str]:
    """What has no figure, and why."""
    for setting in report["settings"]:
        if setting["state"] != FINISHED:
            reason = f": {setting['reason']}" if setting["reason"] else ""
            yield f"{setting['label']} {setting['state']}{reason}"


def sweep_page(report: Mapping[str, Any]) -> str:
    """sweep.html as text."""
    grid = [
        (", ".join(axis["keys"]), escape(", ".join(shown(value) for value in axis["values"])))
        for axis in report["axes"]
    ]
    runs = [
        (_whole_label(report, cell["values"]), f"<code>{escape(short(cell['run']))}</code> {escape(cell['state'])}")
        for cell in report["cells"]
    ]
    without = "".join(f"<p>{escape(line)}</p>" for line in failures(report))
    body = [
        f"<h1>{escape(report['name'])}</h1>",
        *(f"<p>{escape(remark)}</p>" for remark in remarks(report)),
        section("Valid text", _plot(report)),
        section("Cells", f'<p class="quiet">{TITLE}</p>' + table(_columns(report), _rows(report)) + without),
        section("The grid", facts([("method", escape(report["method"])), *grid])),
        section("Runs", facts(runs)),
    ]
    return page(f"Potluck: {report['name']}", "".join(body))


def _cell(outcome: Outcome) -> dict[str, Any]:
    spec = outcome.cell.draft
    valid, test = figures_of(outcome.results)
    is_finished = outcome.state == FINISHED
    state = DIVERGED if is_finished and valid is None else outcome.state
    return {
        "run": outcome.run,
        "values": dict(outcome.cell.values),
        "state": state,
        "reason": "its NLL on valid text is not finite" if state == DIVERGED else outcome.reason,
        **_work(spec),
        "valid_nll": valid if is_finished else None,
        "test_nll": test if is_finished else None,
        "twin_valid_nll": _twin(outcome.results) if is_finished else None,
    }


def _twin(results: Mapping[str, Any]) -> float | None:
    """Valid NLL of a mixture's dense twin, where the run has one."""
    cells = results.get("search", {}).get("dense", [])
    return cells[0]["valid_nll_suffix"] if cells else None


def _work(spec: RunSpec) -> dict[str, Any]:
    """Steps, tokens (targets) and FLOPs of training; a mixture's are an expert's steps and all experts' tokens."""
    if isinstance(spec, SmallTalkSpec):
        cost = cost_of(spec)
        return {"steps": cost.expert_steps, "tokens": cost.expert_tokens, "flops": cost.mixture_flops}
    assert isinstance(spec, SingleSpec), spec.method
    rows = spec.training.steps * spec.training.batch_size
    length = spec.text.sequence_length
    return {
        "steps": spec.training.steps,
        "tokens": rows * length,
        "flops": rows * train_flops(spec.full_model(), length),
    }


def _setting(label: str, cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Cells that differ in their seeds alone. It has figures once every one of them has."""
    other = next((cell for cell in cells if cell["state"] != FINISHED), None)
    valid = [cell["valid_nll"] for cell in cells]
    test = [cell["test_nll"] for cell in cells]
    twins = [cell["twin_valid_nll"] for cell in cells]
    known = other is None
    return {
        "label": label,
        "values": {name: value for name, value in cells[0]["values"].items() if name != SEED},
        "state": FINISHED if other is None else other["state"],
        "reason": "" if other is None else other["reason"],
        "runs": [cell["run"] for cell in cells],
        **{key: cells[0][key] for key in ("steps", "tokens", "flops")},
        "valid_nll": statistics.fmean(valid) if known else None,
        "valid_sd": statistics.stdev(valid) if known and len(valid) > 1 else None,
        "test_nll": statistics.fmean(test) if known and None not in test else None,
        "twin_valid_nll": statistics.fmean(twins) if known and None not in twins else None,
    }


def _edges(axes: Sequence[Axis], best: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = []
    for axis in axes:
        value = best.get(axis.name)
        if axis.name != SEED and len(axis.values) > 1 and _is_numeric(axis.values):
            ends = {"least": min(axis.values, key=float), "largest": max(axis.values, key=float)}
            found += [{"axis": axis.name, "value": value, "end": end} for end, at in ends.items() if at == value]
    return found


def _is_numeric(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _label(axes: Sequence[Axis], values: Mapping[str, Any]) -> str:
    """What tells a setting from the others."""
    varied = [axis for axis in axes if axis.name != SEED and len(axis.values) > 1]
    named = [f"{axis.short}={shown(values[axis.name])}" for axis in varied]
    return ", ".join(named) or "the only setting"


def _whole_label(report: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    return ", ".join(f"{_words(axis['name'])} {shown(values[axis['name']])}" for axis in report["axes"])


def _columns(report: Mapping[str, Any]) -> list[str]:
    swept = [_words(SHORT.get(name, name.rpartition(".")[2])) for name in _varied(report)]
    spread = ["sd"] if report["seeds"] > 1 else []
    return [*swept, "steps", "tokens", "FLOPs", "valid", *spread, "test", ""]


def _rows(report: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for setting in report["settings"]:
        spread = [_number(setting["valid_sd"])] if report["seeds"] > 1 else []
        mark = setting["state"] if setting["state"] != FINISHED else ""
        rows.append(
            [
                *(shown(setting["values"][name]) for name in _varied(report)),
                str(setting["steps"]),
                human_count(setting["tokens"]),
                human_count(setting["flops"]),
                _number(setting["valid_nll"]),
                *spread,
                _number(setting["test_nll"]),
                "best" if setting["label"] == report["best"] else mark,
            ]
        )
    return rows


def _words(name: str) -> str:
    return name.replace("_", " ")


def _varied(report: Mapping[str, Any]) -> list[str]:
    """Axes that tell settings apart: with more than one value, and not the seed."""
    return [axis["name"] for axis in report["axes"] if axis["name"] != SEED and len(axis["values"]) > 1]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _plot(report: Mapping[str, Any]) -> str:
    """Valid NLL against the learning rate, or whatever numbers were varied first; a line for each of the others."""
    varied = _varied(report)
    numeric = [axis["name"] for axis in report["axes"] if axis["name"] in varied and _is_numeric(axis["values"])]
    drawn = [setting for setting in report["settings"] if setting["valid_nll"] is not None]
    left_out = [setting["label"] for setting in report["settings"] if setting["valid_nll"] is None]
    note = f'<p class="quiet">Not drawn: {escape("; ".join(left_out))}.</p>' if left_out else ""
    if not numeric:
        bars = {setting["label"]: {"valid": setting["valid_nll"]} for setting in drawn}
        return svg.grouped_bars(bars, y_label="nats per token") + note
    order = [cell["run"] for cell in report["cells"]]
    x_axis = RATE if RATE in numeric else numeric[0]
    lines: dict[str, list[tuple[float, float]]] = {}
    for setting in sorted(drawn, key=lambda one: order.index(one["runs"][0])):
        others = [f"{_words(name)} {shown(setting['values'][name])}" for name in varied if name != x_axis]
        point = (float(setting["values"][x_axis]), float(setting["valid_nll"]))
        lines.setdefault(", ".join(others) or "valid text", []).append(point)
    ordered = {name: sorted(line) for name, line in lines.items()}
    chart = svg.line_chart(
        ordered,
        x_label=_words(x_axis),
        y_label="nats per token",
        x_log=all(x > 0 for line in ordered.values() for x, _ in line),
        dots=True,
    )
    return chart + svg.legend(list(ordered)) + note
