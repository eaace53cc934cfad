"""`potluck ledger`: the proof that every step was done once, and what crossed the wire."""

from __future__ import annotations

import argparse

from potluck.commands.home import admin_client, open_home
from potluck.commands.options import add_common, add_run
from potluck.commands.output import Output
from potluck.commands.runs import find_run
from potluck.formatting import human_bytes
from potluck.ids import short

EXIT_INCOMPLETE = 1


def configure(parser: argparse.ArgumentParser) -> None:
    add_common(parser)
    add_run(parser)
    parser.add_argument("--ranges", action="store_true", help="list every committed range")


def run(args: argparse.Namespace) -> int:
    output = Output(as_json=args.json)
    with admin_client(open_home(args.home)) as client:
        info = find_run(client, args.run)
        ledger = client.get_ledger(info.run)
    planes = {
        "control": ledger.bytes_control,
        "corpus": ledger.bytes_corpus,
        "scores": ledger.bytes_scores,
        "weights": ledger.bytes_weights,
    }
    output.result(
        {
            "run": info.run,
            "ok": ledger.ok,
            "problems": list(ledger.problems),
            "bytes": planes,
            "lineages": [
                {
                    "lineage": line.lineage,
                    "label": line.label,
                    "total_steps": line.total_steps,
                    "ranges": [
                        {"steps": [r.start_step, r.end_step], "parent": r.parent, "child": r.child, "node": r.node}
                        for r in line.ranges
                    ],
                }
                for line in ledger.lineages
            ],
        }
    )
    rows = [
        [line.label, f"{max((r.end_step for r in line.ranges), default=0)}/{line.total_steps}", str(len(line.ranges))]
        for line in ledger.lineages
    ]
    output.table(["lineage", "committed steps", "commits"], rows)
    if args.ranges:
        ranges = [
            [line.label, f"[{r.start_step}, {r.end_step})", r.node, short(r.parent) or "start", short(r.child)]
            for line in ledger.lineages
            for r in line.ranges
        ]
        output.line()
        output.table(["lineage", "steps", "node", "parent", "child"], ranges, left=5)
    output.line()
    output.table(["plane", "bytes"], [[plane, human_bytes(count)] for plane, count in planes.items()])
    verdict = "every committed step is there once, in one chain" if ledger.ok else "; ".join(ledger.problems)
    output.line(f"\nledger: {verdict}")
    return 0 if ledger.ok else EXIT_INCOMPLETE
