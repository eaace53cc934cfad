"""The frame of every HTML page: one file, no network, no scripts, light and dark by the reader's setting."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from potluck.report import svg

STYLE = """
:root { color-scheme: light dark; --page:#fbfaf7; --ink:#22252a; --quiet:#666b73; --rule:#dcd9d2; --card:#ffffff;
  --heat:#2f6f9f; --strong:#ffffff; --s0:#2f6f9f; --s1:#c2571a; --s2:#3c8d5a; --s3:#8a5aa8; --s4:#b08900; --s5:#b8405e;
  --s6:#4a8f95; --s7:#7a6652; --of-hue:58% 45%; }
@media (prefers-color-scheme: dark) { :root { --page:#16181c; --ink:#e4e5e8; --quiet:#9aa0a9; --rule:#33373e;
  --card:#1d2026; --heat:#5fa8dc; --strong:#101215; --s0:#6cb0e0; --s1:#f0935a; --s2:#6cc48c; --s3:#c49be0;
  --s4:#dcb94a; --s5:#ee7d98; --s6:#7cc5cb; --s7:#b9a48e; --of-hue:62% 64%; } }
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
th.wrap, td.wrap { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 14rem; }
a { color: inherit; text-decoration-color: var(--quiet); text-underline-offset: .15em; }
code { font-family: ui-monospace, monospace; font-size: .9em; overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; max-width: 60rem; font-family: system-ui, sans-serif; }
.text { fill: var(--quiet); font-size: 12px; } .small { fill: var(--quiet); font-size: 9.5px; }
.cell { fill: var(--ink); font-size: 12px; } .cell-strong { fill: var(--strong); font-size: 12px; font-weight: 600; }
.grid { stroke: var(--rule); stroke-width: 1; } .axis { stroke: var(--quiet); stroke-width: 1; }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round; } .heat { fill: var(--heat); }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1rem; font-size: .85rem; color: var(--quiet); margin: .5rem 0 0; }
.swatch, .hue { display: inline-block; width: .75rem; height: .75rem; border-radius: 2px; margin-right: .35rem; }
.hue { background: hsl(var(--hue) var(--of-hue)); }
.point { fill: hsl(var(--hue) var(--of-hue)); fill-opacity: .7; }
.centre circle { fill: var(--card); stroke: var(--ink); } .centre text { fill: var(--ink); font-size: 9px; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1rem; }
article { border: 1px solid var(--rule); border-radius: 6px; padding: .7rem .9rem; min-width: 0; }
article:target { border-color: var(--heat); box-shadow: 0 0 0 1px var(--heat); }
h3 { font-size: .95rem; margin: 0; } h3, article p, blockquote { overflow-wrap: anywhere; }
blockquote { margin: .5rem 0 0; padding-left: .7rem; border-left: 3px solid var(--rule); font-size: .85rem; }
.shares { display: flex; gap: 1px; border-radius: 4px; overflow: hidden; font-size: .75rem; }
.share { flex: 1 1 0; min-width: 0; padding: 0 .3rem; background: var(--rule); white-space: nowrap; overflow: hidden; }
"""


def page(title: str, body: str) -> str:
    """A whole page as text; it loads nothing and runs nothing."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}{_series_style()}</style></head>"
        f"<body><main>{body}</main></body></html>\n"
    )


def section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def facts(rows: Sequence[tuple[str, str]]) -> str:
    """Names and values; a value is HTML and may wrap."""
    body = "".join(f'<tr><td>{escape(name)}</td><td class="wrap">{value}</td></tr>' for name, value in rows)
    return f'<div class="scroll"><table>{body}</table></div>'


def _series_style() -> str:
    rules = []
    for i in range(svg.NUM_COLOURS):
        rules.append(f".line.s{i}{{stroke:var(--s{i})}}.bar.s{i},.dot.s{i}{{fill:var(--s{i})}}")
        rules.append(f".swatch.b{i}{{background:var(--s{i})}}")
    return "".join(rules)
