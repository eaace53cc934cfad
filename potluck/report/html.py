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
from potluck.report.table import SIDES

STYLE = """
:root { color-scheme: light dark; --page:#fbfaf7; --ink:#22252a; --quiet:#666b73; --rule:#dcd9d2; --card:#ffffff;
  --heat:#2f6f9f; --strong:#ffffff; --s0:#2f6f9f; --s1:#c2571a; --s2:#3c8d5a; --s3:#8a5aa8; --s4:#b08900; --s5:#b8405e;
  --s6:#4a8f95; --s7:#7a6652; }
@media (prefers-color-scheme: dark) { :root { --page:#16181c; --ink:#e4e5e8; --quiet:#9aa0a9; --rule:#33373e;
  --card:#1d2026; --heat:#5fa8dc; --strong:#101215; --s0:#6cb0e0; --s1:#f0935a; --s2:#6cc48c; --s3:#c49be0;
  --s4:#dcb94a; --s5:#ee7d98; --s6:#7cc5cb; --s7:#b9a48e; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.15rem; margin: 0 0 .5rem; }
p { margin: .4rem 0; max-width: 46rem; }
section { background: var(--card); border: 1px solid var(--rule); border-radius: 8px;
  padding: 1rem 1.25rem; margin: 1.25rem 0; }
.quiet, .empty { color: var(--quiet); font-size: .9rem; }
.verdict { font-size: 1.15rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: 0 0 1rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { text-align: right; padding: .3rem .6rem; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th { font-weight: 600; color: var(--quiet); font-size: .85rem; }
th:first-child, td:first-child { text-align: left; }
td.wrap { text-align: left; white-space: normal; overflow-wrap: anywhere; }
code { font-family: ui-monospace, monospace; font-size: .9em; overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; max-width: 60rem; font-family: system-ui, sans-serif; }
.text { fill: var(--quiet); font-size: 12px; } .small { fill: var(--quiet); font-size: 9.5px; }
.cell-strong { fill: var(--strong); font-size: 12px; font-weight: 600; }
.grid { stroke: var(--rule); stroke-width: 1; } .axis { stroke: var(--quiet); stroke-width: 1; }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round; } .heat { fill: var(--heat); }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1rem; font-size: .85rem; color: var(--quiet); margin: .5rem 0 0; }
.swatch { display: inline-block; width: .75rem; height: .75rem; border-radius: 2px; margin-right: .35rem; }
"""


def render_page(report: Mapping[str, Any]) -> str:
    """The whole page as text; it loads nothing and runs nothing."""
    title = f"Potluck: {report['name']}"
    body = "".join(
        [
            _head(report),
            _section("Result", _sides(report)),
            _section("Who routes what where", _routing(report)),
            _section("By source", _by_source(report)),
            _section("Loss while training", _curves(report)),
            _section("Routers: purity by round", _purity(report)),
            _section("Work and traffic", _cost(report)),
            _section("How it was run", _how(report)),
        ]
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}{_series_style()}</style></head>"
        f"<body><main>{body}</main></body></html>\n"
    )


def _series_style() -> str:
    rules = []
    for i in range(svg.NUM_COLOURS):
        rules.append(f".line.s{i}{{stroke:var(--s{i})}}.bar.s{i},.dot.s{i}{{fill:var(--s{i})}}")
        rules.append(f".swatch.b{i}{{background:var(--s{i})}}")
    return "".join(rules)


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


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
        [
            name,
            f"{values['nll_suffix']:.4f}",
            f"{values['perplexity_suffix']:.2f}",
            f"{values['nll_all']:.4f}",
            f"{values['perplexity_all']:.2f}",
        ]
        for side, name in SIDES.items()
        if (values := report.get(side)) is not None
    ]
    prefix = report["spec"]["text"]["prefix_length"]
    note = (
        f'<p class="quiet">Nats per token on held-out test text; lower is better. Leak-free counts only tokens after '
        f"the first {prefix}, which the routing decision has not seen. Oracle routing picks each text's best "
        "expert after the fact: no router can do better with these experts.</p>"
    )
    return _table(["", "leak-free", "perplexity", "all tokens", "perplexity"], rows) + note


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
    return (
        svg.grouped_bars(groups, y_label="leak-free nats per token")
        + svg.legend(names)
        + f'<p class="quiet">{escape(note)}</p>'
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
    work = _table(["work", "tokens", "FLOPs"], work_rows(report))
    traffic = _table(
        ["crossed the wire", "bytes", "per trained token"],
        [[p, human_bytes(report["bytes"][p]), f"{report['bytes_per_trained_token'][p]:.4f}"] for p in PLANES],
    )
    paper = report["paper_bytes"]
    note = (
        f'<p class="quiet">The paper counts {escape(paper["formula"])}: {paper["scores_per_trained_token"]:.4f} bytes '
        f"a token, {human_bytes(paper['scores'])} here. Experts exchange nothing with each other.</p>"
    )
    speeds = _table(
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
    search = _table(["search", "batch", "rate", "steps", "valid NLL", ""], cells) if cells else ""
    facts = [
        ["search", escape(search_note(report))],
        ["epochs", escape(epochs)],
        ["spec digest", f"<code>{escape(report['spec_digest'])}</code>"],
        ["profile", escape(f"{profile['device']}, {profile['dtype']}, {profile['threads']} thread(s) a node")],
        [
            "text",
            escape(
                f"vocabulary {text['vocab_size']}, rows of {text['sequence_length']}, prefix {text['prefix_length']}"
            ),
        ],
        ["ledger", escape(ledger)],
    ]
    rows = "".join(f'<tr><td>{name}</td><td class="wrap">{value}</td></tr>' for name, value in facts)
    return search + f'<div class="scroll"><table>{rows}</table></div>'


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'
