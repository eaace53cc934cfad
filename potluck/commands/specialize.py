"""`potluck specialize TARGET --data CORPUS`: from a few examples to a specialist, compared with a generalist."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potluck.commands.home import Home, admin_client, home_option, open_home
from potluck.commands.machine import num_cores
from potluck.commands.measure import measure
from potluck.commands.options import add_common
from potluck.commands.output import Output
from potluck.commands.partitions import add_partition, add_spec_file, is_written, partition_of, run_name, write_spec
from potluck.commands.report import write_report
from potluck.commands.reports import report_of
from potluck.commands.run import raise_unless_finished
from potluck.commands.runs import WORKER_BYTES, read_run_file, submit
from potluck.commands.text import estimate
from potluck.errors import Refused, UsageError
from potluck.formatting import TABLE_WIDTH, human_bytes, human_count, human_seconds
from potluck.ids import short
from potluck.live import ENDED
from potluck.sizing import SAFETY, Machine, training_bytes
from potluck.sizing_specialist import BATCH_SIZE, Wish, choose, cost_of, spec_for
from potluck.specs.crisp import CrispSpec, TargetWeight
from potluck.specs.run import UNKNOWN_DIGEST
from potluck.specs.sections import TextSpec

if TYPE_CHECKING:
    from potluck.client import AdminClient
    from potluck.v1 import admin_pb2

MINUTES = 6.0
MAX_MINUTES = 7 * 24 * 60
HISTOGRAM = "histogram of the target"
DUPLICATES = "find near-duplicates of the target's test text"
"""Labels of tasks, under which their figures are told."""
TOO_OFTEN = "[spec.too-many-repeats]"


def configure(parser: argparse.ArgumentParser) -> None:
    add_common(parser)
    target_help = "folder or file with text like what the specialist is for; five examples are enough to start with"
    parser.add_argument("target", type=Path, nargs="+", metavar="TARGET", help=target_help)
    parser.add_argument("--data", type=Path, required=True, metavar="CORPUS", help="folder or file to learn from")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--minutes", type=float, help=f"what both trainings may take here (default {MINUTES:g})")
    size.add_argument("--steps", type=int, help="instead: steps of each of the two models")
    parser.add_argument("--model", default="", metavar="PRESET", help="instead of the largest that gets enough text")
    add_partition(parser)
    weight_help = "how much a first-level folder of the target counts (default 1 each)"
    parser.add_argument("--weight", action="append", default=[], metavar="NAME=W", help=weight_help)
    switch_help = "share of the training after which the specialist leaves the generalist (default 0: from the start)"
    parser.add_argument("--switch", type=float, default=0.0, metavar="F", help=switch_help)
    tune_help = "train both on the target itself afterwards"
    parser.add_argument("--finetune", type=int, default=0, metavar="STEPS", help=tune_help)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--yes", action="store_true", help="go on whatever the warnings are")
    add_spec_file(parser, "specialist-TARGET")


def run(args: argparse.Namespace) -> int:
    output, home = Output(as_json=args.json), open_home(args.home)
    name = run_name(args.name, args.target[0])
    out = args.out or Path(f"specialist-{name}")
    with admin_client(home) as client:
        nodes = sum(node.role == "node" and node.state == "live" for node in client.list_nodes().nodes)
        path = out / "specialist.toml"
        steps = _written(args, path, name, max(1, nodes), output).training.steps
        answer = submit(client, home, path, name=name, output=output)
        known, has_ended = _await_histogram(client, answer.run, output)
        _show_histogram(known, steps, output)
        if not has_ended and not _may_go_on(known, args, output):
            client.cancel_run(answer.run, request_id=uuid.uuid4().hex)
            output.result({"run": answer.run, "state": "cancelled", **known})
            output.line(f"run {short(answer.run)} cancelled; the same call takes it up again")
            return 0
        info = _follow(client, home, answer.run, known, steps, output)
        report = report_of(client, home, info)
    return _finish(report, info, out, path, home, output)


def _written(args: argparse.Namespace, path: Path, name: str, nodes: int, output: Output) -> CrispSpec:
    """The spec of this call: sized and written, unless it is there; its cost is told before it is spent."""
    weights = tuple(_weight(text) for text in args.weight)
    minutes = MINUTES if args.minutes is None else args.minutes
    if not 0 < minutes <= MAX_MINUTES:
        raise UsageError("usage.bad-value", f"--minutes {minutes:g}", f"give more than 0 and at most {MAX_MINUTES}")
    options = ("k", "branch", "depth", "dim", "model", "weight", "switch", "finetune", "seed", "steps", "minutes")
    call = {
        "command": "specialize",
        "target": [str(one.resolve()) for one in args.target],
        "data": str(args.data.resolve()),
        "encoder": str(args.encoder.resolve()) if args.encoder else "",
        "name": name,
        **{key: getattr(args, key) for key in options},
    }
    texts = [args.data, *args.target]
    is_there = is_written(path, call, texts, force=args.force, output=output)
    length = TextSpec().sequence_length
    told = estimate(args.data, vocab_size=TextSpec().vocab_size, output=output)
    train_tokens = int(told["train_tokens"])
    if is_there:
        spec = read_run_file(path)[0].canonical(UNKNOWN_DIGEST)
        assert isinstance(spec, CrispSpec)
        _show_cost(spec, train_tokens, "", output)
        return spec
    wish = Wish(
        partition=partition_of(args, train_tokens // length, output),
        weights=weights,
        switch_fraction=args.switch,
        finetune_steps=args.finetune,
        preset=args.model,
        has_encoder=args.encoder is not None,
        seed=args.seed,
    )
    if args.steps is not None:
        spec, duration = spec_for(wish, steps=args.steps), "how long that takes was not measured: --minutes does"
    else:
        spec, duration = _sized(wish, minutes, nodes, train_tokens, output)
    _show_cost(spec, train_tokens, duration, output)
    remarks = ["potluck specialize; repeat it with `potluck run start`"] + ([duration] if args.steps is None else [])
    paths: dict[str, Any] = {"data": args.data, "target": args.target, "encoder": args.encoder}
    write_spec(path, spec, name=name, call=call, remarks=remarks, **paths)
    return spec


def _sized(wish: Wish, minutes: float, nodes: int, train_tokens: int, output: Output) -> tuple[CrispSpec, str]:
    """The spec that this machine should finish in so many minutes, and that in words."""
    cores = num_cores()
    with output.timed(f"timing steps on {cores} core(s)"):
        machine = Machine(cores=cores, nodes=nodes, rates=measure(cores))
    sized = choose(minutes, machine, wish, train_tokens=train_tokens)
    reasons = {
        "time": "the time decides the size",
        "text": "the text decides the size: a specialist of more would read its part of it too often",
        "floor": "the smallest size, longer than the time or for more text than there is",
    }
    rate = human_count(machine.rates.expert_flops_per_second)
    duration = (
        f"about {human_seconds(sized.seconds)} with {nodes} node(s) on {cores} core(s) at {rate}FLOP/s each, of which "
        f"{SAFETY:.0%} is counted on; {reasons[sized.limited_by]}"
    )
    return sized.spec, duration


def _show_cost(spec: CrispSpec, train_tokens: int, duration: str, output: Output) -> None:
    cost, parameters = cost_of(spec, train_tokens=train_tokens), spec.full_model().num_parameters
    output.line(
        f"two models of {human_count(parameters)} parameters, {spec.training.steps} steps of {BATCH_SIZE} rows each: "
        f"{human_count(cost.tokens)} tokens, {cost.tokens / parameters:.1f} a parameter,"
    )
    output.line(
        f"{cost.epochs:.2f} of the corpus; {human_count(cost.flops)} FLOPs in all; "
        f"about {human_bytes(training_bytes(spec) + WORKER_BYTES)} a node"
    )
    if duration:
        output.line(duration)


def _await_histogram(client: AdminClient, run: str, output: Output) -> tuple[dict[str, Any], bool]:
    """What is known of the target before training, and whether the run has ended already.

    Returns:
        Figures of the histogram and of near-duplicates; empty where the run ended without them, or has more
        figures than the coordinator tells.
    """
    known: dict[str, Any] = {}
    has_ended = False
    for info in client.watch_run(run):
        output.progress(f"{info.stage.partition(';')[0]} ...")
        has_ended = info.state in ENDED
        results = json.loads(info.results_json or "{}")
        if info.state == "finished":
            known = {key: results[key] for key in ("histogram", "near_duplicates") if key in results}
        elif HISTOGRAM in results:
            known = {"histogram": results[HISTOGRAM], "near_duplicates": results.get(DUPLICATES)}
        if known or has_ended or info.lineages:
            break
    output.end_progress()
    return known, has_ended


def _show_histogram(known: Mapping[str, Any], steps: int, output: Output) -> None:
    from potluck.report.specialist import fewer_steps, histogram_rows

    if not known:
        return
    histogram = known["histogram"]
    rows = [list(row) for row in histogram_rows(histogram, known.get("near_duplicates"))]
    output.table(["the target in the corpus", ""], rows, left=2)
    for warning in histogram.get("warnings") or []:
        output.note(textwrap.fill(f"mind: {warning}", TABLE_WIDTH, subsequent_indent="  "))
    fewer = fewer_steps(histogram, steps)
    if fewer is not None:
        output.note(f"--steps {fewer} would read it 4 times")


def _may_go_on(known: Mapping[str, Any], args: argparse.Namespace, output: Output) -> bool:
    """Whether a person who sees the warnings wants to; yes where none looks."""
    if not known or not known["histogram"].get("warnings") or args.yes:
        return True
    if args.json or not (sys.stdin.isatty() and sys.stderr.isatty()):
        output.note("going on in spite of that: nobody is there to ask (no terminal)")
        return True
    sys.stderr.write("go on all the same? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _follow(
    client: AdminClient, home: Home, run: str, known: Mapping[str, Any], steps: int, output: Output
) -> admin_pb2.RunInfo:
    from potluck.live import watch
    from potluck.report.specialist import fewer_steps

    info = watch(client, home, run, output)
    fewer = fewer_steps(known["histogram"], steps) if known else None
    if info.reason.startswith(TOO_OFTEN) and fewer is not None:
        what = f"run {short(run)} stopped before it trained: {info.reason}"
        raise Refused("refused.run-failed", what, f"add --steps {fewer} --force: so many read the text 4 times")
    raise_unless_finished(info)
    return info


def _finish(
    report: dict[str, Any], info: admin_pb2.RunInfo, out: Path, spec_path: Path, home: Home, output: Output
) -> int:
    from potluck.report.specialist import render_specialist, sentences

    json_path, html_path = write_report(report, out)
    told = {"verdict": sentences(report)[0], "json": str(json_path), "html": str(html_path)}
    output.result({**report, **told, "spec_file": str(spec_path)})
    output.line()
    output.line(render_specialist(report))
    output.line(f"\nwrote {json_path} and {html_path}")
    option, which = home_option(home), short(info.run)
    output.next_step(
        f'potluck generate "The" --run {which}{option}   # asks a router; `potluck router` starts one',
        f"potluck export {which}/specialist {out / 'model'}{option}",
    )
    return 0


def _weight(text: str) -> TargetWeight:
    name, separator, value = text.rpartition("=")
    try:
        return TargetWeight(name=name, weight=float(value if separator and name else ""))
    except ValueError:
        raise UsageError("usage.bad-value", f"--weight {text}", "write NAME=W, W above 0, such as poems=2") from None
