"""`potluck cluster DATA`: divides a corpus into clusters and shows what each is about."""

from __future__ import annotations

import argparse
from pathlib import Path

from potluck.commands.home import admin_client, home_option, open_home
from potluck.commands.options import add_common
from potluck.commands.output import Output
from potluck.commands.partitions import add_partition, add_spec_file, is_written, partition_of, run_name, write_spec
from potluck.commands.report import write_report
from potluck.commands.reports import report_of
from potluck.commands.run import raise_unless_finished
from potluck.commands.runs import submit
from potluck.commands.text import estimate
from potluck.ids import short
from potluck.specs.cluster import ClusterSpec
from potluck.specs.run import UNKNOWN_DIGEST
from potluck.specs.sections import TextSpec


def configure(parser: argparse.ArgumentParser) -> None:
    add_common(parser)
    parser.add_argument("data", type=Path, metavar="DATA", help="folder or file of text")
    add_partition(parser)
    add_spec_file(parser, "clusters-DATA")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--all", action="store_true", help="show all clusters, not only the largest")


def run(args: argparse.Namespace) -> int:
    from potluck.live import watch
    from potluck.report.cards import render_cards

    output, home = Output(as_json=args.json), open_home(args.home)
    name = run_name(args.name, args.data)
    out = args.out or Path(f"clusters-{name}")
    with admin_client(home) as client:
        client.list_nodes()  # nothing is read for a coordinator that does not answer
        path = _spec_file(args, out / "cluster.toml", name, output)
        answer = submit(client, home, path, name=name, output=output)
        info = watch(client, home, answer.run, output)
        raise_unless_finished(info)
        report = report_of(client, home, info)
    json_path, html_path = write_report(report, out)
    output.result({**report, "json": str(json_path), "html": str(html_path), "spec_file": str(path)})
    output.line(render_cards(report, everything=args.all))
    output.line(f"\nwrote {json_path} and {html_path}")
    output.next_step(
        f"potluck eval {short(answer.run)}{home_option(home)}   # the table again",
        f"potluck specialize TARGET --data {args.data}{home_option(home)}",
    )
    return 0


def _spec_file(args: argparse.Namespace, path: Path, name: str, output: Output) -> Path:
    """The spec of this call: written, unless it is there."""
    call = {
        "command": "cluster",
        "data": str(args.data.resolve()),
        "encoder": str(args.encoder.resolve()) if args.encoder else "",
        "name": name,
        **{key: getattr(args, key) for key in ("k", "branch", "depth", "dim", "seed")},
    }
    if is_written(path, call, [args.data], force=args.force, output=output):
        return path
    text = TextSpec()
    told = estimate(args.data, vocab_size=text.vocab_size, output=output)
    partition = partition_of(args, int(told["train_tokens"]) // text.sequence_length, output)
    spec = ClusterSpec(method="cluster", corpus=UNKNOWN_DIGEST, seed=args.seed, text=text, partition=partition)
    write_spec(
        path,
        spec,
        name=name,
        data=args.data,
        encoder=args.encoder,
        call=call,
        remarks=["potluck cluster; repeat it with `potluck run start`"],
    )
    return path
