"""`potluck sweep` with real daemons on loopback."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.harness import Cluster
from tests.reference.languages import write_languages

TIMEOUT_S = 100
SPEC = """
data = "languages.jsonl"
name = "tiny"
method = "single"
text = { vocab_size = 300, sequence_length = 32, prefix_length = 8 }
model = { hidden = 16, layers = 1, heads = 2, ffn = 24 }
training = { steps = 40, batch_size = 8 }
evaluation = { bootstrap_samples = 100 }
"""
MIXTURE = """
data = "languages.jsonl"
name = "mixture"
text = { vocab_size = 300, sequence_length = 32, prefix_length = 8 }
controls = { random_split = "none" }
evaluation = { bootstrap_samples = 100 }
[routers]
model = { hidden = 16, layers = 1, heads = 2, ffn = 24 }
rounds = 2
chunk_sequences = 64
batch_size = 8
[experts]
model = { hidden = 16, layers = 1, heads = 2, ffn = 24 }
num = 2
chunks = 1
chunk_sequences = 320
batch_size = 8
"""


class Swept:
    """A spec over a small text, and the command under one home."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.spec = folder / "spec.toml"
        self.spec.write_text(SPEC)
        write_languages(folder / "languages.jsonl", documents=60, seed=0)

    def command(self, *arguments: str) -> list[str]:
        where = ["--home", str(self.home), "--out", str(self.folder / "out")]
        return [sys.executable, "-m", "potluck.cli", "sweep", str(self.spec), *where, *arguments]

    def sweep(self, *arguments: str) -> tuple[dict[str, Any], str]:
        """The JSON, and what was said beside it."""
        done = subprocess.run(
            self.command(*arguments, "--json"), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout), done.stderr


@pytest.fixture
def swept(tmp_path: Path) -> Swept:
    return Swept(tmp_path)


GRID = ("--learning-rate", "3e-3,1e-2", "--batch", "8,16")


def runs_of(report: dict[str, Any]) -> set[str]:
    return {cell["run"] for cell in report["cells"]}


def test_a_sweep_ends_with_a_table_and_a_second_call_needs_no_node_at_all(swept: Swept) -> None:
    with Cluster(swept.home) as cluster:
        cluster.start_coordinator()
        node = cluster.start_node("node")
        first, said = swept.sweep(*GRID)
        assert "4 cells: 4 started" in said
        assert {cell["state"] for cell in first["cells"]} == {"finished"}
        assert {(cell["values"]["batch"], cell["steps"], cell["tokens"]) for cell in first["cells"]} == {
            (8, 40, 40 * 8 * 32),
            (16, 20, 40 * 8 * 32),
        }
        ranked = [setting["valid_nll"] for setting in first["settings"]]
        assert ranked == sorted(ranked)
        assert first["best"] == first["settings"][0]["label"]
        with cluster.client() as client:
            named = {info.name: info.run for info in client.list_runs().runs}
        assert set(named) == {f"tiny/lr={rate},batch={batch}" for rate in ("0.003", "0.01") for batch in (8, 16)}
        assert set(named.values()) == runs_of(first)
        assert json.loads(Path(first["json"]).read_text())["cells"] == first["cells"]
        assert "<svg" in Path(first["html"]).read_text()

        wider, said = swept.sweep("--learning-rate", "3e-3,1e-2,1e6", "--batch", "8,16")
        assert "6 cells: 2 started, 4 finished before" in said
        assert runs_of(first) < runs_of(wider)
        failed = [setting for setting in wider["settings"] if setting["state"] == "failed"]
        assert [setting["values"]["learning_rate"] for setting in failed] == [1e6, 1e6]
        assert all("loss" in setting["reason"] for setting in failed)
        assert wider["settings"][:4] == first["settings"]

        assert node.stop() == 0
        again, said = swept.sweep("--learning-rate", "3e-3,1e-2,1e6", "--batch", "8,16")
        assert "nothing is trained" in said
        assert again == wider


def test_optimizers_are_tried_side_by_side_and_mixtures_with_their_twins(swept: Swept) -> None:
    with Cluster(swept.home) as cluster:
        cluster.start_coordinator()
        cluster.start_node("node")
        report, _ = swept.sweep("--optimizer", "adamw,ademamix")
        swept.spec.write_text(MIXTURE)
        mixture, _ = swept.sweep("--learning-rate", "1e-2")
    assert {setting["label"] for setting in report["settings"]} == {"optimizer=adamw", "optimizer=ademamix"}
    assert len({cell["valid_nll"] for cell in report["cells"]}) == 2
    (cell,) = mixture["cells"]
    assert cell["state"] == "finished"
    assert {type(cell[key]) for key in ("valid_nll", "test_nll", "twin_valid_nll")} == {float}
    assert cell["tokens"] == 320 * 32


def test_ctrl_c_leaves_the_runs_going_and_the_same_call_comes_back_to_them(swept: Swept) -> None:
    with Cluster(swept.home) as cluster:
        cluster.start_coordinator()
        process = subprocess.Popen(
            swept.command(*GRID), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        with process:
            assert process.stderr is not None
            said = ""
            while "0 of 4 cells" not in said:  # no node: it waits
                line = process.stderr.readline()
                assert line, said
                said += line
            process.send_signal(signal.SIGINT)
            _, rest = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 130
        assert "the runs go on" in rest
        with cluster.client() as client:
            assert {info.state for info in client.list_runs().runs} == {"running"}
        cluster.start_node("node")
        report, said = swept.sweep(*GRID)
    assert "4 cells: 4 under way" in said
    assert {cell["state"] for cell in report["cells"]} == {"finished"}


def test_a_sweep_of_which_every_cell_fails_ends_with_4_and_keeps_the_table(swept: Swept) -> None:
    with Cluster(swept.home) as cluster:
        cluster.start_coordinator()
        cluster.start_node("node")
        command = swept.command("--learning-rate", "1e6,2e6")
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        again = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        retried = subprocess.run([*command, "--retry"], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert (done.returncode, again.returncode, retried.returncode) == (4, 4, 4)
    assert "[refused.no-cell-finished]" in done.stderr
    assert "loss" in done.stderr
    assert "2 cells: 2 failed before" in again.stderr
    assert "2 cells: 2 started" in retried.stderr
    states = {cell["state"] for cell in json.loads((swept.folder / "out" / "sweep.json").read_text())["cells"]}
    assert states == {"failed"}


@pytest.mark.parametrize("arguments", [(), ("--set", "training.warmup=1"), ("--batch", "7")])
def test_a_bad_grid_is_refused_before_anybody_is_asked(swept: Swept, arguments: tuple[str, ...]) -> None:
    done = subprocess.run(swept.command(*arguments), capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 2
    assert "fix:" in done.stderr
