"""`potluck plan`: size a run for this machine (`--minutes M DATA`), or check a spec (`SPEC.toml`)."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from potluck.commands.home import home_option, open_home
from potluck.commands.machine import num_cores
from potluck.commands.measure import measure
from potluck.commands.options import add_common
from potluck.commands.output import Output
from potluck.commands.runs import WORKER_BYTES, horizons, read_run_file, smaller
from potluck.commands.text import estimate
from potluck.errors import ResourceError, SpecError, UsageError
from potluck.formatting import human_bytes, human_count, human_seconds
from potluck.ids import Digest
from potluck.lm.flops import train_flops
from potluck.sizing import SAFETY, Commits, Cost, Machine, Sized, choose, commits_of, cost_of, training_bytes
from potluck.specfile import same_call, spec_text
from potluck.specs.choices import ChoicesSpec
from potluck.specs.cluster import ClusterSpec
from potluck.specs.contest import ContestSpec
from potluck.specs.crisp import CrispSpec
from potluck.specs.instantiate import InstantiateSpec
from potluck.specs.run import RunSpec
from potluck.specs.single import SingleSpec
from potluck.specs.smalltalk import MAX_EXPERTS, SmallTalkSpec
from potluck.specs.soup import SoupSpec

MAX_MINUTES = 7 * 24 * 60


def configure(parser: argparse.ArgumentParser) -> None:
    add_common(parser)
    parser.add_argument("target", type=Path, metavar="DATA|SPEC", help="text to train on, or a spec file to check")
    parser.add_argument("--minutes", type=float, default=None, help="size a run of this many minutes for this machine")
    parser.add_argument("--nodes", type=int, default=4, help="expert nodes that will share this machine (default 4)")
    parser.add_argument("--out", type=Path, default=Path("spec.toml"), help="where to write the spec (spec.toml)")
    parser.add_argument("--force", action="store_true", help="write over a spec that another call wrote")
    parser.add_argument("--name", default="", help="the run's name")


def run(args: argparse.Namespace) -> int:
    output = Output(as_json=args.json)
    if args.minutes is not None:
        how = {"minutes": args.minutes, "nodes": args.nodes, "name": args.name, "force": args.force}
        size_run(args.target, args.out, **how, output=output)
        args.target = args.out
    elif args.target.is_dir():
        fix = f"size a run for its text with `potluck plan --minutes 30 {args.target}`, or name a spec file"
        raise SpecError("spec.not-a-file", f"{args.target} is a folder, and a folder needs --minutes", fix)
    file, data = read_run_file(args.target)
    spec = file.canonical(Digest("0" * 64))
    text = estimate(data, vocab_size=spec.text.vocab_size, output=output)
    if isinstance(spec, SmallTalkSpec):
        _show(spec, cost_of(spec), text, output)
    elif not isinstance(spec, ClusterSpec | InstantiateSpec | ContestSpec | ChoicesSpec):
        _show_single(spec, text, output)
    for line in horizons(spec):
        output.line(line)
    _require_memory(spec)
    output.next_step(f"potluck run start {args.target}{home_option(open_home(args.home))}")
    return 0


def size_run(
    data: Path, out: Path, *, minutes: float, nodes: int, name: str, output: Output, force: bool = True
) -> None:
    """Writes a spec that this machine should finish in `minutes`; the same call again keeps the file.

    Args:
        force: write over a file that another call wrote.

    Raises:
        UsageError: ``usage.bad-value``, or ``usage.file-exists`` without `force`.
    """
    if not 0 < minutes <= MAX_MINUTES:
        fix = f"give more than 0 and at most {MAX_MINUTES}, a week"
        raise UsageError("usage.bad-value", f"--minutes {minutes:g}", fix)
    if not 1 <= nodes <= MAX_EXPERTS:
        raise UsageError("usage.bad-value", f"--nodes {nodes}", f"give 1 to {MAX_EXPERTS}")
    if out.is_dir():
        raise UsageError("usage.bad-value", f"--out {out} is a folder", f"name a file, such as {out / 'spec.toml'}")
    call = {"minutes": minutes, "data": str(data.resolve()), "nodes": nodes, "name": name}
    if same_call(out, call):
        output.note(f"{out} was written by this same call; it is used as it is")
        return
    if out.exists() and not force:
        message = f"{out} is there already, and another call wrote it"
        raise UsageError("usage.file-exists", message, "name another file with --out, or add --force")
    out.parent.mkdir(parents=True, exist_ok=True)
    text = estimate(data, vocab_size=1024, output=output)
    cores = num_cores()
    with output.timed(f"timing steps on {cores} core(s)"):
        machine = Machine(cores=cores, nodes=nodes, rates=measure(cores))
    sized = choose(minutes, machine, train_tokens=int(text["train_tokens"]))
    remarks = _remarks(sized, machine, minutes)
    body = spec_text(sized.spec, data=os.path.relpath(data, out.parent), name=name or "run", call=call, remarks=remarks)
    out.write_text(body, encoding="utf-8")
    for remark in remarks:
        output.note(remark)


def _remarks(sized: Sized, machine: Machine, minutes: float) -> list[str]:
    reasons = {
        "time": "the time decides the size",
        "text": "the text decides the size: more would be read twice; give more text for a longer run",
        "floor": "the smallest rung, which is longer than the time or reads the text more than once",
    }
    rate = machine.rates.expert_flops_per_second
    return [
        f"potluck plan --minutes {minutes:g}: {machine.cores} core(s) at {human_count(rate)}FLOP/s each, "
        f"of which {SAFETY:.0%} is counted on",
        f"rung {sized.rung.index} (preset {sized.rung.preset}), about {human_seconds(sized.seconds)}: "
        f"{reasons[sized.limited_by]}",
    ]


def _show(spec: SmallTalkSpec, cost: Cost, text: Mapping[str, Any], output: Output) -> None:
    num, train = spec.experts.num, int(text["train_tokens"])
    expert = spec.expert_model().num_parameters
    router_size, expert_size = human_count(spec.router_model().num_parameters), human_count(expert)
    rows = [
        ("routers", router_size, cost.router_steps, cost.router_tokens),
        ("experts", expert_size, cost.expert_steps, cost.expert_tokens),
        ("dense twin", expert_size, cost.dense_steps, cost.dense_tokens),
    ]
    flops = [cost.router_flops, cost.expert_flops, cost.dense_flops]
    output.result(
        {
            "experts": num,
            "expert_parameters": expert,
            "steps": {"router": cost.router_steps, "expert": cost.expert_steps, "dense": cost.dense_steps},
            "tokens": {"routers": cost.router_tokens, "experts": cost.expert_tokens, "dense": cost.dense_tokens},
            "flops": {
                "routers": cost.router_flops,
                "scoring": cost.scoring_flops,
                "experts": cost.expert_flops,
                "mixture": cost.mixture_flops,
                "dense": cost.dense_flops,
                "random_split": cost.random_split_flops,
            },
            "commit_steps": cost.expert_commits.steps,
            "commit_bytes": cost.expert_commits.bytes,
            "memory_bytes": cost.expert_memory_bytes + WORKER_BYTES,
            "train_tokens": train,
            "epochs": {"experts": cost.expert_tokens / train, "dense": cost.dense_tokens / train},
        }
    )
    output.table(
        ["side", "parameters", "steps", "tokens", "FLOPs", "epochs"],
        [
            [name, size, str(steps), human_count(tokens), human_count(spent), f"{tokens / train:.2f}"]
            for (name, size, steps, tokens), spent in zip(rows, flops, strict=True)
        ],
    )
    ratio = cost.expert_tokens / num / expert
    output.line(f"tokens per parameter of an expert: {ratio:.1f} (below 20, experts tend to lose to the dense twin)")
    output.line(
        f"scoring: {human_count(cost.scoring_flops)} FLOPs; the mixture in all {human_count(cost.mixture_flops)}"
    )
    output.line(
        f"text: {human_bytes(text['bytes'])}, {len(text['sources'])} source(s), about {human_count(train)} tokens"
    )
    output.line(_commits_line(cost.expert_commits, cost.expert_steps, "of an expert"))
    memory = human_bytes(cost.expert_memory_bytes + WORKER_BYTES)
    output.line(f"memory: about {memory} a node while it trains, of which {human_bytes(WORKER_BYTES)} are the program")


def _show_single(spec: SingleSpec | CrispSpec | SoupSpec, text: Mapping[str, Any], output: Output) -> None:
    how, length = spec.training, spec.text.sequence_length
    parameters, tokens = spec.full_model().num_parameters, how.steps * how.batch_size * length
    flops = how.steps * how.batch_size * train_flops(spec.full_model(), length)
    epochs = tokens / int(text["train_tokens"])
    memory, commits = training_bytes(spec) + WORKER_BYTES, commits_of(spec)
    output.result(
        {
            "parameters": parameters,
            "steps": how.steps,
            "tokens": tokens,
            "flops": flops,
            "commit_steps": commits.steps,
            "commit_bytes": commits.bytes,
            "memory_bytes": memory,
            "train_tokens": int(text["train_tokens"]),
            "epochs": epochs,
            **({"bank": asdict(spec.cost())} if isinstance(spec, SoupSpec) else {}),
        }
    )
    output.table(
        ["model", "parameters", "steps", "tokens", "FLOPs", "epochs"],
        [
            [
                "the model",
                human_count(parameters),
                str(how.steps),
                human_count(tokens),
                human_count(flops),
                f"{epochs:.2f}",
            ]
        ],
    )
    if isinstance(spec, SoupSpec):
        output.line(_bank_line(spec))
    parts = spec.spread.parts if isinstance(spec, SoupSpec) else 1
    whose = "of the model" if parts == 1 else f"of {parts} parts together"
    output.line(_commits_line(commits, how.steps, whose))
    output.line(f"memory: about {human_bytes(memory)} a node while it trains")


def _bank_line(spec: SoupSpec) -> str:
    cost, experts = spec.cost(), spec.bank.experts
    kind = f"of rank {spec.bank.rank}" if spec.bank.rank else "as large as the model"
    moved, size = human_bytes(cost.traffic_bytes), human_count(cost.bank_parameters)
    share = cost.flops / (spec.training.batch_size * train_flops(spec.full_model(), spec.text.sequence_length))
    return (
        f"bank: {experts} experts {kind}, {size} parameters; a step moves {moved} of memory and\n"
        f"takes {share:.1%} more FLOPs for it"
    )


def _commits_line(commits: Commits, total_steps: int, whose: str) -> str:
    each, number = human_bytes(commits.bytes), max(1, -(-total_steps // commits.steps))
    in_all = human_bytes(number * commits.bytes)
    return f"commits: every {commits.steps} steps {whose}, {each} each, {in_all} by its end"


def _require_memory(spec: RunSpec) -> None:
    needed, present = training_bytes(spec) + WORKER_BYTES, psutil.virtual_memory().total
    if needed > present:
        raise ResourceError(
            "resource.memory",
            f"one node needs {human_bytes(needed)}; this machine has {human_bytes(present)}",
            f"take {smaller(spec)}, or run it on a larger machine",
        )
