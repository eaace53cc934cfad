"""What is told of a specialist that was made of a soup: its mixture, how sure that is, what it gains on its text."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from html import escape
from typing import Any

from potluck.formatting import TABLE_WIDTH, format_table
from potluck.report.contest import sentence
from potluck.report.page import facts, page, section, table

MOST_ROWS = 20
"""Domains that are listed unless all are asked for."""
LEAST_SHOWN = 0.005
"""Of the text: less is shown as nothing."""
COLUMNS = ("domain", "weight", "corpus")


def render_instantiated(report: Mapping[str, Any], *, every: bool = False) -> str:
    """Plain text of at most 80 columns.

    Args:
        every: all domains with weight, not only the largest.
    """
    rows = domain_rows(report)
    shown = rows if every else rows[:MOST_ROWS]
    lines = [format_table(COLUMNS, shown)]
    if len(shown) < len(rows):
        rest = sum(weight for _, weight, _ in report["domains"][len(shown) :])
        lines.append(f"and {len(rows) - len(shown)} more domains with {rest:.1%} together")
    lines += [textwrap.fill(line, TABLE_WIDTH) for line in sentences(report)]
    return "\n".join(lines)


def instantiated_page(report: Mapping[str, Any]) -> str:
    """report.html as text."""
    listed = ", ".join(f"{coefficient:.4g}" for coefficient in report["coefficients"])
    told = "".join(f"<p>{escape(line)}</p>" for line in [*sentences(report), *warnings(report)])
    blobs = [(name, f"<code>{escape(digest)}</code>") for name, digest in sorted(report["blobs"].items())]
    body = [
        f"<h1>{escape(report['name'])}</h1>",
        '<p class="quiet">A specialist that was made of a soup, without training. '
        f"Run <code>{escape(report['run'][:12])}</code>.</p>",
        section("Mixture", table(COLUMNS, domain_rows(report)) + told),
        section("What it is made of", facts([("coefficients", escape(listed)), *blobs])),
    ]
    return page(f"Potluck: {report['name']}", "".join(body))


def domain_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """Of the domains with weight, the largest first."""
    return [[name, f"{weight:.1%}", f"{share:.1%}"] for name, weight, share in report["domains"]]


def sentences(report: Mapping[str, Any]) -> list[str]:
    """How sure the mixture is and what the specialist gains; nothing where a person named the weights."""
    histogram, contest = report["histogram"], report["contest"]
    if histogram is None:
        return []
    noise, windows, unplaced = histogram["expected_noise"], histogram["windows"], histogram["unplaced"]
    told = [
        f"weights from {windows:,} windows of text, expected to be off by {noise:.2f} in L1 distance (of at most 2)"
    ]
    if unplaced is not None:
        told.append(f"{unplaced:.0%} of the text lies in no domain of the soup")
    if contest is None:
        told.append(f"not compared: {report['test_rows']} held-out rows of the text are too few to tell a difference")
        return told
    rows = f"on {contest['rows']:,} held-out rows of the text"
    return told + [f"{rows}, {sentence(pair, value)}" for pair, value in contest["pairs"].items()]


def warnings(report: Mapping[str, Any]) -> list[str]:
    """What should make a person doubt the mixture."""
    histogram = report["histogram"]
    if histogram is None:
        return []
    found: list[str] = list(histogram["warnings"])
    unplaced = histogram["unplaced"]
    if unplaced is not None and unplaced >= LEAST_SHOWN and not any("further out" in warning for warning in found):
        found.append(f"for the {unplaced:.0%} that no domain holds, the nearest domain stands in")
    return found
