"""`potluck report RUN`: report.json and report.html; cards.json and cards.html of a run that clusters."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from potluck.commands.home import admin_client, open_home
from potluck.commands.options import add_common, add_run
from potluck.commands.output import Output
from potluck.commands.reports import file_stem, render_html, report_of
from potluck.commands.runs import find_run


def configure(parser: argparse.ArgumentParser) -> None:
    add_common(parser)
    add_run(parser)
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="where to write (default: here)")


def run(args: argparse.Namespace) -> int:
    output, home = Output(as_json=args.json), open_home(args.home)
    with admin_client(home) as client:
        report = report_of(client, home, find_run(client, args.run))
    json_path, html_path = write_report(report, args.out)
    output.result({"json": str(json_path), "html": str(html_path)})
    output.line(f"wrote {json_path} and {html_path}")
    return 0


def write_report(report: dict[str, Any], folder: Path) -> tuple[Path, Path]:
    """Writes the report as JSON and as a page."""
    folder.mkdir(parents=True, exist_ok=True)
    json_path, html_path = (folder / f"{file_stem(report)}.{suffix}" for suffix in ("json", "html"))
    json_path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    html_path.write_text(render_html(report), encoding="utf-8")
    return json_path, html_path
