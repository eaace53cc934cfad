"""`potluck run start|status|watch|pause|resume|cancel|list`."""

from __future__ import annotations

import argparse
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from potluck.commands.home import admin_client, home_option, open_home
from potluck.commands.options import add_common, add_run
from potluck.commands.output import Output
from potluck.commands.runs import find_run, run_summary, show_metrics, show_run, submit
from potluck.errors import Refused
from potluck.ids import short

if TYPE_CHECKING:
    from potluck.v1 import admin_pb2

VERBS = {
    "start": "start a run from a spec file, or resume it",
    "status": "what a run does now",
    "watch": "follow a run until it ends",
    "pause": "let a run rest: its trainings stop at their next commit, nothing is lost",
    "resume": "let a paused run go on",
    "cancel": "stop a run; what it committed stays",
    "list": "all runs of this coordinator",
}


def configure(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, summary in VERBS.items():
        inner = verbs.add_parser(verb, help=summary, description=summary[0].upper() + summary[1:] + ".")
        add_common(inner)
        if verb == "start":
            inner.add_argument("spec", type=Path, help="TOML file; docs/spec.md lists its keys")
            inner.add_argument("--watch", action="store_true", help="follow it until it ends")
            inner.add_argument("--name", default="", help="instead of the name in the file")
        elif verb != "list":
            add_run(inner)
        if verb == "status":
            inner.add_argument("--metrics", action="store_true", help="what each training measures at the moment")


def run(args: argparse.Namespace) -> int:
    output = Output(as_json=args.json)
    verbs = {
        "start": _start,
        "status": _status,
        "watch": _watch,
        "pause": _pause,
        "resume": _pause,
        "cancel": _cancel,
        "list": _list,
    }
    return verbs[args.verb](args, output)


def _start(args: argparse.Namespace, output: Output) -> int:
    home = open_home(args.home)
    with admin_client(home) as client:
        answer = submit(client, home, args.spec, name=args.name, output=output)
        if args.watch:
            return _follow(answer.run, args, output)
    output.result({"run": answer.run, "state": answer.state})
    output.line(f"run {short(answer.run)} {answer.state}")
    step = "eval" if answer.state == "already-finished" else "run watch"
    output.next_step(f"potluck {step} {short(answer.run)}{home_option(home)}")
    return 0


def _status(args: argparse.Namespace, output: Output) -> int:
    with admin_client(open_home(args.home)) as client:
        info = find_run(client, args.run)
    (show_metrics if args.metrics else show_run)(info, output)
    return 0


def _watch(args: argparse.Namespace, output: Output) -> int:
    return _follow(args.run, args, output)


def _follow(run: str, args: argparse.Namespace, output: Output) -> int:
    from potluck.live import watch

    home = open_home(args.home)
    with admin_client(home) as client:
        info = watch(client, home, find_run(client, run).run, output)
    output.result(run_summary(info))
    raise_unless_finished(info)
    output.line(f"run {short(info.run)} finished")
    output.next_step(f"potluck eval {short(info.run)}{home_option(home)}")
    return 0


def raise_unless_finished(info: admin_pb2.RunInfo) -> None:
    """Raises:
    Refused: ``refused.run-cancelled`` or ``refused.run-failed``, with what it failed of.
    """
    if info.state == "cancelled":
        fix = "start its spec again to take it up where it stopped"
        raise Refused("refused.run-cancelled", f"run {short(info.run)} was cancelled", fix)
    if info.state != "finished":
        fix = "mend what the message says, then start its spec again: it goes on from what is committed"
        raise Refused("refused.run-failed", f"run {short(info.run)} {info.state}: {info.reason}", fix)


def _pause(args: argparse.Namespace, output: Output) -> int:
    resume = args.verb == "resume"
    home = open_home(args.home)
    with admin_client(home) as client:
        info = find_run(client, args.run)
        client.pause_run(info.run, resume=resume)
    output.result({"run": info.run, "paused": not resume})
    if resume:
        output.line(f"run {short(info.run)} goes on")
        return 0
    output.line(f"run {short(info.run)} paused: its trainings stop at their next commit")
    output.next_step(f"potluck run resume {short(info.run)}{home_option(home)}")
    return 0


def _cancel(args: argparse.Namespace, output: Output) -> int:
    with admin_client(open_home(args.home)) as client:
        info = find_run(client, args.run)
        answer = client.cancel_run(info.run, request_id=uuid.uuid4().hex)
    if not answer.cancelled:
        fix = f"see what it does with `potluck run status {short(info.run)}`"
        raise Refused("refused.not-cancelled", f"run {short(info.run)} was not cancelled: {answer.reason}", fix)
    output.result({"run": info.run, "cancelled": True})
    output.line(f"run {short(info.run)} cancelled; its committed work stays")
    return 0


def _list(args: argparse.Namespace, output: Output) -> int:
    home = open_home(args.home)
    with admin_client(home) as client:
        runs = list(client.list_runs().runs)
    output.result({"runs": [run_summary(info) for info in runs]})
    if not runs:
        output.line("no runs yet")
        output.next_step(f"potluck run start SPEC.toml{home_option(home)}")
        return 0
    rows = [
        [short(info.run), info.name, "paused" if info.paused else info.state, info.stage, f"{info.fraction:.0%}"]
        for info in runs
    ]
    output.table(["run", "name", "state", "stage", "done"], rows, left=4)
    return 0
