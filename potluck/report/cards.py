"""What a person reads about the clusters of a corpus: a table, a map, a card each. docs/partition.md has the keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from potluck.errors import DataError
from potluck.formatting import format_table, human_count
from potluck.report.page import page, section
from potluck.report.svg import Frame, empty

SCHEMA_VERSION = 1
NEEDED = ("cards", "domains", "listed", "rows", "tokens", "map")
LISTED = 20
"""Clusters in a terminal, unless all are wanted."""
NAME_WIDTH, SOURCES_WIDTH = 24, 16
"""Of columns; further terms take the room that is left."""
NAMED_WORDS = 2
"""Terms that a cluster's name has already."""
WORDS_OF_A_ROW = 8
LEAST_SHARE = 0.01
LABELLED = 0.2
"""Share of a card's bar that has room for a name."""
CARDS_SHOWN = 256
LABELS_SHOWN = 48
"""Numbers on the map beyond which they would cover it."""
TURN = 137.508
"""Degrees between successive hues: neighbours in number never look alike."""


def cards_report(cards: Mapping[str, Any], *, run: str, name: str, spec: Any) -> dict[str, Any]:
    """The report of a run that clusters, from its cards.

    Raises:
        DataError: ``data.bad-report``, the blob holds no cards.
    """
    missing = [key for key in NEEDED if key not in cards]
    if missing:
        raise DataError("data.bad-report", f"the cards lack {', '.join(missing)}", "use the run's own version")
    return {**cards, "schema_version": SCHEMA_VERSION, "method": "cluster", "run": run, "name": name, "spec": spec}


def render_cards(report: Mapping[str, Any], *, everything: bool = False) -> str:
    """Plain text of at most 80 columns: clusters by size."""
    cards = by_size(report)
    shown = cards if everything else cards[:LISTED]
    rows = [
        [
            _short(card["name"], NAME_WIDTH),
            ", ".join(card["terms"][NAMED_WORDS:WORDS_OF_A_ROW]),
            _short(sources_in_words(card), SOURCES_WIDTH),
            str(card["rows"]),
            f"{card['share']:.1%}",
        ]
        for card in shown
    ]
    lines = [summary(report), "", format_table(["cluster", "further terms", "sources", "rows", "share"], rows, left=3)]
    if len(shown) < len(cards):
        lines.append(f"... and {len(cards) - len(shown)} smaller ones")
    return "\n".join(lines)


def cards_page(report: Mapping[str, Any]) -> str:
    """cards.html as text."""
    cards = by_size(report)
    body = [
        f"<h1>{escape(report['name'])}</h1>",
        f'<p class="verdict">{escape(summary(report))}</p>',
        f'<p class="quiet">Run <code>{escape(report["run"][:12])}</code>.{escape(_language_note(report))}</p>',
        section("Map", cluster_map(report) + f'<p class="quiet">{escape(_map_note(report))}</p>'),
        section("Clusters", _table(report)),
        section("Cards", _cards(cards)),
    ]
    return page(f"Clusters: {report['name']}", "".join(body))


