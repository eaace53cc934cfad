"""What the command line says of metrics, and what it hands on to the daemons."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from potluck.commands.options import add_metrics, metrics_arguments
from potluck.commands.output import Output
from potluck.commands.runs import show_metrics
from potluck.formatting import TABLE_WIDTH
from potluck.live import Tracker, render
from potluck.v1 import admin_pb2

LINE = admin_pb2.LineageInfo(
    lineage="l" * 64,
    label="a run with a long name, expert 127",
    node="n1",
    live_step=12_345,
    total_steps=98_765,
    loss=12.345,
    grad_norm=0.0123,
    learning_rate=6e-4,
    tokens_per_second=123_456.0,
    flops_per_second=9.87e14,
    mfu=0.456,
    rss_bytes=123_400_000_000,
)
NODE = admin_pb2.NodeInfo(
    node="n1",
    name="a-machine-with-a-very-long-host-name",
    role="node",
    state="live",
    activity="training",
    label="a run with a long name, expert 127",
    tokens_per_second=123_456.0,
    loss=12.345,
)
INFO = admin_pb2.RunInfo(run="r" * 64, name="x", state="running", fraction=0.5, lineages=[LINE], nodes=[NODE])


def test_the_table_of_metrics_fits_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    show_metrics(INFO, Output(as_json=False))
    said = capsys.readouterr().out
    assert max(len(line) for line in said.splitlines()) <= TABLE_WIDTH
    for word in ("12345/98765", "12.345", "0.012", "6.0e-04", "123k", "987T", "46%", "123.4 GB"):
        assert word in said


def test_metrics_for_programs_have_every_number(capsys: pytest.CaptureFixture[str]) -> None:
    show_metrics(INFO, Output(as_json=True))
    (line,) = json.loads(capsys.readouterr().out)["lineages"]
    assert (line["lineage"], line["live_step"], line["rss_bytes"]) == ("l" * 64, 12_345, 123_400_000_000)
    assert (line["grad_norm"], line["learning_rate"], line["mfu"]) == (0.0123, 6e-4, 0.456)
    assert line["flops_per_second"] == 9.87e14


def test_a_run_that_trains_nothing_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    show_metrics(admin_pb2.RunInfo(run="r" * 64, name="x", state="finished"), Output(as_json=False))
    assert "nothing is trained" in capsys.readouterr().out


def test_the_live_view_has_the_utilisation_and_still_fits() -> None:
    from rich.console import Console

    with open("/dev/null", "w") as nowhere:
        console = Console(width=80, record=True, file=nowhere)
        console.print(render(INFO, Tracker(_started=(0.0, 0.0)), 10.0))
    text = console.export_text()
    assert "46%" in text
    assert "12.345" in text
    assert max(len(line) for line in text.splitlines()) <= TABLE_WIDTH


def test_a_daemon_is_told_the_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parser = argparse.ArgumentParser()
    add_metrics(parser, "this node's training")
    monkeypatch.chdir(tmp_path)
    wanted = ["--metrics", str(tmp_path.resolve() / "here"), "--tensorboard"]
    assert metrics_arguments(parser.parse_args(["--metrics", "here", "--tensorboard"])) == wanted
    assert metrics_arguments(parser.parse_args([])) == []
