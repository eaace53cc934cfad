"""Reports of runs whose result is a contest: any number of models on the same held-out text (`sampling.contest`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from potluck.errors import DataError
from potluck.formatting import format_table, human_count
from potluck.report import svg
from potluck.report.page import facts, page, section, table

SCHEMA_VERSION = 1
UNITS = ("perplexity", "bits/byte")
"""Heads of the columns beside nats per token."""
NEEDED = ("models", "pairs", "by_source", "rows", "packs", "targets", "split", "facts")


def contest_report(science: Mapping[str, Any], *, run: str, name: str, spec: Any, curves: Mapping[str, Any]) -> Any:
    """The report of a run, from its report blob.

    Raises:
        DataError: ``data.bad-report``, the blob is not a contest.
    """
    missing = [key for key in NEEDED if key not in science]
    if missing:
        raise DataError("data.bad-report", f"the report lacks {', '.join(missing)}", "use the run's own version")
    return {
        "schema_version": SCHEMA_VERSION,
        "method": science["facts"]["method"],
        "run": run,
        "name": name,
        "spec": spec,
        **science,
        "curves": dict(curves),
    }


def render_contest(report: Mapping[str, Any]) -> str:
    """Plain text of at most 80 columns: models over all text, by source, and differences."""
    blocks = [
        format_table(["model", f"{report['split']} NLL", *UNITS], model_rows(report)),
        format_table(["NLL by source", "rows", *_short(list(report["models"]))], source_rows(report)),
        format_table(["bits/byte by source", *_short(list(report["models"]))], bits_rows(report)),
    ]
    if report["pairs"]:
        blocks.append("\n".join(sentence(name, value) for name, value in report["pairs"].items()))
    return "\n\n".join(blocks)


def contest_page(report: Mapping[str, Any]) -> str:
    """report.html as text."""
    names = list(report["models"])
    groups = {
        source: {model: _nll(values["models"].get(model)) for model in names}
        for source, values in report["by_source"].items()
    }
    curves = {name: [(float(x), float(y)) for x, y in line] for name, line in report["curves"].items() if line}
    told = [(key, escape(shown_fact(value))) for key, value in report["facts"].items()]
    differences = "".join(f"<p>{escape(sentence(name, value))}</p>" for name, value in report["pairs"].items())
    body = [
        f"<h1>{escape(report['name'])}</h1>",
        f'<p class="quiet">{escape(report["split"].capitalize())} text: {human_count(report["targets"])} tokens in '
        f"{report['packs']} packs. Run <code>{escape(report['run'][:12])}</code>.</p>",
        section("Result", table(["model", "nats per token", *UNITS], model_rows(report)) + differences),
        section(
            "By source",
            svg.grouped_bars(groups, y_label="nats per token") + svg.legend(names) + source_table(report),
        ),
        section(
            "Loss while training",
            svg.line_chart(curves, x_label="step", y_label="nats per token") + svg.legend(list(curves)),
        ),
        section("How it was run", facts(told)),
    ]
    return page(f"Potluck: {report['name']}", "".join(body))


def sentence(pair: str, value: Mapping[str, float] | None) -> str:
    """A difference in words: never rounded to a win."""
    first, second = pair.split(" - ")
    if value is None or value["low"] is None:
        return f"{first} against {second}: too little text for an interval"
    interval = f"{value['mean']:+.4f} nats a token, interval [{value['low']:+.4f}, {value['high']:+.4f}]"
    if value["high"] < 0:
        return f"{first} is better than {second}: {interval}"
    if value["low"] > 0:
        return f"{first} is worse than {second}: {interval}"
    return f"{first} against {second} is undecided: {interval}; smaller than {value['smallest_effect']:.4f} is not seen"


def model_rows(report: Mapping[str, Any]) -> list[list[str]]:
    return [[name, *level_cells(level)] for name, level in report["models"].items()]


def level_cells(level: Mapping[str, float | None] | None) -> list[str]:
    """Nats per token, perplexity, bits per byte; reports that were made before the last of them have none."""
    shown = (("nll", 4), ("perplexity", 2), ("bits_per_byte", 4))
    values = [(None if level is None else level.get(key), digits) for key, digits in shown]
    return ["-" if value is None else f"{value:.{digits}f}" for value, digits in values]


def source_table(report: Mapping[str, Any]) -> str:
    """HTML: every model on every source, in every unit."""
    rows = [
        [source, name, *level_cells(level)]
        for source, values in report["by_source"].items()
        for name, level in values["models"].items()
    ]
    return table(["source", "model", "nats per token", *UNITS], rows)


def bits_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """Bits per byte by source."""
    return [
        [source, *(level_cells(values["models"].get(name))[-1] for name in report["models"])]
        for source, values in report["by_source"].items()
    ]


def source_rows(report: Mapping[str, Any]) -> list[list[str]]:
    return [
        [source, str(values["rows"]), *(level_cells(values["models"].get(name))[0] for name in report["models"])]
        for source, values in report["by_source"].items()
    ]


def shown_fact(value: Any) -> str:
    """A fact of a run in words."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {shown_fact(inner)}" for key, inner in value.items())
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)


def _nll(level: Mapping[str, float] | None) -> float | None:
    return None if level is None else level["nll"]


def _short(names: Sequence[str]) -> list[str]:
    """Column heads that let a table of several models fit 80 columns."""
    return [name if len(name) <= 12 else name[:11] + "…" for name in names]
