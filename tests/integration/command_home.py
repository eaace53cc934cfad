"""A home whose commands run in this process, and whose daemons are processes of their own."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potluck.cli import main

TIMEOUT_S = 100


@dataclass(frozen=True, kw_only=True)
class CommandHome:
    folder: Path

    def potluck(self, *arguments: str | Path) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of a command."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([*map(str, arguments), "--home", str(self.folder)])
        return code, out.getvalue(), err.getvalue()

    def answer(self, *arguments: str | Path) -> dict[str, Any]:
        code, out, err = self.potluck(*arguments, "--json")
        assert code == 0, out + err
        return dict(json.loads(out))

    def refusal(self, *arguments: str | Path) -> dict[str, Any]:
        code, out, err = self.potluck(*arguments, "--json")
        assert code != 0, out + err
        return dict(json.loads(out)["error"])

    def daemons(self, *arguments: str) -> None:
        """A command that starts or ends processes: one of its own, as a shell would have it."""
        command = [sys.executable, "-m", "potluck.cli", *arguments, "--home", str(self.folder)]
        subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S, check=True)
