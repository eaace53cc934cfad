"""A named crash point kills the process at the pass it is asked to, and leaves its name behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PASSES = """
import sys
from potluck.crashpoints import crash_here
for number in range(5):
    crash_here("here")
    crash_here("elsewhere")
    print(number, flush=True)
"""


@pytest.mark.parametrize(("wanted", "num_passed"), [("here", 0), ("here:3", 2), ("elsewhere:2", 1)])
def test_the_process_dies_at_the_named_pass_and_says_where(wanted: str, num_passed: int, tmp_path: Path) -> None:
    log = tmp_path / "crashes"
    environment = {**os.environ, "POTLUCK_CRASH_AT": wanted, "POTLUCK_CRASH_LOG": str(log)}
    done = subprocess.run([sys.executable, "-c", PASSES], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(done.stdout.splitlines()) == num_passed
    assert log.read_text() == wanted.partition(":")[0] + "\n"


@pytest.mark.parametrize("wanted", ["", "nowhere", "here:6"])
def test_nothing_happens_when_it_is_not_asked_for(wanted: str) -> None:
    environment = {**os.environ, "POTLUCK_CRASH_AT": wanted}
    done = subprocess.run([sys.executable, "-c", PASSES], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()) == (0, ["0", "1", "2", "3", "4"])
