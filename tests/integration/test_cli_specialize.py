"""`potluck cluster` and `potluck specialize` through a real coordinator and node: what they leave, say and refuse."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.command_home import TIMEOUT_S, CommandHome
from tests.reference.languages import write_languages

SMALL = ("--k", "4", "--dim", "16")
FOREIGN = "\n".join(f"{n * n * 7919} {n * 104729 % 9973} {n * 31 % 977} ####### {n} {n + 1}" for n in range(300))


@dataclass(frozen=True, kw_only=True)
class World(CommandHome):
    """A home with a coordinator and a node, a corpus of four languages, and new text in one of them."""

    @property
    def corpus(self) -> Path:
        return self.folder / "corpus.jsonl"

    @property
    def target(self) -> Path:
        return self.folder / "target.jsonl"

    def examples(self, count: int) -> list[Path]:
        paths = [self.folder / f"{number}.txt" for number in range(count)]
        for path, line in zip(paths, self.target.read_text().splitlines(), strict=False):
            path.write_text(json.loads(line)["text"])
        return paths


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(folder=tmp_path_factory.mktemp("home"))
    write_languages(made.corpus, documents=40, seed=0)
    more = write_languages(made.folder / "all.jsonl", documents=120, seed=0).read_text().splitlines()
    mine = [line for line in more if json.loads(line)["domain"] == "language-1"]
    made.target.write_text("\n".join(mine[40:]) + "\n")
    try:
        made.daemons("up", "--host", "127.0.0.1", "--port", "0", "--detach")
        made.daemons("join", "--name", "first", "--detach")
        yield made
    finally:
        made.daemons("down", "--now")


@pytest.fixture(scope="module")
def specialised(world: World) -> dict[str, Any]:
    out = world.folder / "specialised"
    return world.answer("specialize", world.target, "--data", world.corpus, *SMALL, "--steps", "12", "--out", out)


def test_clusters_are_shown_written_and_shown_again(world: World) -> None:
    out = world.folder / "clusters"
    call = ("cluster", world.corpus, *SMALL, "--out", out)
    code, shown, _ = world.potluck(*call)
    assert code == 0
    assert "4 clusters" in shown
    assert max(map(len, shown.splitlines())) <= 200  # the last line names paths
    cards = json.loads((out / "cards.json").read_text())
    assert sum(card["rows"] for card in cards["cards"]) == cards["rows"]
    assert "<svg" in (out / "cards.html").read_text()
    table = shown.split("\n\nwrote")[0]
    assert world.potluck("eval", cards["run"])[1].rstrip() == table.rstrip()
    again = world.answer("report", cards["run"], "--out", world.folder / "again")
    assert Path(again["html"]).read_bytes() == (out / "cards.html").read_bytes()
    assert world.answer(*call)["run"] == cards["run"]


def test_a_specialist_is_compared_with_a_generalist_on_both_texts(world: World, specialised: dict[str, Any]) -> None:
    pair = specialised["pairs"]["specialist - generalist"]
    assert pair["low"] <= pair["mean"] <= pair["high"]
    assert ("is better" in specialised["verdict"]) == (pair["high"] < 0)
    assert set(specialised["facts"]["on_the_corpus"]["models"]) == {"specialist", "generalist"}
    assert specialised["facts"]["histogram"]["windows"] == specialised["facts"]["target_rows"]["train"]
    assert "<svg" in Path(specialised["html"]).read_text()
    status = world.answer("run", "status", specialised["run"])
    assert {slot["slot"]: slot["step"] for slot in status["published"]} == {"specialist": 12, "generalist": 12}
    assert specialised["verdict"] in " ".join(world.potluck("eval", specialised["run"])[1].split())


def test_the_spec_that_is_left_repeats_the_run(world: World, specialised: dict[str, Any]) -> None:
    again = world.answer("run", "start", specialised["spec_file"])
    assert again == {"run": specialised["run"], "state": "already-finished"}


def test_several_files_are_one_target_and_few_examples_show_nothing(world: World) -> None:
    out = world.folder / "five"
    options = ("--data", world.corpus, *SMALL, "--steps", "4", "--out", out)
    code, shown, said = world.potluck("specialize", *world.examples(5), *options)
    assert code == 0, said
    assert "windows                   " in shown
    assert "Not shown to be better" in shown
    assert shown.index("the target in the corpus") < shown.index("specialist  ")
    assert 'target = ["../0.txt", "../1.txt"' in (out / "specialist.toml").read_text()


def test_text_read_too_often_stops_the_run_with_a_number_of_steps_that_would_do(world: World) -> None:
    out = world.folder / "often"
    error = world.refusal("specialize", world.target, "--data", world.corpus, *SMALL, "--steps", "200", "--out", out)
    assert error["id"] == "refused.run-failed"
    assert "spec.too-many-repeats" in error["message"]
    assert 1 <= int(error["fix"].split()[2]) < 200


def test_a_target_that_the_corpus_holds_is_found_and_counted(world: World) -> None:
    lines = [line for line in world.corpus.read_text().splitlines() if "language-2" in line]
    (world.folder / "inside.jsonl").write_text("\n".join(lines) + "\n")
    out = world.folder / "inside"
    call = ("specialize", world.folder / "inside.jsonl", "--data", world.corpus, *SMALL, "--steps", "4", "--out", out)
    code, shown, said = world.potluck(*call)
    assert code == 0, said
    (counted,) = [line.split() for line in shown.splitlines() if line.startswith("near-duplicates")]
    assert int(counted[1]) > 0


def test_a_target_unlike_the_corpus_is_told_by_the_share_that_has_no_place(world: World) -> None:
    (world.folder / "foreign.txt").write_text(FOREIGN)
    out = world.folder / "foreign"
    call = ("specialize", world.folder / "foreign.txt", "--data", world.corpus, *SMALL, "--steps", "2", "--out", out)
    code, shown, said = world.potluck(*call)
    assert code == 0, said
    (unplaced,) = [line.split()[1] for line in shown.splitlines() if line.startswith("unplaced")]
    assert float(unplaced.rstrip("%")) > 20
    assert "the corpus holds little text like it" in " ".join(said.split())
    assert "no terminal" in said


def test_on_a_terminal_warnings_are_asked_about_and_no_cancels_the_run(world: World) -> None:
    (world.folder / "asked.txt").write_text(FOREIGN)
    call = ["specialize", str(world.folder / "asked.txt"), "--data", str(world.corpus), *SMALL, "--steps", "3"]
    call += ["--out", str(world.folder / "asked"), "--home", str(world.folder)]
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "potluck.cli", *call]
    with subprocess.Popen(command, stdin=theirs, stderr=theirs, stdout=subprocess.PIPE, text=True) as process:
        os.close(theirs)
        said = b""
        while b"[y/N]" not in said:
            said += os.read(ours, 1 << 12)
        os.write(ours, b"n\n")
        shown, _ = process.communicate(timeout=TIMEOUT_S)
        os.close(ours)
    assert process.returncode == 0, said
    assert "cancelled; the same call takes it up again" in shown
    states = {run["name"]: run["state"] for run in world.answer("run", "list")["runs"]}
    assert states["asked"] == "cancelled"


BAD: list[tuple[str, str, tuple[str, ...], str]] = [
    ("corpus.empty", " \n", (), "no text"),
    ("corpus.too-small", "word", (), "4 bytes"),
    ("corpus.too-few-examples", "one line of words " * 40, (), "bytes of text by split"),
    ("spec.k-too-large", FOREIGN, ("--k", "60000"), "60000 clusters"),
    ("spec.bad-value", FOREIGN, ("--k", "4", "--branch", "3"), "partition.k"),
    ("spec.bad-value", FOREIGN, ("--model", "7B"), "model.preset"),
    ("spec.bad-value", FOREIGN, ("--switch", "1"), "switch_fraction"),
    ("spec.bad-target", FOREIGN, ("--weight", "poems=2"), "poems"),
    ("usage.bad-value", FOREIGN, ("--weight", "poems"), "--weight poems"),
    ("usage.bad-encoder", FOREIGN, ("--encoder", "."), "modules.json"),
]


@pytest.mark.parametrize(("error_id", "text", "options", "said"), BAD, ids=[f"{b[0]}-{i}" for i, b in enumerate(BAD)])
def test_bad_input_is_refused_before_anything_is_started(
    world: World, tmp_path: Path, error_id: str, text: str, options: tuple[str, ...], said: str
) -> None:
    (tmp_path / "target.txt").write_text(text)
    before = len(world.answer("run", "list")["runs"])
    call = ("specialize", tmp_path / "target.txt", "--data", world.corpus, "--steps", "2", "--out", tmp_path / "out")
    error = world.refusal(*call, *options)
    assert error["id"] == error_id, error
    assert said in error["message"]
    assert error["fix"]
    assert len(world.answer("run", "list")["runs"]) == before


def test_what_is_written_never_lies_among_the_texts_and_another_calls_spec_stays(world: World, tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text(FOREIGN)
    error = world.refusal("cluster", tmp_path / "text", "--out", tmp_path / "text" / "clusters")
    assert error["id"] == "usage.out-inside-data"
    (tmp_path / "cluster.toml").write_text("# mine\n")
    assert world.refusal("cluster", world.corpus, "--out", tmp_path)["id"] == "usage.file-exists"
    assert (tmp_path / "cluster.toml").read_text() == "# mine\n"
