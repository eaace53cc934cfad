"""What local steps of a soup on two nodes cost in loss, and what they save in bytes: the product's own runs.

    python -m benchmarks.soup_spread [--data demo/text] [--quick] [--json FILE] [--markdown FILE]

A coordinator and two nodes on loopback; one soup after the other over the same text, with the same seed: as a lineage
on one node, then in two parts that exchange after H steps. `nll` is the test NLL of the soup's model of the corpus,
`specialists` that of each source's model on its source's test text, the mean over sources. `bytes` are those of the
weights plane at the coordinator, in and out, until the soup's last checkpoint is there, probes on the way included.
`stayed` is the share of the tasks that go on with an optimizer's state which the node got that had made it.
One seed: differences of a few thousandths are within what another seed would change.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import psutil

from coordinator.core.events import PlanAdvanced, TaskCompleted
from coordinator.journal import read_closed
from coordinator.wire_events import decode_event
from potluck.ids import Digest
from potluck.lm.soup_spread import Spread
from potluck.specs.sections import EvalSpec, ModelShape
from potluck.specs.single import TrainingSpec
from potluck.specs.soup import BankSpec, SoupControls, SoupSpec
from potluck.v1 import admin_pb2
from sampling.ingest import Ingested, ingest
from tests.integration.harness import Cluster

PARTS = 2
STEPS, QUICK_STEPS = 256, 16
LOCAL_STEPS, QUICK_LOCAL_STEPS = (1, 4, 16, 64), (1, 4)
OUTER_RATE, OUTER_MOMENTUM = 0.7, 0.9
"""DiLoCo's outer optimizer (2311.08105, section 3)."""
EXPERT_RATE, SLOW_EXPERTS = BankSpec().expert_rate, 1.0
"""Of the bank, as a multiple of the shared model's learning rate; slow ones tell whether it matters to local steps."""
RUN_S = 900.0
BYTES_OF_A_SOURCE = 500_000
"""Of each file of text, its first lines: twice what is trained on."""
Row = dict[str, Any]


def spec_of(corpus: Digest, steps: int, spread: Spread, expert_rate: float = EXPERT_RATE) -> SoupSpec:
    return SoupSpec(
        method="soup",
        corpus=corpus,
        seed=0,
        model=ModelShape(preset="0.04M").resolved("model"),
        training=TrainingSpec(steps=steps, batch_size=16),
        bank=BankSpec(experts=8, expert_rate=expert_rate),
        controls=SoupControls(generic=False, constant=False),
        evaluation=EvalSpec(bootstrap_samples=200),
        spread=spread,
    )


def specs_of(corpus: Digest, quick: bool) -> dict[str, SoupSpec]:
    steps = QUICK_STEPS if quick else STEPS
    found = {"one node": spec_of(corpus, steps, Spread())}
    for local in QUICK_LOCAL_STEPS if quick else LOCAL_STEPS:
        found[f"H = {local}"] = spec_of(corpus, steps, Spread(parts=PARTS, local_steps=local))
    if not quick:
        far = Spread(parts=PARTS, local_steps=16)
        found["H = 16, Nesterov"] = spec_of(
            corpus, steps, replace(far, outer_rate=OUTER_RATE, outer_momentum=OUTER_MOMENTUM)
        )
        found["one node, slow experts"] = spec_of(corpus, steps, Spread(), SLOW_EXPERTS)
        found["H = 16, slow experts"] = spec_of(corpus, steps, far, SLOW_EXPERTS)
    return found


def measure(corpus: Ingested, folder: Path, quick: bool) -> list[Row]:
    rows: list[Row] = []
    with Cluster(folder) as cluster:
        coordinator = psutil.Process(cluster.start_coordinator().popen.pid)
        cluster.put_corpus(corpus.files)
        for name in ("a", "b"):
            cluster.start_node(name)
        # Rows and labels are made once: a soup of one step leaves them, and both workers warm.
        _to_the_end(cluster, spec_of(corpus.digest, 1, Spread()))
        for name, spec in specs_of(corpus.digest, quick).items():
            bytes_before, cpu_before, began = _weights_bytes(cluster), _cpu_s(coordinator), time.monotonic()
            run = cluster.start_run(spec, name=name)
            cluster.wait_until(run, _is_trained, timeout_s=RUN_S)
            trained = {
                "seconds": round(time.monotonic() - began, 1),
                "bytes": _weights_bytes(cluster) - bytes_before,
                "coordinator_cpu_s": round(_cpu_s(coordinator) - cpu_before, 2),
            }
            info = cluster.wait_ended(run, timeout_s=RUN_S)
            assert info.state == "finished", f"{info.reason}{cluster.tails()}"
            rows.append(
                {
                    "name": name,
                    "run": run,
                    "rounds": spec.spread.rounds(spec.training.steps) if spec.spread.parts > 1 else 0,
                    **trained,
                    **_losses(cluster, info),
                    "weights": next(slot.weights for slot in info.published if slot.slot == "bank"),
                }
            )
            sys.stderr.write(f"load {os.getloadavg()[0]:.1f}  {rows[-1]}\n")
    stayed = _stayed(cluster.home / "journal.db")
    return [{**row, "stayed": stayed.get(row.pop("run"))} for row in rows]


