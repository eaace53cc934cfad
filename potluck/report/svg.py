"""Small drawings as SVG text: lines, bars, a heat table. Pure functions from numbers to strings.

Colours are CSS classes (``s0``, ``s1``, ... and ``axis``, ``grid``, ``text``), so that the page's
style sheet decides them, for light and dark alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

NUM_COLOURS = 8
MAX_POINTS = 400
"""More points than pixels only make the page heavy."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Where the plot lies inside the drawing, in SVG units."""

    width: int = 720
    height: int = 300
    left: int = 56
    right: int = 16
    top: int = 16
    bottom: int = 44

    @property
    def inner_width(self) -> int:
        return self.width - self.left - self.right

    @property
    def inner_height(self) -> int:
        return self.height - self.top - self.bottom


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers within [low, high], about `count` of them.

    >>> nice_ticks(0.0, 10.0, 5)
    [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    """
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers within [low, high], low above 0, for an axis of logarithms.

    >>> log_ticks(0.001, 0.2)
    [0.001, 0.01, 0.1]
    """
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 4, 5, 6, 8)):
        ticks = [float(f"{digit}e{power}") for power in powers for digit in digits]
        inside = [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
        if len(inside) >= 3:
            return inside
    return nice_ticks(low, high)


def line_chart(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x_label: str,
    y_label: str,
    y_range: tuple[float, float] | None = None,
    x_log: bool = False,
    dots: bool = False,
) -> str:
    """Lines with axes; series are coloured in order, and named in the legend the page draws.

    Args:
        x_log: the x axis is logarithmic; every x must be above 0.
        dots: each point is marked, for lines of few points.
    """
    if x_log:
        series = {name: [(math.log10(x), y) for x, y in line] for name, line in series.items()}
    points = [point for line in series.values() for point in line]
    if not points:
        return empty("no values")
    frame = Frame()
    x_low, x_high = _span([x for x, _ in points], margin=0.03 if dots else 0.0)
    y_low, y_high = y_range if y_range is not None else _span([y for _, y in points], margin=0.05)

    def place(x: float, y: float) -> tuple[float, float]:
        across = frame.left + (x - x_low) / (x_high - x_low) * frame.inner_width
        down = frame.top + (1 - (min(max(y, y_low), y_high) - y_low) / (y_high - y_low)) * frame.inner_height
        return round(across, 1), round(down, 1)

    parts = _axes(frame, (x_low, x_high), (y_low, y_high), x_label=x_label, y_label=y_label, x_log=x_log)
    for index, (name, line) in enumerate(series.items()):
        shown = _thin(line)
        path = " ".join(f"{x},{y}" for x, y in (place(*point) for point in shown))
        title = f"<title>{escape(name)}</title>"
        if len(shown) > 1:
            parts.append(f'<polyline class="line s{index % NUM_COLOURS}" points="{path}">{title}</polyline>')
        for x, y in (place(*point) for point in shown) if dots or len(shown) == 1 else ():
            parts.append(f'<circle class="dot s{index % NUM_COLOURS}" cx="{x}" cy="{y}" r="3">{title}</circle>')
    return _svg(frame, parts, f"{y_label} against {x_label}")


def grouped_bars(groups: Mapping[str, Mapping[str, float | None]], *, y_label: str) -> str:
    """Horizontal bars: for every group, one bar a member, on an axis that starts near the least value.

    A missing value (None) leaves its bar out.
    """
    values = [v for members in groups.values() for v in members.values() if v is not None]
    if not values:
        return empty("no values")
    names = list(dict.fromkeys(name for members in groups.values() for name in members))
    bar, gap = 11, 12
    block = len(names) * bar + gap
    frame = Frame(height=len(groups) * block + 60, left=150, right=64)
    low, high = _bar_span(values)
    parts = [
        f'<line class="grid" x1="{x:.1f}" y1="{frame.top}" x2="{x:.1f}" y2="{frame.height - frame.bottom}"/>'
        f'<text class="text" x="{x:.1f}" y="{frame.height - frame.bottom + 16}" text-anchor="middle">{tick:g}</text>'
        for tick in nice_ticks(low, high)
        for x in [frame.left + (tick - low) / (high - low) * frame.inner_width]
    ]
    for row, (group, members) in enumerate(groups.items()):
        top = frame.top + row * block
        middle = top + len(names) * bar / 2 + 4
        parts.append(
            f'<text class="text" x="{frame.left - 8}" y="{middle:.1f}" text-anchor="end">{escape(group)}</text>'
        )
        for index, name in enumerate(names):
            value = members.get(name)
            if value is None:
                continue
            width = (value - low) / (high - low) * frame.inner_width
            y = top + index * bar
            parts.append(
                f'<rect class="bar s{index % NUM_COLOURS}" x="{frame.left}" y="{y}" width="{width:.1f}" '
                f'height="{bar - 2}"><title>{escape(group)}, {escape(name)}: {value:.3f}</title></rect>'
                f'<text class="small" x="{frame.left + width + 4:.1f}" y="{y + bar - 3}">{value:.3f}</text>'
            )
    label = f'<text class="text" x="{frame.left + frame.inner_width / 2:.0f}" y="{frame.height - 6}" '
    parts.append(label + f'text-anchor="middle">{escape(y_label)}, axis from {low:g}</text>')
    return _svg(frame, parts, y_label)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Of a heat table."""

    text: str
    shade: float
    """0 to 1."""
    title: str
    """Shown where a mouse rests."""


def heat_table(table: Sequence[Sequence[float]], *, rows: Sequence[str], columns: Sequence[str]) -> str:
    """Shares as shades: every column is normalised to 1, each cell shows its share in percent."""
    totals = [sum(line[j] for line in table) for j in range(len(columns))]

    def cell(i: int, j: int) -> Cell:
        share = table[i][j] / totals[j] if totals[j] else 0.0
        title = f"{rows[i]} takes {share:.1%} of {columns[j]} ({table[i][j]:g} rows)"
        return Cell(text=f"{share:.0%}", shade=share, title=title)

    if not table or not table[0]:
        return empty("no rows were routed")
    return heat_cells(cell, rows=rows, columns=columns, label="share of each source by expert")


def heat_cells(
    cell: Callable[[int, int], Cell], *, rows: Sequence[str], columns: Sequence[str], label: str, left: int = 80
) -> str:
    """A table of shaded cells, by row and column; `left` is the room for the rows' names."""
    cell_width, cell_height = 74, 30
    frame = Frame(width=left + 10 + cell_width * len(columns), height=112 + cell_height * len(rows), left=left, top=96)
    parts = []
    for j, name in enumerate(columns):
        x = frame.left + j * cell_width + cell_width / 2
        turned = f'transform="rotate(-35 {x:.0f} {frame.top - 8})"'
        parts.append(f'<text class="text" x="{x:.0f}" y="{frame.top - 8}" {turned}>{escape(name)}</text>')
    for i, name in enumerate(rows):
        y = frame.top + i * cell_height
        middle = y + cell_height / 2 + 4
        parts.append(
            f'<text class="text" x="{frame.left - 8}" y="{middle:.0f}" text-anchor="end">{escape(name)}</text>'
        )
        for j in range(len(columns)):
            one = cell(i, j)
            x = frame.left + j * cell_width
            ink = "cell-strong" if one.shade > 0.5 else "cell"
            parts.append(
                f'<rect class="heat" x="{x}" y="{y}" width="{cell_width - 2}" height="{cell_height - 2}" '
                f'fill-opacity="{0.06 + 0.94 * one.shade:.3f}">'
                f"<title>{escape(one.title)}</title></rect>"
                f'<text class="{ink}" x="{x + cell_width / 2 - 1:.0f}" y="{middle:.0f}" '
                f'text-anchor="middle">{escape(one.text)}</text>'
            )
    return _svg(frame, parts, label)


def legend(names: Sequence[str]) -> str:
    """HTML: a coloured square and a name for every series."""
    items = "".join(
        f'<span class="key"><span class="swatch b{index % NUM_COLOURS}"></span>{escape(name)}</span>'
        for index, name in enumerate(names)
    )
    return f'<p class="legend">{items}</p>'


def empty(reason: str) -> str:
    return f'<p class="empty">{escape(reason)}</p>'


def _axes(
    frame: Frame, x: tuple[float, float], y: tuple[float, float], *, x_label: str, y_label: str, x_log: bool
) -> list[str]:
    """
    Args:
        x: the span, of logarithms to base 10 with `x_log`.
    """
    parts = []
    base = frame.height - frame.bottom
    for tick in nice_ticks(*y):
        down = frame.top + (1 - (tick - y[0]) / (y[1] - y[0])) * frame.inner_height
        parts.append(
            f'<line class="grid" x1="{frame.left}" y1="{down:.1f}" x2="{frame.width - frame.right}" y2="{down:.1f}"/>'
        )
        parts.append(f'<text class="text" x="{frame.left - 6}" y="{down + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in log_ticks(10 ** x[0], 10 ** x[1]) if x_log else nice_ticks(*x, count=8):
        along = math.log10(tick) if x_log else tick
        across = frame.left + (along - x[0]) / (x[1] - x[0]) * frame.inner_width
        parts.append(f'<text class="text" x="{across:.1f}" y="{base + 16}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<line class="axis" x1="{frame.left}" y1="{base}" x2="{frame.width - frame.right}" y2="{base}"/>')
    middle = frame.left + frame.inner_width / 2
    parts.append(
        f'<text class="text" x="{middle:.0f}" y="{frame.height - 6}" text-anchor="middle">{escape(x_label)}</text>'
    )
    centre = frame.top + frame.inner_height / 2
    turned = f'transform="rotate(-90 14 {centre:.0f})"'
    parts.append(f'<text class="text" x="14" y="{centre:.0f}" text-anchor="middle" {turned}>{escape(y_label)}</text>')
    return parts


def _svg(frame: Frame, parts: Sequence[str], label: str) -> str:
    head = f'<svg viewBox="0 0 {frame.width} {frame.height}" role="img" aria-label="{escape(label)}">'
    return head + "".join(parts) + "</svg>"


def _span(values: Sequence[float], *, margin: float = 0.0) -> tuple[float, float]:
    low, high = min(values), max(values)
    if high <= low:
        return low - 0.5, high + 0.5
    extra = (high - low) * margin
    return low - extra, high + extra


def _bar_span(values: Sequence[float]) -> tuple[float, float]:
    """Bars of 3.41 and 3.44 look equal from zero: start at a round number below the least."""
    low, high = _span(values, margin=0.25)
    ticks = nice_ticks(low, high)
    step = ticks[1] - ticks[0] if len(ticks) > 1 else 1.0
    return max(0.0, math.floor(low / step) * step), high


def _thin(line: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    if len(line) <= MAX_POINTS:
        return line
    stride = -(-len(line) // MAX_POINTS)
    kept = list(line[::stride])
    return kept if kept[-1] == line[-1] else [*kept, line[-1]]
