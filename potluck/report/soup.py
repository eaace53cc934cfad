"""Reports of soups: the matrix of right and wrong mixtures, and what the soup is compared with.

Row i of the matrix is theta(h) for the mixture of source i's valid text, column j the test text of source j.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

from potluck.formatting import TABLE_WIDTH, format_table, human_bytes, human_count
from potluck.report import svg
from potluck.report.contest import UNITS, level_cells, model_rows, shown_fact
from potluck.report.page import facts, page, section, table

FOR = "soup for "
"""Begins the name of a source's model."""
SOUP, GENERIC, CONSTANT = "soup", "generic", "constant"
EXPLAINED = {
    SOUP: "theta(h) of the corpus' own mixture",
    GENERIC: "a plain model of as many tokens, on the corpus as it lies",
    CONSTANT: "a soup as large whose coefficients do not see the mixture: it cannot specialise",
}
SHOWN_FACTS = ("steps", "batch_size", "learning_rate", "optimizer", "parameters", "tokens", "flops", "epochs", "rows")
NAME_ROOM = 160
COMPARED = "nats a token on the source's test text; ± half the interval; ? it holds zero"


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """NLL by mixture and text; only sources that have both a model and test text."""

    sources: tuple[str, ...]
    nll: tuple[tuple[float, ...], ...]
    """Row: whose mixture; column: whose text. Nats per token."""

    @property
    def best(self) -> tuple[int, ...]:
        """For each text the mixture under which it has the least NLL."""
        return tuple(min(self._rows, key=lambda i: self.nll[i][j]) for j in self._rows)

    @property
    def right(self) -> int:
        """Texts on which their own mixture is best."""
        return sum(best == j for j, best in enumerate(self.best))

    @property
    def _rows(self) -> range:
        return range(len(self.sources))


def matrix_of(report: Mapping[str, Any]) -> Matrix:
    by_source = report["by_source"]
    sources = tuple(
        name
        for name, values in by_source.items()
        if f"{FOR}{name}" in report["models"] and _nll(values, f"{FOR}{name}") is not None
    )
    nll = tuple(tuple(_number(by_source[text], f"{FOR}{mixture}") for text in sources) for mixture in sources)
    return Matrix(sources=sources, nll=nll)


def render_soup(report: Mapping[str, Any]) -> str:
    """Plain text of at most 80 columns."""
    matrix = matrix_of(report)
    numbers = [str(j + 1) for j in range(len(matrix.sources))]
    rows = [
        [f"{i + 1} {name}", *(f"{value:.2f}{'*' if matrix.best[j] == i else ' '}" for j, value in enumerate(line))]
        for i, (name, line) in enumerate(zip(matrix.sources, matrix.nll, strict=True))
    ]
    blocks = [format_table(["model", f"{report['split']} NLL", *UNITS], _levels(report))]
    if matrix.sources:
        blocks.append(
            format_table(["mixture of / text of", *numbers], rows) + "\n* the least of its column: the best mixture"
        )
    blocks.append(format_table(["its own mixture", *_others(report)], comparison_rows(report)) + f"\n{COMPARED}")
    blocks.append(format_table(_bits_columns(report), _bits_rows(report)))
    blocks.append("\n".join(textwrap.fill(line, TABLE_WIDTH) for line in sentences(report)))
    return "\n\n".join(blocks)


def soup_page(report: Mapping[str, Any]) -> str:
    """report.html as text."""
    matrix, told = matrix_of(report), sentences(report)
    curves = {name: [(float(x), float(y)) for x, y in line] for name, line in report["curves"].items() if line}
    note = "".join(f"<p>{escape(line)}</p>" for line in told[1:]) + f'<p class="quiet">{escape(COMPARED)}.</p>'
    compared = table(["its own mixture", *_others(report)], comparison_rows(report)) + note
    legend = "".join(
        f'<p class="quiet"><b>{escape(name)}</b>: {escape(text)}</p>'
        for name, text in EXPLAINED.items()
        if name in report["models"]
    )
    levels = table(["model", "nats per token", *UNITS], _levels(report))
    body = [
        f"<h1>{escape(report['name'])}</h1>",
        f'<p class="verdict">{escape(told[0])}</p>',
        f'<p class="quiet">{escape(report["split"].capitalize())} text: {human_count(report["targets"])} tokens in '
        f"{report['packs']} packs. Run <code>{escape(report['run'][:12])}</code>.</p>",
        section("The right mixture, and wrong ones", _heat(matrix)),
        section("Levels", levels + legend + table(_bits_columns(report), _bits_rows(report))),
        section("Beside the others", compared),
        section(
            "Loss while training",
            svg.line_chart(curves, x_label="step", y_label="nats per token") + svg.legend(list(curves)),
        ),
        section("The soup", facts(_bank_rows(report["facts"]))),
        section("How it was run", facts(_fact_rows(report["facts"]))),
    ]
    return page(f"Potluck: {report['name']}", "".join(body))


