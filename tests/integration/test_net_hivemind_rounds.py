"""A soup on two nodes whose parts average by hivemind: real daemons, a meeting place, an average that is believed."""

from __future__ import annotations

import contextlib
import importlib.util
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch

from potluck.crashpoints import CRASH_AT, CRASH_LOG
from potluck.ids import Digest
from potluck.lm.soup_spread import Spread
from potluck.lm.tensors import load_tensors
from potluck.net.blobs.store import BlobStore
from sampling.soup_exchange import MEETING
from tests.integration.harness import Cluster
from tests.integration.mixture_runs import corpus_of
from tests.integration.smalltalk_runs import TaskDone, tasks_done
from tests.integration.soup_runs import soup_spec

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("hivemind") is None, reason="hivemind is not installed: pip install 'potluck[dht]'"
    ),
    pytest.mark.timeout(240),
]

STEPS = 4


@contextlib.contextmanager
def meeting_place(folder: Path) -> Iterator[str]:
    """Its address."""
    command = [sys.executable, "-m", "potluck.net.hivemind_meeting", "127.0.0.1", "0", str(folder / "identity")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


@pytest.mark.long
def test_parts_on_two_nodes_average_by_themselves_and_the_plan_believes_it(tmp_path: Path) -> None:
    tasks, blobs = run_soup(tmp_path, exchange_s=90.0)
    label, inputs = average_of(tasks)
    assert label == "round 1: average of the parts, by hivemind"
    assert not [name for name in inputs if "delta" in name]
    deltas = [load_tensors(blobs.path(tasks[f"round 1: part {n} of 2"].blobs["delta"])) for n in (1, 2)]
    averaged = load_tensors(blobs.path(inputs["weights-averaged"]))
    assert set(averaged) == set(deltas[0])
    for name, tensor in averaged.items():
        torch.testing.assert_close(tensor, (deltas[0][name] + deltas[1][name]) / 2, rtol=1e-6, atol=1e-7)


@pytest.mark.long
def test_the_hub_averages_where_a_peer_dies_in_the_middle(tmp_path: Path) -> None:
    """Whoever reduces a piece dies at its first; the run goes on with the changes that both parts put."""
    deaths = tmp_path / "deaths"
    tasks, _ = run_soup(tmp_path, exchange_s=40.0, **{CRASH_AT: "hivemind.mid-average", CRASH_LOG: str(deaths)})
    assert set(deaths.read_text().split()) == {"hivemind.mid-average"}
    label, inputs = average_of(tasks)
    assert label.startswith("round 1: average of the parts, by the hub: part")
    deltas = [tasks[f"round 1: part {n} of 2"].blobs["delta"] for n in (1, 2)]
    assert [inputs[f"weights-delta-{part:03d}"] for part in range(2)] == deltas
    assert "weights-averaged" not in inputs


def run_soup(folder: Path, *, exchange_s: float, **environment: str) -> tuple[dict[str, TaskDone], BlobStore]:
    """A soup of one round on two nodes: its tasks by label, and all blobs."""
    corpus = corpus_of(folder / "corpus", documents=30)
    spread = Spread(parts=2, local_steps=STEPS, transport="hivemind", exchange_s=exchange_s)
    with meeting_place(folder) as address, Cluster(folder / "cluster") as cluster:
        cluster.start_coordinator()
        cluster.put_corpus(corpus.files)
        for name in ("a", "b"):
            cluster.start_node(name, **{MEETING: address}, **environment)
        run = cluster.start_run(soup_spec(corpus.digest, steps=STEPS, spread=spread))
        info = cluster.wait_ended(run, timeout_s=200.0)
        assert info.state == "finished", f"{info.reason}{cluster.tails()}"
        blobs = cluster.blobs()
    return {task.wanted.label: task for task in tasks_done(cluster.home / "journal.db")}, blobs


def average_of(tasks: Mapping[str, TaskDone]) -> tuple[str, dict[str, Digest]]:
    """Label and inputs of the round's outer step."""
    (label,) = [label for label in tasks if label.startswith("round 1: average")]
    return label, dict(tasks[label].wanted.inputs)
