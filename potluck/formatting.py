"""Numbers and tables as people read them: plain text, at most 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

TABLE_WIDTH = 80


def format_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1, title: str = "") -> str:
    """Aligned text of at most `TABLE_WIDTH` columns; the widest text column is cut if it must be."""
    cells = [list(columns), *[list(row) for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    excess = sum(widths) + 2 * (len(widths) - 1) - TABLE_WIDTH
    while excess > 0:
        widest = max(range(len(widths)), key=lambda i: widths[i])
        cut = min(excess, max(1, widths[widest] - 8))
        widths[widest] -= cut
        excess -= cut
        if max(widths) <= 8:
            break
    lines = [title] if title else []
    for number, row in enumerate(cells):
        padded = [
            _cut(cell, width).ljust(width) if i < left else _cut(cell, width).rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
        if number == 0:
            lines.append("  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(1, width - 1)] + "…"


def human_bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError(count)


def human_count(count: float) -> str:
    for unit in ("", "k", "M", "G", "T", "P"):
        if abs(count) < 1000 or unit == "P":
            return f"{count:.0f}" if unit == "" else f"{count:.3g}{unit}"
        count /= 1000
    raise AssertionError(count)


def human_seconds(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
