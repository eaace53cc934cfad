"""Ordinary bad input is told by an id and a fix, never by a traceback."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import pytest

from potluck import cli
from potluck.commands import nodes, run
from potluck.commands.output import Output
from potluck.commands.plan import size_run
from potluck.errors import Refused, UsageError
from potluck.v1 import admin_pb2

CALL = {"minutes": 1.0, "nodes": 4, "name": ""}


def error_of(said: str) -> dict[str, str]:
    return dict(json.loads(said)["error"])


@pytest.mark.parametrize("words", [["nodes", "--bogus"], ["run"], ["up", "--port", "many"], ["run", "start"]])
def test_wrong_arguments_are_an_error_as_all_others(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*words, "--json"]) == 2
    said = error_of(capsys.readouterr().out)
    assert said["id"] == "usage.bad-arguments"
    assert said["fix"].startswith(f"usage: potluck {words[0]}")


@pytest.mark.parametrize("target", [".", ""])
def test_plan_says_that_a_folder_needs_minutes(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", target, "--json"]) == 2
    said = error_of(capsys.readouterr().out)
    assert said["id"] == "spec.not-a-file"
    assert "--minutes" in said["message"]


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "1e9"])
def test_minutes_out_of_range_are_refused(minutes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", str(tmp_path), f"--minutes={minutes}", "--json"]) == 2
    assert error_of(capsys.readouterr().out)["id"] == "usage.bad-value"


def test_a_plan_does_not_write_over_a_folder_or_over_a_file_of_another_call(tmp_path: Path) -> None:
    output, other = Output(as_json=True), tmp_path / "spec.toml"
    with pytest.raises(UsageError, match="is a folder"):
        size_run(tmp_path, tmp_path, **CALL, output=output)
    other.write_text("mine")
    with pytest.raises(UsageError, match=r"usage\.file-exists"):
        size_run(tmp_path, other, **CALL, output=output, force=False)
    assert other.read_text() == "mine"


def test_a_home_that_is_a_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = tmp_path / "home"
    home.write_text("")
    assert cli.main(["up", "--home", str(home), "--json"]) == 5
    said = error_of(capsys.readouterr().out)
    assert said["id"] == "resource.io"
    assert str(home) in said["message"]


class Mistaken:
    """A command with a mistake in it."""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        pass

    def run(self, args: argparse.Namespace) -> int:
        raise KeyError("slot")


def test_a_mistake_of_ours_is_json_too_and_keeps_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli._guarded(Mistaken(), cli.Parser(), [], Output(as_json=True)) == 70
    said = capsys.readouterr()
    assert error_of(said.out)["id"] == "bug.unexpected"
    assert "Traceback" in said.err


def test_a_failed_run_is_refused_with_its_reason_and_a_fix() -> None:
    with pytest.raises(Refused, match="no space left") as refused:
        run.raise_unless_finished(admin_pb2.RunInfo(run="r" * 64, state="failed", reason="no space left"))
    assert refused.value.error_id == "refused.run-failed"
    assert refused.value.fix


def test_next_steps_name_this_program_where_the_shell_does_not_know_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    Output(as_json=False).next_step("potluck nodes", elsewhere=["potluck join X"])
    here, there = [line for line in capsys.readouterr().err.splitlines() if "potluck" in line][::-1]
    assert there == "  potluck join X"
    assert here.endswith(" nodes")
    assert not here.startswith("  potluck ")


def test_nodes_of_one_host_are_told_apart_and_silence_is_not_made_up() -> None:
    same = {"name": "vm", "role": "node", "state": "gone"}
    listed = [admin_pb2.NodeInfo(node="n1-vm", **same), admin_pb2.NodeInfo(node="n2-vm", silent_ms=4000, **same)]
    first, second = (nodes.row(node) for node in listed)
    assert (first[0], first[-1]) == ("n1-vm", "-")
    assert (second[0], second[-1]) == ("n2-vm", "4 s")
