"""What commands do with runs: submit a spec with its text, find a run, show it."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potluck.commands.home import Home, identity_of
from potluck.commands.output import Output
from potluck.commands.text import gather, ingest, pack_encoder
from potluck.config import load_toml
from potluck.errors import Refused, ResourceError, SpecError, UsageError
from potluck.formatting import human_bytes, human_count
from potluck.ids import Digest, digest_json, short
from potluck.lm.optim.horizon import describe_horizon
from potluck.sizing import cost_of, training_bytes
from potluck.specs.crisp import CrispSpec
from potluck.specs.run import UNKNOWN_DIGEST, RunFile, RunSpec, parse_run_file
from potluck.specs.single import SingleSpec
from potluck.specs.smalltalk import SmallTalkSpec
from potluck.specs.soup import SoupSpec

if TYPE_CHECKING:
    from potluck.client import AdminClient
    from potluck.v1 import admin_pb2

WORKER_BYTES = 500_000_000
"""A worker with torch loaded and no model."""


def read_run_file(path: Path) -> tuple[RunFile, Path]:
    """A spec file and the folder or file of text it names.

    Raises:
        SpecError: naming the key.
    """
    file = parse_run_file(load_toml(path))
    data = _beside(path, file.data)
    if file.data == "demo" and not data.exists():
        fix = 'fetch it with `python tools/demo_corpus.py DIR` in a checkout and write data = "DIR"'
        raise SpecError("spec.no-demo-text", f'{path}: data = "demo", but {data} does not exist', fix)
    return file, data


def submit(
    client: AdminClient, home: Home, spec_path: Path, *, name: str, output: Output
) -> admin_pb2.StartRunResponse:
    """Ingests the texts, puts them into the coordinator's store and starts the run, or resumes it.

    Raises:
        SpecError: ``spec.beta3-too-slow``.
        ResourceError: ``resource.memory``: no live node can hold an expert.
    """
    file, data = read_run_file(spec_path)
    draft = file.canonical(UNKNOWN_DIGEST)
    horizons(draft)
    require_memory(draft, client, output)
    spec = file.canonical(**send_texts(home, spec_path, file, data, output))
    return client.start_run(spec.to_json(), name=name or file.name, priority=file.priority, request_id=uuid.uuid4().hex)


def send_texts(home: Home, spec_path: Path, file: RunFile, data: Path, output: Output) -> dict[str, Digest]:
    """Puts all that a spec file names into the coordinator's store; what `RunFile.canonical` needs of it."""
    draft = file.canonical(UNKNOWN_DIGEST)
    digests: dict[str, Digest] = {}
    if file.target:
        digests["target"] = _send_target(home, spec_path, file, draft, output)
    if file.encoder:
        digests["encoder"] = _send_encoder(home, spec_path, file, output)
    corpus = send_corpus(home, data, _scratch(home, "ingest", spec_path), seed=draft.seed, output=output)
    return {**digests, "corpus": corpus}


def send_corpus(home: Home, data: Path, folder: Path, *, seed: int, output: Output, is_target: bool = False) -> Digest:
    """Puts a text into the coordinator's store, by way of a folder for its shards; its manifest's digest."""
    return _put(home, ingest(data, folder, seed=seed, output=output, is_target=is_target), output)


def _send_target(home: Home, spec_path: Path, file: RunFile, draft: RunSpec, output: Output) -> Digest:
    """The same for what a specialist is for; says how little it is.

    Raises:
        SpecError: ``spec.bad-target``, a weight names no source of it.
    """
    paths = [_beside(spec_path, path) for path in file.target]
    data = paths[0] if len(paths) == 1 else gather(paths, _scratch(home, "target", spec_path))
    folder = _scratch(home, "ingest-target", spec_path)
    told = ingest(data, folder, seed=draft.seed, output=output, is_target=True)
    named = {each.name for each in draft.target_weights} if isinstance(draft, CrispSpec) else set()
    unknown = sorted(named - set(told["sources"]))
    if unknown:
        fix = f"the target's first-level folders are: {', '.join(told['sources'])}"
        raise SpecError("spec.bad-target", f"target_weights name {', '.join(unknown)}", fix)
    test = sum(source["splits"]["test"] for source in told["sources"].values())
    output.note(f"the target: {human_bytes(told['bytes'])}, of which {human_bytes(test)} are held out as test text")
    return _put(home, told, output)


