"""What a command does to a coordinator's own folder: by a child process, for this package knows nothing of journals."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from potluck.errors import InvariantViolation
from potluck.net.remote_errors import error_from_id

Verb = Literal["back-up", "restore", "check"]


def offline(verb: Verb, coordinator: Path, *arguments: str) -> Mapping[str, Any]:
    """Runs `python -m coordinator.offline` on a coordinator's folder; what it answers.

    Raises:
        PotluckError: what it refused, with its id; ``resource.locked`` if a coordinator runs there.
    """
    command = [sys.executable, "-m", "coordinator.offline", verb, "--home", str(coordinator), *arguments]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    if not lines:
        fix = "this is a mistake in potluck; report it with what follows"
        raise InvariantViolation("bug.offline", f"{verb} ended with {done.returncode}: {done.stderr[-2000:]}", fix)
    answer: dict[str, Any] = json.loads(lines[-1])
    if "error" in answer:
        raise error_from_id(answer["error"]["id"], answer["error"]["message"], answer["error"]["fix"])
    return answer