def by_size(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Cards, largest first."""
    return sorted(report["cards"], key=lambda card: (-card["rows"], card["index"]))


def summary(report: Mapping[str, Any]) -> str:
    empty_ones = sum(card["rows"] == 0 for card in report["cards"])
    without = f", {empty_ones} of them empty" if empty_ones else ""
    return (
        f"{report['domains']} clusters{without}: {human_count(report['rows'])} rows, "
        f"{human_count(report['tokens'])} tokens of training text"
    )


def sources_in_words(card: Mapping[str, Any]) -> str:
    """`law 61%, news 30%`: whose rows a cluster holds; less than a hundredth is left out."""
    return ", ".join(f"{source} {share:.0%}" for source, share in _shares(card) if share >= LEAST_SHARE)


def cluster_map(report: Mapping[str, Any]) -> str:
    """SVG: a sample of rows as dots, each cluster in a hue of its own and with its number amid its dots."""
    drawn = report["map"]
    points = drawn["points"]
    if not points:
        return empty("no rows")
    frame = Frame(height=440, left=12, right=12, top=12, bottom=12)
    middles = _middles(points, drawn["point_domains"])
    place = _placing(frame, points)
    cards = {card["index"]: card for card in report["cards"]}
    dots: dict[int, list[str]] = {}
    for (x, y), domain in zip(points, drawn["point_domains"], strict=True):
        across, down = place(x, y)
        dots.setdefault(domain, []).append(f'<circle cx="{across}" cy="{down}" r="2.4"/>')
    parts = [
        f'<g class="point" style="--hue:{_hue(domain)}">{_title(cards.get(domain), domain)}{"".join(circles)}</g>'
        for domain, circles in sorted(dots.items())
    ]
    largest = {card["index"] for card in by_size(report)[:LABELS_SHOWN]}
    for card in report["cards"]:
        if card["index"] in largest and card["index"] in middles:
            across, down = place(*middles[card["index"]])
            parts.append(
                f'<a href="#c{card["index"]}"><g class="centre">{_title(card, card["index"])}'
                f'<circle cx="{across}" cy="{down}" r="8.5"/>'
                f'<text x="{across}" y="{down + 3.2:.1f}" text-anchor="middle">{card["index"]}</text></g></a>'
            )
    head = f'<svg viewBox="0 0 {frame.width} {frame.height}" role="img" aria-label="rows of the corpus by cluster">'
    return head + "".join(parts) + "</svg>"


def _middles(points: Sequence[Sequence[float]], domains: Sequence[int]) -> dict[int, tuple[float, float]]:
    """Mean place of each cluster's dots. Spherical centroids lie further out than any row of theirs."""
    sums: dict[int, tuple[float, float, int]] = {}
    for (x, y), domain in zip(points, domains, strict=True):
        across, down, count = sums.get(domain, (0.0, 0.0, 0))
        sums[domain] = (across + x, down + y, count + 1)
    return {domain: (across / count, down / count) for domain, (across, down, count) in sums.items()}


def _placing(frame: Frame, points: Sequence[Sequence[float]]) -> Any:
    """From coordinates to the drawing's, one scale for both axes."""
    xs, ys = [point[0] for point in points], [point[1] for point in points]
    width, height = max(xs) - min(xs) or 1.0, max(ys) - min(ys) or 1.0
    scale = min(frame.inner_width / width, frame.inner_height / height)
    left = frame.left + (frame.inner_width - scale * width) / 2
    top = frame.top + (frame.inner_height - scale * height) / 2

    def place(x: float, y: float) -> tuple[float, float]:
        return round(left + (x - min(xs)) * scale, 1), round(top + (max(ys) - y) * scale, 1)

    return place


def _table(report: Mapping[str, Any]) -> str:
    has_language = not report.get("language_skipped")
    columns = ["cluster", "rows", "share", "spread", *(["language"] if has_language else [])]
    lines = []
    for number, card in enumerate(by_size(report)):
        name = escape(card["name"])
        cells = [
            f'<a href="#c{card["index"]}">{name}</a>' if number < CARDS_SHOWN else name,
            str(card["rows"]),
            f"{card['share']:.1%}",
            "-" if card["mean_squared_distance"] is None else f"{card['mean_squared_distance']:.3f}",
            *([escape(card["language"] or "-")] if has_language else []),
        ]
        told = f'<td class="wrap quiet">{escape(sources_in_words(card))}</td>'
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + told + "</tr>")
    head = "".join(f"<th>{name}</th>" for name in columns) + '<th class="wrap">sources</th>'
    note = '<p class="quiet">Spread: mean squared distance of a row to its centroid; a low one is a narrow cluster.</p>'
    return f'{note}<div class="scroll"><table><tr>{head}</tr>{"".join(lines)}</table></div>'


def _cards(cards: Sequence[Mapping[str, Any]]) -> str:
    shown = "".join(_card(card) for card in cards[:CARDS_SHOWN])
    rest = len(cards) - CARDS_SHOWN
    more = f'<p class="quiet">{rest} smaller clusters are in the table above and in cards.json.</p>' if rest > 0 else ""
    return f'<div class="cards">{shown}</div>{more}'


def _card(card: Mapping[str, Any]) -> str:
    excerpts = "".join(f"<blockquote>{escape(text)} …</blockquote>" for text in card["excerpts"])
    sources = "".join(
        f'<span class="share" style="flex-grow:{1000 * share:.0f}">{escape(source) if share >= LABELLED else ""}</span>'
        for source, share in _shares(card)
        if share >= LEAST_SHARE
    )
    return (
        f'<article id="c{card["index"]}"><h3><span class="hue" style="--hue:{_hue(card["index"])}"></span>'
        f"{escape(card['name'])}</h3>"
        f'<p class="quiet">{card["rows"]} rows, {card["share"]:.1%} of the text</p>'
        f"<p>{escape(', '.join(card['terms']))}</p>"
        f'<div class="shares" title="{escape(sources_in_words(card))}">{sources}</div>{excerpts}</article>'
    )


def _shares(card: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Sources by their share of a cluster's rows, largest first."""
    rows = max(1, card["rows"])
    shares = [(source, count / rows) for source, count in card["sources"].items()]
    return sorted(shares, key=lambda pair: (-pair[1], pair[0]))


def _title(card: Mapping[str, Any] | None, domain: int) -> str:
    told = f"cluster {domain}" if card is None else f"{card['name']}: {', '.join(card['terms'][:WORDS_OF_A_ROW])}"
    return f"<title>{escape(told)}</title>"


def _hue(domain: int) -> str:
    return f"{domain * TURN % 360:.0f}"


def _map_note(report: Mapping[str, Any]) -> str:
    return (
        f"{len(report['map']['points'])} rows on the plane in which the clusters' centres differ most; "
        "clusters that overlap here may be far apart in the other dimensions. A number leads to the cluster's card."
    )


def _language_note(report: Mapping[str, Any]) -> str:
    why = report.get("language_skipped")
    return f" Languages are not told: {why}." if why else ""


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
