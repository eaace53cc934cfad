"""The table of a finished run as plain text, at most 80 columns wide."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from potluck.formatting import TABLE_WIDTH, format_table, human_bytes
from potluck.report.build import (
    PLANES,
    search_note,
    search_rows,
    source_nll,
    tokens_per_parameter,
    where_dense_wins,
    work_rows,
)

SIDES = {
    "mixture": "mixture, routed",
    "dense": "dense twin, same FLOPs",
    "random_split": "random split",
    "oracle": "oracle routing",
}


def render(report: Mapping[str, Any]) -> str:
    """All tables of a report, one under the other."""
    verdict = textwrap.fill(report["verdict"]["text"], TABLE_WIDTH)
    blocks = [_sides(report), verdict, _sources(report), _dense_wins(report), _search(report), _cost(report)]
    return "\n\n".join(block for block in blocks if block)


def _sides(report: Mapping[str, Any]) -> str:
    rows = []
    for side, name in SIDES.items():
        values = report.get(side)
        if values is None:
            continue
        rows.append(
            [
                name,
                *level_cells(values, "suffix"),
                *level_cells(values, "all"),
            ]
        )
    prefix = report["spec"]["text"]["prefix_length"]
    title = (
        f"Held-out test text, nats per token. Leak-free: only tokens after the first {prefix}.\n"
        "ppl: perplexity. bits/byte: also comparable where tokenizers differ."
    )
    return format_table(["side", "leak-free", "ppl", "bits/byte", "all", "ppl", "bits/byte"], rows, title=title)


def level_cells(values: Mapping[str, Any] | None, part: str) -> list[str]:
    """Nats per token, perplexity, bits per byte over `all` targets or the `suffix`; "-" for what is not there."""
    shown = (("nll", 4), ("perplexity", 2), ("bits_per_byte", 4))
    found = [((values or {}).get(f"{key}_{part}"), digits) for key, digits in shown]
    return ["-" if value is None else f"{value:.{digits}f}" for value, digits in found]


def _sources(report: Mapping[str, Any]) -> str:
    rows = [
        [
            source,
            *[_number(source_nll(report, source, side)) for side in SIDES],
            str(line["rows"]),
            _top_expert(report, source),
        ]
        for source, line in report["by_source"].items()
    ]
    columns = ["leak-free by source", "mixture", "dense", "random", "oracle", "rows", "expert"]
    bits = [
        [source, *[level_cells(line.get(side), "all")[-1] for side in SIDES]]
        for source, line in report["by_source"].items()
    ]
    bits_columns = ["bits/byte, all tokens", "mixture", "dense", "random", "oracle"]
    return f"{format_table(columns, rows)}\n\n{format_table(bits_columns, bits)}"


def _top_expert(report: Mapping[str, Any], source: str) -> str:
    """The expert that takes most of a source, and its share."""
    routing = report["routing"]
    if source not in routing["sources"] or not routing["table"]:
        return "-"
    column = routing["sources"].index(source)
    counts = [line[column] for line in routing["table"]]
    total = sum(counts)
    if not total:
        return "-"
    best = max(range(len(counts)), key=lambda i: counts[i])
    return f"{best} ({counts[best] / total:.0%})"


def _dense_wins(report: Mapping[str, Any]) -> str:
    if report.get("dense") is None:
        return ""
    ratio = tokens_per_parameter(report)
    sources = where_dense_wins(report)
    trained = f"each expert trained on {ratio:.1f} tokens per parameter"
    if not sources:
        return f"The dense twin is ahead on no source ({trained})."
    return textwrap.fill(f"The dense twin is ahead on {', '.join(sources)} ({trained}).", TABLE_WIDTH)


def _search(report: Mapping[str, Any]) -> str:
    note = textwrap.fill(search_note(report), TABLE_WIDTH)
    rows = search_rows(report)
    if not rows:
        return note
    return format_table(["search", "batch", "rate", "steps", "valid NLL", ""], rows) + "\n" + note


def _cost(report: Mapping[str, Any]) -> str:
    work = format_table(["work", "tokens", "FLOPs"], work_rows(report))
    traffic = format_table(
        ["plane, all runs of this home", "bytes", "per trained token"],
        [
            [plane, human_bytes(report["bytes"][plane]), f"{report['bytes_per_trained_token'][plane]:.4f}"]
            for plane in PLANES
        ],
    )
    paper = report["paper_bytes"]
    note = (
        f"The paper counts 4E/S = {paper['scores_per_trained_token']:.4f} bytes of scores a token, "
        f"{human_bytes(paper['scores'])} here."
    )
    ledger = (
        "complete: every step once, in one chain" if report["ledger"]["ok"] else "; ".join(report["ledger"]["problems"])
    )
    return f"{work}\n\n{traffic}\n{note}\n\nledger: {ledger}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