def _send_encoder(home: Home, spec_path: Path, file: RunFile, output: Output) -> Digest:
    folder = _scratch(home, "encoder", spec_path)
    return _put(home, pack_encoder(_beside(spec_path, file.encoder), folder, output=output), output)


def _put(home: Home, packed: Mapping[str, Any], output: Output) -> Digest:
    """Puts files of `python -m sampling` into the coordinator's store; the manifest's digest."""
    from potluck.commands.transfer import put_corpus

    files = {Digest(digest): Path(path) for digest, path in packed["files"].items()}
    put_corpus(identity_of(home), home.scratch("blobs"), files, output)
    return Digest(packed["manifest"])


def _scratch(home: Home, what: str, spec_path: Path) -> Path:
    """A folder of this spec file's own: files of one name in two folders may be sent at once."""
    return home.scratch(f"{what}-{spec_path.stem}-{short(digest_json(str(spec_path.resolve())))}")


def _beside(spec_path: Path, path: str) -> Path:
    """A path that a spec file names, relative to it."""
    return (spec_path.resolve().parent / path).resolve()


def horizons(spec: RunSpec) -> list[str]:
    """How far back the optimizer looks, of each kind of model.

    Raises:
        SpecError: ``spec.beta3-too-slow``.
    """
    if isinstance(spec, SmallTalkSpec):
        cost = cost_of(spec)
        steps = {"routers": cost.router_steps, "experts": cost.expert_steps, "dense twin": cost.dense_steps}
    elif isinstance(spec, SingleSpec | CrispSpec | SoupSpec):
        steps = {"the model": spec.training.steps}
    else:
        return []
    lines = {of: describe_horizon(spec.optimizer, count, of=of) for of, count in steps.items() if count}
    return [f"{of}: {line}" for of, line in lines.items() if line]


def require_memory(spec: RunSpec, client: AdminClient, output: Output) -> None:
    """Refuses a run whose models fit no node there is; with no node yet, only says so."""
    needed = training_bytes(spec) + WORKER_BYTES
    nodes = [node for node in client.list_nodes().nodes if node.role == "node" and node.state != "gone"]
    if not nodes:
        output.note("no node has joined yet: the run waits for one")
        return
    largest = max(node.memory_bytes for node in nodes)
    if needed > largest:
        raise ResourceError(
            "resource.memory",
            f"a model of this run needs {human_bytes(needed)} to train; the largest node has {human_bytes(largest)}",
            f"take {smaller(spec)}, or add a larger node",
        )


def smaller(spec: RunSpec) -> str:
    """What of a run takes less memory, in words."""
    if isinstance(spec, SoupSpec):
        return "fewer bank.experts or a smaller model"
    return "a smaller model, batch_size or sequence_length, set memory_mib"


def find_run(client: AdminClient, run: str) -> admin_pb2.RunInfo:
    """The run of an id, the start of one, or a name; the newest for an empty text.

    Raises:
        UsageError: ``usage.no-run``.
    """
    if run:
        return client.get_run(run)
    runs = list(client.list_runs().runs)
    if not runs:
        raise UsageError(
            "usage.no-run", "this coordinator has no run yet", "start one with `potluck run start SPEC.toml`"
        )
    return client.get_run(max(runs, key=lambda info: info.created_unix_ms).run)


