"""`potluck up --with-node`: a coordinator with a node beside it, in one home, from one command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

CALL_S = 60.0


def said(home: Path, *words: str) -> Any:
    command = [sys.executable, "-m", "potluck.cli", *words, "--json", "--home", str(home)]
    done = subprocess.run(command, capture_output=True, timeout=CALL_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_one_command_brings_a_coordinator_and_its_node_and_one_takes_both_away(tmp_path: Path) -> None:
    try:
        said(tmp_path, "up", "--with-node", "--detach", "--host", "127.0.0.1", "--port", "0")
        (node,) = said(tmp_path, "nodes")["nodes"]
        assert (node["role"], node["state"], node["drained"]) == ("node", "live", False)
    finally:
        said(tmp_path, "down", "--now")