def _stayed(journal: Path) -> dict[str, float]:
    """By run: of the tasks that go on with a part's optimizer, the share done by the node that has it."""
    wanted: dict[str, tuple[str, Mapping[str, Digest]]] = {}
    made_by: dict[Digest, str] = {}
    found: dict[str, list[bool]] = {}
    for event in map(decode_event, read_closed(journal)):
        if isinstance(event, PlanAdvanced):
            wanted.update((task.id, (event.run, dict(task.inputs))) for task in event.tasks)
        elif isinstance(event, TaskCompleted):
            run, inputs = wanted[event.task]
            if "weights-optimizer" in inputs:
                found.setdefault(run, []).append(made_by.get(inputs["weights-optimizer"]) == event.node)
            made_by.update((digest, event.node) for name, digest in dict(event.blobs).items() if name == "optimizer")
    return {run: round(fmean(same), 3) for run, same in found.items()}


def _beginnings(data: Path, folder: Path) -> Path:
    folder.mkdir()
    for path in sorted(data.glob("*.jsonl")):
        with path.open("rb") as file:
            lines = file.readlines(BYTES_OF_A_SOURCE)
        (folder / path.name).write_bytes(b"".join(lines))
    return folder


def _is_trained(info: admin_pb2.RunInfo) -> bool:
    return info.stage == "evaluating" or info.stage.startswith("done")


def _to_the_end(cluster: Cluster, spec: SoupSpec) -> admin_pb2.RunInfo:
    return cluster.wait_ended(cluster.start_run(spec, name="rows"), timeout_s=RUN_S)


def _weights_bytes(cluster: Cluster) -> int:
    """Of all runs since the coordinator's home exists; any run's ledger tells."""
    with cluster.client() as client:
        return client.get_ledger(client.list_runs().runs[0].run).bytes_weights


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _losses(cluster: Cluster, info: admin_pb2.RunInfo) -> dict[str, float]:
    report: Mapping[str, Any] = json.loads(cluster.blobs().path(Digest(info.report)).read_text(encoding="utf-8"))
    with cluster.client() as client:
        figures = json.loads(client.get_run(info.run).results_json)
    own = [
        table["models"][f"soup for {source}"]["nll"]
        for source, table in report["by_source"].items()
        if f"soup for {source}" in table["models"]
    ]
    return {
        "nll": round(report["models"]["soup"]["nll"], 4),
        "specialists": round(fmean(own), 4),
        "train_loss": round(figures["lineages"]["soup"][-1][1], 4),
    }


def table(rows: list[Row], command: str, load: tuple[float, float]) -> str:
    first = rows[0]
    lines = [
        f"`{command}` on {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; load",
        f"average {load[0]:.1f} at the start and {load[1]:.1f} at the end. One seed.",
        "",
        "| soup | rounds | `nll` | over one node's | `specialists` | MB | MB a step | `stayed` | hub CPU s | s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    steps = QUICK_STEPS if "--quick" in command else STEPS
    for row in rows:
        moved = row["bytes"] / 1e6
        more = "same weights" if row["weights"] == first["weights"] and row is not first else ""
        more = more or f"{row['nll'] - first['nll']:+.4f}"
        stayed = f"{row['stayed']:.0%}" if row["stayed"] is not None else ""
        lines.append(
            f"| {row['name']} | {row['rounds'] or ''} | {row['nll']:.4f} | {more} | {row['specialists']:.4f} "
            f"| {moved:.1f} | {moved / steps:.3f} | {stayed} | {row['coordinator_cpu_s']:.1f} | {row['seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soup_spread")
    parser.add_argument("--data", type=Path, default=Path("demo/text"), help="text, as `potluck demo` leaves it")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_STEPS} steps, H of 1 and 4: to try the command")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there")
    options = parser.parse_args()
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        corpus = ingest(_beginnings(options.data, Path(folder) / "text"), Path(folder) / "corpus")
        rows = measure(corpus, Path(folder) / "cluster", options.quick)
    command = "python -m benchmarks.soup_spread" + (" --quick" if options.quick else "")
    written = table(rows, command, (before, os.getloadavg()[0]))
    print(written)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    if options.markdown:
        options.markdown.write_text(written, encoding="utf-8")


if __name__ == "__main__":
    main()