def sentences(report: Mapping[str, Any]) -> list[str]:
    """The matrix in words, and the price of flexibility."""
    matrix = matrix_of(report)
    told = [f"On {matrix.right} of {len(matrix.sources)} sources' test text their own mixture is the best one"]
    if matrix.sources:
        own = [matrix.nll[j][j] for j in range(len(matrix.sources))]
        worst = max(max(line[j] for line in matrix.nll) - own[j] for j in range(len(own)))
        told[0] += f"; the worst of the wrong ones costs {worst:.2f} nats a token more."
    generic, soup = report["models"].get(GENERIC), report["models"].get(SOUP)
    if generic and soup:
        gap = soup["nll"] / generic["nll"] - 1
        more = f"{abs(gap):.1%} {'more' if gap > 0 else 'less'} NLL"
        told.append(f"Over all text the soup at the corpus' mixture has {more} than the plain model of equal tokens.")
    return told


def comparison_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """For each source its own model's NLL less another's on its text, with half the interval's width."""
    rows = []
    for name in matrix_of(report).sources:
        pairs = report["by_source"][name]["pairs"]
        rows.append([name, *(_difference(pairs.get(f"{FOR}{name} - {other}")) for other in _others(report).values())])
    return rows


def _others(report: Mapping[str, Any]) -> dict[str, str]:
    """Names by column head."""
    return {f"less {name}": name for name in (SOUP, GENERIC, CONSTANT) if name in report["models"]}


def _difference(value: Mapping[str, float] | None) -> str:
    if value is None or value["low"] is None:
        return "too little text"
    decided = "" if value["high"] < 0 or value["low"] > 0 else "?"
    return f"{value['mean']:+.3f}±{(value['high'] - value['low']) / 2:.3f}{decided}"


def _heat(matrix: Matrix) -> str:
    columns = list(zip(*matrix.nll, strict=True))

    def cell(i: int, j: int) -> svg.Cell:
        low, high, value = min(columns[j]), max(columns[j]), matrix.nll[i][j]
        mixture, text = matrix.sources[i], matrix.sources[j]
        title = f"the mixture of {mixture} on text of {text}: {value:.4f} nats per token"
        shade = (high - value) / (high - low) if high > low else 0.0
        return svg.Cell(text=f"{value:.2f}", shade=shade, title=title)

    if not matrix.sources:
        return svg.empty("no source has both a mixture and test text")
    names, label = list(matrix.sources), "test NLL by mixture and text"
    note = (
        '<p class="quiet">Row: for whose text the model was made. Column: whose test text it reads; nats per token, '
        "the stronger the shade the better, each column on a scale of its own. A soup is for a strong diagonal.</p>"
    )
    return svg.heat_cells(cell, rows=names, columns=names, label=label, left=NAME_ROOM) + note


def _levels(report: Mapping[str, Any]) -> list[list[str]]:
    """The soup and what it is compared with first, then each source's."""
    rows = model_rows(report)
    return sorted(rows, key=lambda row: row[0].startswith(FOR))


def _bits_columns(report: Mapping[str, Any]) -> list[str]:
    return ["bits/byte on text of", "its own mixture", *_others(report).values()]


def _bits_rows(report: Mapping[str, Any]) -> list[list[str]]:
    others = _others(report).values()
    texts = {name: report["by_source"][name]["models"] for name in matrix_of(report).sources}
    return [
        [name, *(level_cells(models.get(model))[-1] for model in (f"{FOR}{name}", *others))]
        for name, models in texts.items()
    ]


def _bank_rows(told: Mapping[str, Any]) -> list[tuple[str, str]]:
    soup, targets = told["soup"], told["targets"]
    config = soup["config"]
    kind = f"of rank {config['rank']}" if config["rank"] else "as large as the model"
    rows = [
        ("experts", f"{config['experts']} {kind}, {human_count(soup['bank_parameters'])} parameters"),
        ("coefficients", f"{config['coefficients']} of {config['domains']} domains"),
        ("memory moved", f"{human_bytes(soup['traffic_bytes'])} a step for the bank's sake"),
    ]
    each = zip(targets["sources"], targets["windows"], targets["expected_noise"], strict=True)
    noise = "; ".join(f"{name} {noise:.3f} ({windows} rows)" for name, windows, noise in each)
    rows.append(("noise of each mixture (L1)", escape(noise)))
    return rows


def _fact_rows(told: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(key, escape(shown_fact(told[key]))) for key in SHOWN_FACTS if key in told]


def _nll(values: Mapping[str, Any], model: str) -> float | None:
    level = values["models"].get(model)
    return None if level is None else float(level["nll"])


def _number(values: Mapping[str, Any], model: str) -> float:
    level = _nll(values, model)
    return float("nan") if level is None else level
