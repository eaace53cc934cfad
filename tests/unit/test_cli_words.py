"""What the command line says, and how it ends."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from potluck.cli import COMMANDS, main
from potluck.commands.invite import parse_duration_ms
from potluck.errors import UsageError
from potluck.formatting import TABLE_WIDTH, format_table, human_bytes, human_count, human_seconds
from potluck.live import Tracker, run_line
from potluck.v1 import admin_pb2

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_of_at_most_100_columns(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"usage: potluck {command}" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_in_the_manual(command: str) -> None:
    rows = (ROOT / "docs" / "cli.md").read_text().split("| command |")[1].split("## Exit codes")[0]
    assert re.search(rf"[`|]{command}\b", rows)


def test_every_command_takes_json() -> None:
    for command in COMMANDS:
        source = (ROOT / "potluck" / "commands" / f"{command}.py").read_text()
        assert "add_common" in source or '"--json"' in source


@pytest.mark.parametrize("command", ["plan", "run", "demo", "route", "export", "soup"])
def test_help_loads_neither_torch_nor_grpc(command: str) -> None:
    code = (
        "import sys, argparse, importlib\n"
        f"module = importlib.import_module('potluck.commands.{command}')\n"
        "module.configure(argparse.ArgumentParser())\n"
        "sys.exit(bool({'torch', 'grpc', 'rich', 'zmq', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_an_unknown_command_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dance"]) == 2
    assert "generate" in capsys.readouterr().err


def test_a_call_without_a_coordinator_ends_with_2_and_a_fix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nodes", "--home", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "[usage.no-coordinator]" in said.err
    assert "fix:" in said.err


def test_json_tells_an_error_by_its_id(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nodes", "--home", str(tmp_path), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["id"] == "usage.no-coordinator"


def test_plan_names_an_unknown_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "spec.toml").write_text('data = "x"\n[experts]\nnumber = 4\n')
    assert main(["plan", str(tmp_path / "spec.toml")]) == 2
    assert "experts.number" in capsys.readouterr().err


def test_plan_refuses_what_cannot_fit_with_both_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text").mkdir()
    words = "".join(f"the word {n} stands between {n * 7} and {n * 11}\n" for n in range(3000))
    (tmp_path / "text" / "a.txt").write_text(words)
    huge = "[experts.model]\nhidden = 32768\nlayers = 60\nheads = 64\nffn = 90112\n"
    (tmp_path / "spec.toml").write_text(f'data = "text"\n{huge}')
    assert main(["plan", str(tmp_path / "spec.toml")]) == 5
    said = capsys.readouterr()
    assert "[resource.memory]" in said.err
    assert "epochs" in said.out


@pytest.mark.parametrize("method", ["single", "smalltalk"])
def test_plan_tells_memory_commits_and_bytes_of_a_large_preset(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("".join(f"the word {n} stands there\n" for n in range(3000)))
    model = "model" if method == "single" else "experts.model"
    spared = "[profile]\nmicro_batch = 1\nactivation_checkpointing = true\n"
    body = f'data = "text"\nmethod = "{method}"\n[{model}]\npreset = "335M"\n{spared}[text]\nvocab_size = 32000\n'
    (tmp_path / "spec.toml").write_text(body)
    assert main(["plan", str(tmp_path / "spec.toml"), "--json"]) in (0, 5)  # 5 on a machine with less memory
    told = json.loads(capsys.readouterr().out.splitlines()[0])
    assert told["commit_bytes"] == pytest.approx(12 * 335.2e6, rel=0.01)
    assert told["commit_steps"] >= 1
    assert 28 * 335e6 < told["memory_bytes"] < 20e9


def test_down_on_an_empty_home_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["down", "--home", str(tmp_path)]) == 0
    assert "nothing runs" in capsys.readouterr().out


@pytest.mark.parametrize(("text", "ms"), [("30m", 1_800_000), ("24h", 86_400_000), ("7d", 604_800_000)])
def test_durations(text: str, ms: int) -> None:
    assert parse_duration_ms(text) == ms


@pytest.mark.parametrize("text", ["", "0h", "24", "h", "1w", "-1h", "367d", "99999999999999d", "9" * 5000 + "m"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"usage\.bad-duration"):
        parse_duration_ms(text)


@pytest.mark.parametrize("width", [3, 40, 200])
def test_tables_fit_80_columns_whatever_is_in_them(width: int) -> None:
    rows = [["x" * width, "y" * width, "1"] for _ in range(3)]
    lines = format_table(["one", "two", "three"], rows, left=2).splitlines()
    assert max(map(len, lines)) <= TABLE_WIDTH


def test_numbers_for_people() -> None:
    assert human_bytes(34_900_000) == "34.9 MB"
    assert human_count(1_482_910) == "1.48M"
    assert human_seconds(75) == "75 s"
    assert human_seconds(600) == "10 min"


def info(fraction: float, step: int) -> admin_pb2.RunInfo:
    line = admin_pb2.LineageInfo(lineage="l", label="expert 0", node="n1", live_step=step, total_steps=100)
    node = admin_pb2.NodeInfo(
        node="n1", name="node-1", role="node", activity="training", tokens_per_second=1000.0 + step
    )
    return admin_pb2.RunInfo(run="r" * 64, name="x", state="running", fraction=fraction, lineages=[line], nodes=[node])


def test_the_end_is_told_from_the_pace_so_far() -> None:
    tracker = Tracker()
    tracker.observe(info(0.0, 0), 0.0)
    assert tracker.seconds_left(info(0.0, 0), 0.0) is None
    tracker.observe(info(0.25, 25), 10.0)
    assert tracker.seconds_left(info(0.25, 25), 10.0) == pytest.approx(30.0)
    assert tracker.lineage_seconds_left(info(0.25, 25).lineages[0]) == pytest.approx(30.0)
    assert "about 30 s left" in run_line(info(0.25, 25), 30.0)


def test_a_nodes_speed_is_the_mean_of_what_was_seen() -> None:
    tracker = Tracker()
    tracker.observe(info(0.0, 0), 0.0)
    tracker.observe(info(0.1, 100), 1.0)
    assert tracker.speeds() == {"node-1": pytest.approx(1050.0)}


def test_the_live_view_fits_80_columns() -> None:
    from rich.console import Console

    from potluck.live import render

    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(render(info(0.5, 50), Tracker(_started=(0.0, 0.0)), 10.0))
    text = console.export_text()
    assert "expert 0" in text
    assert "50/100" in text
    assert max(len(line) for line in text.splitlines()) <= TABLE_WIDTH


def test_every_command_module_offers_configure_and_run() -> None:
    for command in COMMANDS:
        module = importlib.import_module(f"potluck.commands.{command}")
        assert callable(module.configure)
        assert callable(module.run)
