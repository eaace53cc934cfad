"""report.html: one file, no network, light and dark by the reader's setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from potluck.formatting import human_bytes, human_count
from potluck.report import svg
from potluck.report.build import (
    PLANES,
    search_note,
    search_rows,
    source_nll,
    tokens_per_parameter,
    where_dense_wins,
    work_rows,
)
from potluck.report.page import facts as facts_table
from potluck.report.page import page, section, table
from potluck.report.table import SIDES, level_cells


def render_page(report: Mapping[str, Any]) -> str:
    """The whole page as text; it loads nothing and runs nothing."""
    title = f"Potluck: {report['name']}"
    body = "".join(
        [
            _head(report),
            section("Result", _sides(report)),
            section("Who routes what where", _routing(report)),
            section("By source", _by_source(report)),
            section("Loss while training", _curves(report)),
            section("Routers: purity by round", _purity(report)),
            section("Work and traffic", _cost(report)),
            section("How it was run", _how(report)),
        ]
    )
    return page(title, body)


def _head(report: Mapping[str, Any]) -> str:
    spec = report["spec"]
    return (
        f"<h1>{escape(report['name'])}</h1>"
        f'<p class="verdict">{escape(report["verdict"]["text"][0].upper() + report["verdict"]["text"][1:])}.</p>'
        f'<p class="quiet">{spec["experts"]["num"]} experts of {human_count(report["parameters"]["expert"])} '
        f"parameters, each trained alone on {tokens_per_parameter(report):.1f} tokens per parameter. "
        f"Run <code>{escape(report['run'][:12])}</code>.</p>"
    )


def _sides(report: Mapping[str, Any]) -> str:
    rows = [
        [name, *level_cells(values, "suffix"), *level_cells(values, "all")]
        for side, name in SIDES.items()
        if (values := report.get(side)) is not None
    ]
    prefix = report["spec"]["text"]["prefix_length"]
    note = (
        f'<p class="quiet">Nats per token on held-out test text; lower is better. Leak-free counts only tokens after '
        f"the first {prefix}, which the routing decision has not seen. Oracle routing picks each text's best "
        "expert after the fact: no router can do better with these experts.</p>"
    )
    units = ["perplexity", "bits/byte"]
    return table(["", "leak-free", *units, "all tokens", *units], rows) + note


def _routing(report: Mapping[str, Any]) -> str:
    routing = report["routing"]
    names = [f"expert {i}" for i in range(len(routing["table"]))]
    drawing = svg.heat_table(routing["table"], rows=names, columns=routing["sources"])
    loads = routing.get("loads", [])
    total = sum(loads) or 1
    shares = ", ".join(f"{name} {load / total:.0%}" for name, load in zip(names, loads, strict=False))
    note = (
        f'<p class="quiet">Share of each source\'s test text that goes to each expert. Of all test text: {shares}.</p>'
    )
    return f'<div class="scroll">{drawing}</div>{note}'


def _by_source(report: Mapping[str, Any]) -> str:
    names = [side for side in SIDES if report.get(side) is not None]
    groups = {source: {side: source_nll(report, source, side) for side in names} for source in report["by_source"]}
    wins = where_dense_wins(report)
    note = f"The dense twin is ahead on {', '.join(wins)}." if wins else "The dense twin is ahead on no source."
    if report.get("dense") is None:
        note = ""
    rows = [
        [source, SIDES[side], *level_cells(line.get(side), "suffix"), *level_cells(line.get(side), "all")]
        for source, line in report["by_source"].items()
        for side in names
    ]
    units = ["perplexity", "bits/byte"]
    return (
        svg.grouped_bars(groups, y_label="leak-free nats per token")
        + svg.legend(names)
        + f'<p class="quiet">{escape(note)}</p>'
        + table(["source", "side", "leak-free", *units, "all tokens", *units], rows)
    )


def _curves(report: Mapping[str, Any]) -> str:
    lines: Mapping[str, Sequence[Sequence[float]]] = report["curves"]["lineages"]
    series = {
        name: [(float(step), float(loss)) for step, loss in line]
        for name, line in lines.items()
        if "router" not in name and line
    }
    note = '<p class="quiet">Training loss at each commit, by step of the lineage; the dense twin takes more steps.</p>'
    return svg.line_chart(series, x_label="step", y_label="nats per token") + svg.legend(list(series)) + note


def _purity(report: Mapping[str, Any]) -> str:
    values = report["curves"]["purity"]
    series = {"purity": [(float(index), float(value)) for index, value in enumerate(values)]} if values else {}
    note = (
        '<p class="quiet">Share of validation rows whose expert mostly gets their source. One source an expert would '
        "be 1; with more sources than experts the ceiling lies lower.</p>"
    )
    return svg.line_chart(series, x_label="round", y_label="purity", y_range=(0.0, 1.0)) + note


def _cost(report: Mapping[str, Any]) -> str:
    work = table(["work", "tokens", "FLOPs"], work_rows(report))
    traffic = table(
        ["crossed the wire, all runs of this home", "bytes", "per trained token"],
        [[p, human_bytes(report["bytes"][p]), f"{report['bytes_per_trained_token'][p]:.4f}"] for p in PLANES],
    )
    paper = report["paper_bytes"]
    note = (
        f'<p class="quiet">The paper counts {escape(paper["formula"])}: {paper["scores_per_trained_token"]:.4f} bytes '
        f"a token, {human_bytes(paper['scores'])} here. Experts exchange nothing with each other.</p>"
    )
    speeds = table(
        ["node", "tokens/s"], [[name, human_count(speed)] for name, speed in report["tokens_per_second"].items()]
    )
    return work + traffic + note + speeds


def _how(report: Mapping[str, Any]) -> str:
    profile, text = report["profile"], report["spec"]["text"]
    ledger = (
        "every step is there once, in one chain" if report["ledger"]["ok"] else "; ".join(report["ledger"]["problems"])
    )
    epochs = ", ".join(f"{side} {value:.2f}" for side, value in report["epochs"].items())
    cells = search_rows(report)
    search = table(["search", "batch", "rate", "steps", "valid NLL", ""], cells) if cells else ""
    facts = [
        ("search", escape(search_note(report))),
        ("epochs", escape(epochs)),
        ("spec digest", f"<code>{escape(report['spec_digest'])}</code>"),
        ("profile", escape(f"{profile['device']}, {profile['dtype']}, {profile['threads']} thread(s) a node")),
        (
            "text",
            escape(
                f"vocabulary {text['vocab_size']}, rows of {text['sequence_length']}, prefix {text['prefix_length']}"
            ),
        ),
        ("ledger", escape(ledger)),
    ]
    return search + facts_table(facts)
