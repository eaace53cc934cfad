"""`potluck soup RUN`: any specialist of a soup, by weights over its domains or by text like what it is for."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path
from typing import Any

from potluck.commands.export import Target, add_writing, try_it, write_specialist
from potluck.commands.home import Home, admin_client, home_option, open_home
from potluck.commands.mixtures import MOST_ROWS
from potluck.commands.options import add_common
from potluck.commands.output import Output
from potluck.commands.soups import PublishedSoup, Specialist, by_text, by_weights, find_soup
from potluck.errors import UsageError
from potluck.formatting import TABLE_WIDTH
from potluck.ids import short
from potluck.soup_names import PREFIX, SoupName

MAX_MODEL = 200
"""Characters of a name that is suggested; longer ones are for programs."""


def configure(parser: argparse.ArgumentParser) -> None:
    add_common(parser)
    run_help = "a soup run, finished or under way: id, start of an id, or name"
    parser.add_argument("run", metavar="RUN", help=run_help)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--weights", metavar="W", help="such as code=0.6,law=0.4; they sum to one")
    like_help = "folder or file with text like what it is for; a few examples do, more are better"
    what.add_argument("--like", type=Path, nargs="+", metavar="TEXT", help=like_help)
    out_help = "write it there for transformers, as `potluck export` does"
    parser.add_argument("--out", type=Path, metavar="FOLDER", help=out_help)
    add_writing(parser)
    parser.add_argument("--all", action="store_true", help=f"show all domains, not the {MOST_ROWS} largest")


def run(args: argparse.Namespace) -> int:
    output, home = Output(as_json=args.json), open_home(args.home)
    target = _target(args)
    with admin_client(home) as client:
        soup = find_soup(client, home, args.run)
        if args.weights is None and not args.like:
            return _list(soup, home, args, output)
        if args.weights is not None:
            specialist = by_weights(client, home, soup, args.weights, output)
        else:
            specialist = by_text(client, home, soup, args.like, output)
    _show(soup, specialist, args, output)
    written = None if target is None else write_specialist(home, soup, specialist, target, output)
    output.result({**_told(soup, specialist), "export": written})
    _suggest(soup, specialist, target, home, output)
    return 0


def _target(args: argparse.Namespace) -> Target | None:
    """Raises:
    UsageError: ``usage.bad-arguments``: options of writing without --out, or --out of nothing; as `Target.require`.
    """
    if args.out is None:
        if args.force or args.check:
            raise UsageError("usage.bad-arguments", "--force and --check are about a folder", "add --out FOLDER")
        return None
    if args.weights is None and not args.like:
        raise UsageError("usage.bad-arguments", "--out without a mixture", "add --weights or --like")
    target = Target(folder=args.out, force=args.force, check=args.check)
    target.require()
    return target


def _list(soup: PublishedSoup, home: Home, args: argparse.Namespace, output: Output) -> int:
    """The domains, and how to ask."""
    lines = soup.shares()
    output.result(
        {
            "run": soup.info.run,
            "name": soup.info.name,
            "state": soup.info.state,
            "step": soup.bank.step,
            "places_text": bool(soup.source.tree),
            "domains": [{"domain": name, "natural": share, "rows": rows} for name, share, rows in lines],
        }
    )
    output.line(f"{_named(soup)}: {len(lines)} domains, {soup.source.config.experts} experts")
    shown = lines if args.all else lines[:MOST_ROWS]
    output.table(["domain", "corpus", "rows"], [[name, f"{share:.1%}", f"{rows:,}"] for name, share, rows in shown])
    if len(shown) < len(lines):
        output.line(f"and {len(lines) - len(shown)} more domains (--all lists them)")
    first = [name for name, _, _ in lines[:2]]
    weights = str(SoupName(weights=dict.fromkeys(first, 1 / len(first)))).removeprefix(PREFIX)
    ask = f"potluck soup {short(soup.info.run)}{home_option(home)}"
    steps = [f"{ask} --weights '{weights}'"] + ([f"{ask} --like FOLDER"] if soup.source.tree else [])
    output.next_step(*steps)
    return 0


def _show(soup: PublishedSoup, specialist: Specialist, args: argparse.Namespace, output: Output) -> None:
    from potluck.report.instantiated import render_instantiated, warnings

    output.line(f"specialist of {_named(soup)}")
    output.line(render_instantiated(specialist.report, every=args.all))
    for warning in warnings(specialist.report):
        output.note(textwrap.fill(f"mind: {warning}", TABLE_WIDTH, subsequent_indent="  "))
    output.line(f"weights {specialist.weights}")
    made = "made now" if specialist.is_new else "made before, found again"
    output.line(f"{made}, {specialist.seconds:.1f} s; run {short(specialist.run)}")


def _told(soup: PublishedSoup, specialist: Specialist) -> dict[str, Any]:
    report = specialist.report
    return {
        "soup": soup.info.run,
        "step": soup.bank.step,
        "run": specialist.run,
        "state": "made" if specialist.is_new else "found",
        "seconds": specialist.seconds,
        "model": specialist.model,
        "domains": [{"domain": name, "weight": weight, "natural": share} for name, weight, share in report["domains"]],
        **{key: report["blobs"][key] for key in ("weights", "mixture", "tokenizer")},
        **{key: report[key] for key in ("coefficients", "histogram", "contest", "test_rows")},
    }


def _suggest(soup: PublishedSoup, specialist: Specialist, target: Target | None, home: Home, output: Output) -> None:
    run, option, model = short(soup.info.run), home_option(home), specialist.model
    steps: list[str] = []
    if len(model) <= MAX_MODEL and "'" not in model:
        steps = [f"potluck generate \"The\" --run {run} --model '{model}'{option}   # asks a router"]
        if target is None:
            steps += [f"potluck export {run} --soup '{model.removeprefix(PREFIX)}' --out FOLDER{option}"]
    elsewhere = [] if target is None else [try_it(target.folder.resolve())]
    if steps or elsewhere:
        output.next_step(*steps, elsewhere=elsewhere)


def _named(soup: PublishedSoup) -> str:
    total = next((line.total_steps for line in soup.info.lineages if line.lineage == soup.bank.lineage), soup.bank.step)
    return f"run {short(soup.info.run)} ({soup.info.name}), step {soup.bank.step:,} of {total:,}"
