"""`potluck nodes`: who is there, what they do, how fast."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from potluck.commands.home import Home, admin_client, home_option, open_home
from potluck.commands.options import add_common
from potluck.commands.output import Output
from potluck.formatting import human_bytes, human_count

if TYPE_CHECKING:
    from potluck.v1 import admin_pb2


def configure(parser: argparse.ArgumentParser) -> None:
    add_common(parser)
    parser.add_argument("--revoke", default="", metavar="NODE", help="put a node or router out for good, by its id")


def run(args: argparse.Namespace) -> int:
    output, home = Output(as_json=args.json), open_home(args.home)
    if args.revoke:
        return _revoke(args.revoke, home, output)
    with admin_client(home) as client:
        nodes = list(client.list_nodes().nodes)
    output.result(
        {
            "nodes": [
                {
                    "node": node.node,
                    "name": node.name,
                    "role": node.role,
                    "state": node.state,
                    "drained": node.drained,
                    "silent_ms": node.silent_ms,
                    "activity": node.activity,
                    "label": node.label,
                    "tokens_per_second": node.tokens_per_second,
                    "hostname": node.hostname,
                    "cores": node.cores,
                    "memory_bytes": node.memory_bytes,
                    "rss_bytes": node.rss_bytes,
                    "version": node.version,
                    "address": node.address,
                }
                for node in nodes
            ]
        }
    )
    if not nodes:
        output.line("nobody has joined yet")
        output.next_step(f"potluck invite{home_option(home)}")
        return 0
    rows = [row(node) for node in nodes]
    from potluck.doctor.home import whom_we_wait_for

    output.table(["node", "role", "state", "doing", "tokens/s", "in use", "silent"], rows, left=4)
    if any(node.state != "live" for node in nodes):
        output.line(whom_we_wait_for(nodes))
    return 0


def _revoke(node: str, home: Home, output: Output) -> int:
    with admin_client(home) as client:
        client.revoke(node)
    output.result({"revoked": node})
    output.line(f"{node} was put out: its certificate and keys are worth nothing any more, its work is free")
    return 0


def row(node: admin_pb2.NodeInfo) -> list[str]:
    """A node as a line of the table; names may be equal, ids are not."""
    # Of a node that has not come back since the coordinator started, nothing was ever heard.
    unheard = node.state == "gone" and not node.silent_ms
    return [
        node.node,
        node.role,
        f"{node.state}, drained" if node.drained else node.state,
        f"{node.activity} {node.label}".strip(),
        human_count(node.tokens_per_second) if node.tokens_per_second else "-",
        human_bytes(node.rss_bytes) if node.rss_bytes else "-",
        "-" if unheard else f"{node.silent_ms / 1000:.0f} s",
    ]