def published_slot(info: admin_pb2.RunInfo, text: str) -> admin_pb2.PublishedSlot:
    """The slot of a run.

    Raises:
        Refused: ``refused.not-published``: the run goes on, and may publish it yet.
        UsageError: ``usage.no-slot``: it has ended without.
    """
    for slot in info.published:
        if slot.slot == text:
            return slot
    there = f"it has {', '.join(sorted(slot.slot for slot in info.published)) or 'published nothing'}"
    if info.state == "running":
        what = f"run {short(info.run)} ({info.name}) has not published {text!r}: {there}; {info.stage}"
        fix = f"a slot appears with its first probed checkpoint: follow it with `potluck run watch {short(info.run)}`"
        raise Refused("refused.not-published", what, fix)
    what = f"run {short(info.run)} ({info.name}), {info.state}, has no slot {text!r}: {there}; {info.stage}"
    raise UsageError("usage.no-slot", what, "name one of its slots as RUN/SLOT")


def run_summary(info: admin_pb2.RunInfo) -> dict[str, Any]:
    """A run as JSON for programs."""
    return {
        "run": info.run,
        "name": info.name,
        "state": info.state,
        "reason": info.reason,
        "stage": info.stage,
        "paused": info.paused,
        "waits": list(info.waits),
        "fraction": info.fraction,
        "report": info.report,
        "tasks": {"open": info.tasks_open, "done": info.tasks_done},
        "lineages": [
            {
                "lineage": line.lineage,
                "label": line.label,
                "role": line.role,
                "head_step": line.head_step,
                "total_steps": line.total_steps,
                "node": line.node,
                "loss": line.loss,
                "live_step": line.live_step,
                "tokens_per_second": line.tokens_per_second,
                "grad_norm": line.grad_norm,
                "learning_rate": line.learning_rate,
                "flops_per_second": line.flops_per_second,
                "mfu": line.mfu,
                "rss_bytes": line.rss_bytes,
            }
            for line in info.lineages
        ],
        "published": [{"slot": s.slot, "step": s.step, "replicas": list(s.replicas)} for s in info.published],
    }


def show_run(info: admin_pb2.RunInfo, output: Output) -> None:
    output.result(run_summary(info))
    reason = f": {info.reason}" if info.reason else ""
    output.line(f"run {short(info.run)} ({info.name}) {info.state}{reason}")
    output.line(f"stage: {info.stage}, {info.fraction:.0%} of the planned work")
    for wait in info.waits:
        output.line(f"waits for {wait}")
    output.line(f"tasks: {info.tasks_done} done, {info.tasks_open} open")
    rows = [
        [
            line.label,
            line.node or "-",
            f"{line.head_step}/{line.total_steps}",
            f"{line.loss:.3f}" if line.loss else "-",
            human_count(line.tokens_per_second) if line.tokens_per_second else "-",
        ]
        for line in info.lineages
    ]
    if rows:
        output.table(["lineage", "node", "committed", "loss", "tokens/s"], rows, left=2)
    if info.published:
        served = ", ".join(f"{slot.slot} x{len(slot.replicas)}" for slot in info.published)
        output.line(f"serving: {served}")


def show_metrics(info: admin_pb2.RunInfo, output: Output) -> None:
    """What the trainings that go on measured last."""
    output.result(run_summary(info))
    rows = [
        [
            line.label,
            f"{line.live_step}/{line.total_steps}",
            f"{line.loss:.3f}" if line.loss else "-",
            f"{line.grad_norm:.2g}" if line.grad_norm else "-",
            f"{line.learning_rate:.1e}" if line.learning_rate else "-",
            human_count(line.tokens_per_second) if line.tokens_per_second else "-",
            human_count(line.flops_per_second) if line.flops_per_second else "-",
            f"{line.mfu:.0%}" if line.mfu else "-",
            human_bytes(line.rss_bytes) if line.rss_bytes else "-",
        ]
        for line in info.lineages
        if line.node
    ]
    if not rows:
        output.line(f"run {short(info.run)} ({info.name}) {info.state}: nothing is trained at the moment")
        return
    output.table(["lineage", "step", "loss", "norm", "rate", "tokens/s", "FLOP/s", "MFU", "memory"], rows)
