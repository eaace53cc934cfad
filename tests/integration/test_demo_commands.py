"""The README's commands, run as a person runs them, in the smallest size. `make test-demo`."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from potluck.report.schema import check_report

pytestmark = [pytest.mark.demo, pytest.mark.timeout(1500)]

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 900
SMALLEST = "0.3"
KINDS = {
    "numbers": "def add_{0}(a, b):\n    return a + b * {0}\n\n",
    "prose": "On day {0} the old ship sailed past island {0}, and nobody on board said a word about it.\n",
    "lists": "- item {0}: {0} apples, {0} pears\n- item {0}b: none\n",
}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    folder = tmp_path / "my_text"
    for kind, line in KINDS.items():
        (folder / kind).mkdir(parents=True)
        for part in range(12):
            lines = "".join(line.format(part * 1000 + number) for number in range(700))
            (folder / kind / f"{part}.txt").write_text(lines)
    return folder


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "demo"
    yield folder
    run([*make(folder), "down"])
    assert not processes_of(folder)


def make(folder: Path) -> list[str]:
    return ["make", "-C", str(ROOT), f"DIR={folder}", f"MINUTES={SMALLEST}"]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, stdin=subprocess.DEVNULL, cwd=ROOT
    )


def processes_of(folder: Path) -> list[psutil.Process]:
    return [p for p in psutil.process_iter(["cmdline"]) if any(str(folder) in word for word in p.info["cmdline"] or [])]


def readme_block(number: int) -> list[str]:
    """The commands of the README's shell block, without comments."""
    block = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)[number]
    lines = [line.partition("  #")[0].strip() for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def test_the_three_commands_of_the_readme_train_route_and_generate(demo: Path, text: Path) -> None:
    train, route, generate = readme_block(0)
    assert train == "make demo QUICK=1"
    done = run([*make(demo), "demo", f"DATA={text}"])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for said in ("leak-free", "dense twin", "oracle routing", "ledger: complete", "potluck route"):
        assert said in done.stdout + done.stderr
    report = json.loads((demo / "report.json").read_text())
    check_report(report)
    assert report["ledger"]["ok"]
    assert (demo / "report.html").stat().st_size > 10_000

    routed = run(shlex.split(route.replace("demo/home", str(demo / "home"))))
    assert routed.returncode == 0, routed.stderr
    assert re.search(r"expert \d, decided on \d+ tokens", routed.stdout)
    generated = run(shlex.split(generate.replace("demo/home", str(demo / "home"))))
    assert generated.returncode == 0, generated.stderr
    assert generated.stdout.startswith("def main():")

    again = run([*make(demo), "demo", f"DATA={text}"])
    assert again.returncode == 0, again.stderr[-3000:]
    assert "already-finished" in again.stderr
    assert json.loads((demo / "report.json").read_text())["run"] == report["run"]


def test_the_second_block_of_the_readme_trains_with_a_node_that_joined(tmp_path: Path, text: Path) -> None:
    """Two machines' worth of homes on one; ports are ephemeral and the plan is the smallest."""
    first, second, spec = tmp_path / "a", tmp_path / "b", tmp_path / "spec.toml"
    up, join, plan, start, router, generate = (shlex.split(line)[1:] for line in readme_block(1))
    potluck = [sys.executable, "-m", "potluck.cli"]
    try:
        started = run([*potluck, *up, "--home", str(first), "--host", "127.0.0.1", "--port", "0", "--json"])
        assert started.returncode == 0, started.stderr
        joining = [*join[:-1], json.loads(started.stdout)["join"]]
        joined = run([*potluck, *joining, "--home", str(second), "--detach"])
        assert joined.returncode == 0, joined.stderr
        words = {"30": SMALLEST, "my_text": str(text), "spec.toml": str(spec), "plan": "plan"}
        planned = run([*potluck, *(words.get(word, word) for word in plan), "--home", str(first)])
        assert planned.returncode == 0, planned.stderr
        finished = run([*potluck, *(words.get(word, word) for word in start), "--home", str(first)])
        assert finished.returncode == 0, finished.stderr[-3000:]
        routed = run([*potluck, *router, "--home", str(first), "--host", "127.0.0.1", "--port", "0"])
        assert routed.returncode == 0, routed.stderr
        assert run([*potluck, "eval", "--home", str(first)]).returncode == 0
        assert run([*potluck, "ledger", "--home", str(first)]).returncode == 0
        generated = run([*potluck, *generate, "--home", str(first)])
        assert generated.returncode == 0, generated.stderr
        assert generated.stdout.startswith("Once")
    finally:
        for home in (second, first):
            run([*potluck, "down", "--home", str(home), "--now"])
    assert not processes_of(tmp_path)


def test_ctrl_c_leaves_no_process_and_the_same_command_finishes(demo: Path, text: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "potluck.cli",
        "demo",
        "--dir",
        str(demo),
        "--data",
        str(text),
        "--minutes",
        SMALLEST,
    ]
    process = subprocess.Popen(
        [*command, "--no-serve"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    with process:
        assert process.stderr is not None
        for line in process.stderr:
            if "training experts" in line:
                break
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130
    assert not processes_of(demo)

    again = run([*command, "--no-serve"])
    assert again.returncode == 0, again.stderr[-3000:]
    assert "resumed" in again.stderr
    check_report(json.loads((demo / "report.json").read_text()))
    assert not processes_of(demo)


def test_two_ctrl_c_end_at_once_and_leave_no_process(demo: Path, text: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "potluck.cli",
        "demo",
        "--dir",
        str(demo),
        "--data",
        str(text),
        "--minutes",
        SMALLEST,
    ]
    process = subprocess.Popen(
        [*command, "--no-serve"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    with process:
        assert process.stderr is not None
        for line in process.stderr:
            if "routers in round" in line:
                os.killpg(process.pid, signal.SIGINT)
            if "stopping the daemons" in line:
                break
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130
    assert not processes_of(demo)
